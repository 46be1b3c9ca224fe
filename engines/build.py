"""Engines of a bundle's GPU graphs: built while it is compiled, or put into it later."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ..bundle.gpu_graphs import (
    ENGINE_FOLDER,
    Engine,
    EngineSet,
    GpuGraphs,
    capability_name,
    plain_file,
)
from ..bundle.manifest import (
    FileRecord,
    Manifest,
    check_file,
    hash_file,
    read_manifest,
    write_manifest,
)
from ..errors import BundleError, EngineError, InputError
from ..progress import Progress, Silent
from ..signals import interrupts_deferred, unwinding_when_terminated
from ..sizes import format_size
from .builder import EngineBuilder
from .hardware import Gpu
from .kernel_cache import KERNELS
from .libraries import STOCK, load_tensorrt
from .monitor import BuildProgress, stoppable

_TEMPORARY = ".engines."
_TOO_LARGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

_log = logging.getLogger(__name__)


def build_engines(
    root: Path,
    graphs: GpuGraphs,
    into: Path,
    *,
    toolchain: str,
    compute_capabilities: Sequence[str] = (),
    gpu: Gpu | None = None,
    progress: Progress | None = None,
) -> tuple[EngineSet, ...]:
    """Builds every graph below `root` into a folder that it makes in `into`/engines.

    Without a GPU, an engine is for all of compute_capabilities at once: the sets that are returned,
    one for each, share its file. With `gpu` it is built there and for that one.

    Raises:
        EngineError: the toolchain does not load, or an engine cannot be built. Nothing is left.
    """
    progress = progress or Silent()
    capabilities = (gpu.compute_capability,) if gpu is not None else tuple(compute_capabilities)
    builder = EngineBuilder(toolchain, None if gpu is not None else capabilities)
    folder = _free_folder(into, toolchain, builder.version, capabilities)
    files = graphs.files()
    sizes = {file: _graph_bytes(root / file) for file in files}
    progress.stage(f"engines for {_names(capabilities)}", sum(sizes.values()))
    (into / folder).mkdir(parents=True)

    def work(stop: threading.Event) -> tuple[Engine, ...]:
        engines = []
        for file in files:
            name = f"{folder}/{Path(file).stem}.engine"
            watched = BuildProgress(progress.advance, sizes[file])
            try:
                built = builder.build(root, file, graphs, into / name, watched, stop)
            except EngineError as error:
                plain = plain_file(file)
                if toolchain != STOCK or stop.is_set() or not (root / plain).is_file():
                    raise
                _log.warning("%s; it is built of plain operators, which is slower", error)
                built = builder.build(root, plain, graphs, into / name, watched, stop)
            engines.append(Engine(file, name, built.inputs, built.outputs))
        return tuple(engines)

    try:
        engines = stoppable(work)
    except BaseException:
        shutil.rmtree(into / folder, ignore_errors=True)
        raise
    device = gpu.name if gpu is not None else None
    return tuple(
        EngineSet(toolchain, builder.version, capability, device, engines)
        for capability in capabilities
    )


def add_engines(
    bundle: Path,
    *,
    toolchain: str,
    compute_capabilities: Sequence[str] = (),
    gpu: Gpu | None = None,
    progress: Progress | None = None,
) -> tuple[EngineSet, ...]:
    """Builds engines as `build_engines` does and puts them into a bundle, in place of those that it
    has for the same toolchain and compute capability. Until the end, and if it is killed on the
    way, the bundle is what it was.

    Raises:
        BundleError: it cannot be opened or written, has no GPU graphs, or they are damaged.
        EngineError: the toolchain does not load, or an engine cannot be built.
        InputError: another build is at work on it.
    """
    progress = progress or Silent()
    load_tensorrt(toolchain)  # what is missing is said before anything else is done
    read_manifest(bundle)  # what is no bundle is not locked
    with _alone(bundle), unwinding_when_terminated():
        manifest = read_manifest(bundle)
        graphs = gpu_graphs(bundle, manifest)
        _check_graphs(bundle, manifest, progress)
        with _writing(bundle, graphs):
            _remove_leftovers(bundle, manifest)
            temporary: Path | None = None
            try:
                with interrupts_deferred():  # so that no folder is made and not known
                    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, suffix=".tmp", dir=bundle))
                sets = build_engines(
                    bundle, graphs, temporary,
                    toolchain=toolchain, compute_capabilities=compute_capabilities, gpu=gpu,
                    progress=progress,
                )  # fmt: skip
                sets, records = _put(bundle, temporary, sets, progress.advance)
            finally:
                if temporary is not None:
                    shutil.rmtree(temporary, ignore_errors=True)
            new = {(item.toolchain, item.compute_capability) for item in sets}
            kept = [i for i in manifest.engines if (i.toolchain, i.compute_capability) not in new]
            manifest = _with_sets(manifest, (*kept, *sets), records)
            write_manifest(bundle, manifest)
            _remove_leftovers(bundle, manifest)
    return sets


def remove_engines(bundle: Path, compute_capability: str | None) -> tuple[EngineSet, ...]:
    """Takes the sets for a compute capability, or all, out of a bundle, and returns them.

    Raises:
        BundleError, InputError: as add_engines.
    """
    read_manifest(bundle)
    with _alone(bundle):
        manifest = read_manifest(bundle)
        sets = (*manifest.engines, *manifest.incomplete)
        gone = tuple(i for i in sets if compute_capability in (None, i.compute_capability))
        if gone:
            with _writing(bundle, gpu_graphs(bundle, manifest)):
                kept = tuple(item for item in manifest.engines if item not in gone)
                manifest = _with_sets(manifest, kept, {})
                write_manifest(bundle, manifest)
                _remove_leftovers(bundle, manifest)
    return gone


@contextmanager
def _writing(bundle: Path, graphs: GpuGraphs) -> Iterator[None]:
    """What the system refuses becomes a BundleError about the bundle and its size."""
    folder = bundle / ENGINE_FOLDER
    if os.path.lexists(folder) and not folder.is_dir():
        raise BundleError(f"{folder} is no folder, and engines go into one; move it away")
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        if error.errno in _TOO_LARGE:
            size = format_size(sum(_graph_bytes(bundle / file) for file in graphs.files()))
            raise BundleError(
                f"{bundle} has no room for engines ({why}): they take about {size} beside those "
                "that are there; free some space, or copy the bundle to where there is some"
            ) from error
        if error.errno in _READ_ONLY:
            raise BundleError(
                f"{bundle} cannot be written ({why}); copy it to where it can be"
            ) from error
        raise


def _put(
    bundle: Path, temporary: Path, sets: tuple[EngineSet, ...], advance: Callable[[int], None]
) -> tuple[tuple[EngineSet, ...], dict[str, FileRecord]]:
    """Moves the new folder to its place, where no manifest names it yet."""
    first = sets[0]
    old = os.path.dirname(first.engines[0].file)
    capabilities = [item.compute_capability for item in sets]
    folder = _free_folder(bundle, first.toolchain, first.version, capabilities)
    records = {}
    engines = []
    for engine in first.engines:
        path = temporary / engine.file
        file = f"{folder}/{path.name}"
        records[file] = FileRecord(path.stat().st_size, hash_file(path))
        engines.append(replace(engine, file=file))
    (bundle / ENGINE_FOLDER).mkdir(exist_ok=True)
    os.replace(temporary / old, bundle / folder)
    return tuple(replace(item, engines=tuple(engines)) for item in sets), records


def _with_sets(
    manifest: Manifest, sets: tuple[EngineSet, ...], records: dict[str, FileRecord]
) -> Manifest:
    """The manifest with these sets alone, and without files that nobody needs then; records: of
    files that are new."""
    needed = {file for item in sets for file in item.files}
    dropped = {file for item in manifest.engines for file in item.files} - needed
    files = {name: record for name, record in manifest.files.items() if name not in dropped}
    return replace(manifest, engines=sets, incomplete=(), missing=(), files={**files, **records})


def gpu_graphs(bundle: Path, manifest: Manifest) -> GpuGraphs:
    """The graphs of a bundle; raises BundleError where it has none."""
    if manifest.graphs is None:
        raise BundleError(
            f"{bundle} has no device graphs to build engines of: it is compiled for "
            f"{manifest.target}, so compile it with --target of a GPU"
        )
    return manifest.graphs


def _check_graphs(bundle: Path, manifest: Manifest, progress: Progress) -> None:
    """An engine keeps a graph's weights, so what is damaged there would stay."""
    folders = {os.path.dirname(file) for file in gpu_graphs(bundle, manifest).files()}
    names = [name for name in manifest.files if os.path.dirname(name) in folders]
    progress.stage("device graphs", sum(manifest.files[name].size for name in names))
    for name in names:
        check_file(bundle, manifest, name)
        progress.advance(manifest.files[name].size)


