"""The bundle's directory while it is made: whole at its place, or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..bundle.licences import is_licence
from ..bundle.manifest import is_bundle
from ..errors import InputError
from ..signals import interrupts_deferred, unwinding_when_terminated


def refuse_existing(out: Path, force: bool) -> None:
    """Raises InputError where compiling would overwrite something that is not to be replaced."""
    if not os.path.lexists(out):
        return
    if not force:
        raise InputError(f"{out} exists; choose another -o, or replace it with --force")
    if not (is_bundle(out) or (out.is_dir() and not any(out.iterdir()))):
        raise InputError(f"{out} exists and is not a bundle, so --force does not replace it")


@contextmanager
def building(out: Path, force: bool) -> Iterator[Path]:
    """A directory beside `out` that takes its place at the end, or vanishes."""
    parent = out.absolute().parent
    root: Path | None = None
    with unwinding_when_terminated():
        try:
            try:
                parent.mkdir(parents=True, exist_ok=True)
                with interrupts_deferred():  # so that no folder is made and not known
                    root = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=parent))
            except OSError as error:
                raise InputError(
                    f"cannot write to {parent} ({error.strerror}); choose another -o"
                ) from error
            yield root
            root.chmod(0o755)
            refuse_existing(out, force)  # another compile may have been faster
            if os.path.lexists(out):
                old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=parent))
                os.replace(out, old / "bundle")
                try:
                    os.replace(root, out)
                except BaseException:
                    os.replace(old / "bundle", out)
                    raise
                finally:
                    shutil.rmtree(old)
            else:
                os.replace(root, out)
        finally:
            if root is not None:
                shutil.rmtree(root, ignore_errors=True)


def copy_licences(checkpoint: Path, root: Path) -> None:
    """Copies the licences beside a checkpoint's weights into a bundle."""
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and is_licence(path.name):
            shutil.copyfile(path, root / path.name)
