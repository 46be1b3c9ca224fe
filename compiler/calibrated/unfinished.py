"""The experts of a bundle that is being calibrated, kept layer by layer, so that a compile that was
stopped goes on where it was.

They lie in a folder beside the bundle until the bundle is whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle.expert_layers import ExpertLayer, expert_layer_from_json
from ...calibration.stream import LayerStream
from ...errors import InputError
from ...files import atomic_file, write_atomically

_ARGUMENTS, _STATE = "arguments.json", "state.npz"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedLayer:
    """pages: where they lie; errors: of each expert, None for one without tokens."""

    pages: ExpertLayer
    errors: list[float | None]


class Unfinished:
    """What is done so far, and the state of the stream behind it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.activations = folder / "activations"
        self._layers = folder / "layers"

    def layers(self) -> list[FinishedLayer]:
        done = []
        for path in sorted(self._layers.glob("*.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            done.append(FinishedLayer(expert_layer_from_json(data["pages"]), data["errors"]))
        return done

    def restore(self, stream: LayerStream) -> list[FinishedLayer]:
        """Puts the stream behind the last layer that is done; pages that follow it are removed."""
        state = self.folder / _STATE
        done: list[FinishedLayer] = []
        if state.is_file():
            with np.load(state) as found:
                stream.layer = int(found["layer"])
                stream.hidden[:] = found["hidden"]
            done = [item for item in self.layers() if item.pages.layer < stream.layer]
        else:
            stream.embed()
        kept = {Path(item.pages.file).parent.name for item in done}
        for path in self.folder.glob("experts/layer_*"):
            if path.name not in kept:
                shutil.rmtree(path)
        return done

    def keep(self, layer: FinishedLayer, stream: LayerStream) -> None:
        """A layer's pages are written: from now on they count as done. Nothing does before the
        state that follows them is there."""
        data = {"pages": layer.pages.to_json(), "errors": layer.errors}
        self._layers.mkdir(exist_ok=True)
        write_atomically(self._layers / f"{layer.pages.layer:03d}.json", json.dumps(data))
        with atomic_file(self.folder / _STATE) as file:
            np.savez(file, layer=np.int64(stream.layer), hidden=stream.hidden)

    def hand_over(self, root: Path) -> None:
        """Puts the pages into a bundle. They stay here too, at no cost where the file system knows
        links, until the bundle is whole."""
        shutil.copytree(
            self.folder / "experts", root / "experts", copy_function=_link_or_copy,
            dirs_exist_ok=True,
        )  # fmt: skip


def _link_or_copy(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


@contextmanager
def keeping_layers(out: Path, arguments: Mapping[str, Any], resume: bool) -> Iterator[Unfinished]:
    """arguments: what the bytes depend on, as JSON. The folder goes when the bundle is whole, or
    where no layer is done.

    Raises:
        InputError: another compile has left layers and resume is not wished, or there is nothing to
            resume, or it was begun with other arguments.
    """
    work = _open(out, json.loads(json.dumps(arguments)), resume)
    try:
        yield work
    except BaseException:
        if (work.folder / _STATE).is_file():
            _log.warning("%s keeps the layers that are done; --resume goes on there", work.folder)
        else:
            shutil.rmtree(work.folder, ignore_errors=True)
        raise
    shutil.rmtree(work.folder)


def _open(out: Path, arguments: dict[str, Any], resume: bool) -> Unfinished:
    folder = out.with_name(f"{out.name}.unfinished")
    work, settings = Unfinished(folder), folder / _ARGUMENTS
    if not resume:
        if os.path.lexists(folder):
            raise InputError(
                f"{folder} holds what a compile that was stopped has done; go on with --resume, or "
                "remove it"
            )
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"cannot write to {folder.parent} ({error.strerror}); choose another -o"
            ) from error
        work.activations.mkdir()
        write_atomically(settings, json.dumps(arguments, indent=1))
        return work
    try:
        found = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"there is no compile of {out} that was stopped; compile without --resume"
        ) from None
    differing = [name for name, value in arguments.items() if found.get(name) != value]
    if differing:
        raise InputError(
            f"{folder} was begun with another {differing[0]}; resume with the same arguments, or "
            "remove it"
        )
    for left in folder.parent.glob(f".{out.name}.????????.tmp"):  # by a compile that was killed
        shutil.rmtree(left, ignore_errors=True)
    return work