def _remove_leftovers(bundle: Path, manifest: Manifest) -> None:
    """Removes what a killed build has left, and engines that no set names any more; a folder stays
    with what else somebody has put there."""
    for path in bundle.glob(f"{_TEMPORARY}*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    folders = {os.path.dirname(e.file) for item in manifest.engines for e in item.engines}
    if (bundle / ENGINE_FOLDER).is_dir():
        for path in (bundle / ENGINE_FOLDER).iterdir():
            if path.is_dir() and f"{ENGINE_FOLDER}/{path.name}" not in folders:
                _remove_engines(path)


def _remove_engines(folder: Path) -> None:
    for path in [*folder.glob("*.engine"), *folder.glob(f"*{KERNELS}*")]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


@contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    """Keeps a second build away; the lock goes with the process that holds it."""
    descriptor = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another build is at work on {bundle}; wait until it has ended"
            ) from None
        except OSError as error:  # some network file systems lock nothing
            _log.info("%s cannot be locked (%s)", bundle, error)
        yield
    finally:
        os.close(descriptor)


def _free_folder(root: Path, toolchain: str, version: str, capabilities: Sequence[str]) -> str:
    """A new folder below `root`: one that is there keeps its content until it is not needed."""
    names = "-".join(map(capability_name, capabilities))
    base = f"{ENGINE_FOLDER}/{toolchain}-{version}-{names}"
    number, folder = 1, base
    while (root / folder).exists():
        number += 1
        folder = f"{base}-{number}"
    return folder


def _graph_bytes(path: Path) -> int:
    """A graph with its weights, which lie beside it."""
    if not path.is_file():
        raise EngineError(f"{path} is missing; compile the bundle again")
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def _names(capabilities: Sequence[str]) -> str:
    return ", ".join(map(capability_name, capabilities))
