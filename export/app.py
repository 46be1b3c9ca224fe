"""Exporting: a bundle and its runtime become one file."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..bundle.manifest import Manifest, read_manifest
from ..errors import ExportError, InputError
from ..progress import Progress
from .archive import compression_of, refuse_existing, write_archive
from .contents import Content, of_bundle, of_bytes, of_file, sizes_of
from .installer import manifest as places
from .installer.manifest import App, Runtime, is_name, write_manifest
from .installer.manifest import read_manifest as read_app
from .installer_zip import make_installer
from .kernels import find_kernels
from .licences import collect_licences, model_licences
from .own_wheel import write_wheel
from .platforms import Platform, find_platform
from .requirements import Wheel, gather_wheels

_HERE = Path(__file__).parent
_ENGINES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported. bundle: None for a runtime alone that fits any app. platform,
    glibc: as for find_platform. licences: files of the model's. wheels: a folder to take wheels
    from, in place of the index. kernels: the native library for another kind of machine."""

    bundle: Path | None
    name: str | None = None
    runtime_only: bool = False
    bundle_only: bool = False
    platform: str | None = None
    glibc: str | None = None
    extras: tuple[str, ...] = ("cpu", "serve")
    kernels: Path | None = None
    wheels: Path | None = None
    constraint: Path | None = None
    licences: tuple[Path, ...] = ()
    force: bool = False


@dataclass(frozen=True)
class Exported:
    """folder: that it unpacks to. size and sha256: of the archive. identity: of its content, for
    `install --expect`. unlicensed: packages whose wheel has no text of a licence. notes: what is
    worth a warning."""

    path: str
    folder: str
    size: int
    sha256: str
    identity: str
    name: str | None
    platform: str | None
    wheels: tuple[str, ...] = ()
    installed_bytes: int = 0
    kernels: bool = False
    model: str | None = None
    bundle_bytes: int = 0
    unlicensed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def export_app(request: ExportRequest, out: Path, progress: Progress) -> Exported:
    """Writes the archive.

    Raises:
        InputError, BundleError, ExportError: each says what to do.
    """
    compression_of(out)
    refuse_existing(out, force=request.force)
    if request.runtime_only and request.bundle_only:
        raise InputError("--runtime-only and --bundle-only exclude each other")
    if request.bundle is None and not request.runtime_only:
        raise InputError("which bundle? name it, or export a runtime with --runtime-only")
    manifest = None if request.bundle is None else read_manifest(request.bundle)
    name = request.name
    if name is None and request.bundle is not None:
        name = request.bundle.resolve().name
    if name is not None and not is_name(name):
        raise InputError(f"{name!r} cannot be an app's name (letters, digits, '.', '_', '-'); "
                         "choose one with --name")  # fmt: skip
    contents: dict[str, Content] = {places.INSTALLER: of_bytes(make_installer())}
    notes: list[str] = []
    platform: Platform | None = None
    wheels: list[Wheel] = []
    runtime: Runtime | None = None
    with ExitStack() as ends:
        if not request.bundle_only:
            folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
            platform = find_platform(request.platform, request.glibc)
            wheels, kernels = _wheels(request, platform, folder, progress)
            runtime = _runtime(wheels, platform, request, kernels is not None)
            contents.update(_runtime_contents(wheels))
            notes += _runtime_notes(request, platform, wheels, kernels, manifest)
        if manifest is not None and request.bundle is not None and not request.runtime_only:
            licences = model_licences(request.bundle, request.licences)
            contents.update({at: of_file(path) for at, path in licences.items()})
            contents.update(of_bundle(request.bundle, manifest))
            if not licences:
                notes.append("the model's licence is not in the bundle; add it with --licence FILE")
        else:
            manifest = None
        model = None if manifest is None else _model(manifest)
        contents[places.README] = of_bytes(_readme(name, runtime))
        app = App(name, runtime, model, sizes_of(contents))
        data = write_manifest(app)
        app = read_app(data)  # so that nothing is written that no device would take
        first = {
            places.MANIFEST: of_bytes(data),
            places.SUMS: of_bytes(places.sums_text(app, data)),
        }
        rest = dict(sorted(contents.items(), key=lambda item: _order(item[0])))
        progress.stage("write", sum(item.item.size for item in (*first.values(), *rest.values())))
        top = f"{name or 'pocketmoe'}{_suffix(request)}"
        size, sha256 = write_archive(out, top, {**first, **rest}, progress, force=request.force)
    texts = {name.split("/")[1] for name in contents if name.startswith(places.LICENCES)}
    return Exported(
        str(out), top, size, sha256, app.identity, name,
        None if platform is None else str(platform),
        tuple(wheel.path.name for wheel in wheels), runtime.installed_bytes if runtime else 0,
        bool(runtime and runtime.kernels), model,
        sum(item.size for item in app.part("bundle").values()) if model else 0,
        tuple(item.name for item in wheels if f"{item.name}-{item.version}" not in texts),
        tuple(notes),
    )  # fmt: skip


def _model(manifest: Manifest) -> str:
    parts = manifest.precision
    return (
        f"{manifest.spec.family}, {manifest.num_pages} experts {parts.experts}, "
        f"backbone {parts.backbone}, for {manifest.target}"
    )


def _suffix(request: ExportRequest) -> str:
    return "-runtime" if request.runtime_only else "-bundle" if request.bundle_only else ""


def _order(name: str) -> tuple[int, str]:
    """Small things first, the bundle last."""
    tops = (places.README, places.INSTALLER, places.UNIT, places.LICENCES, places.WHEELS)
    return next((index for index, top in enumerate(tops) if name.startswith(top)), len(tops)), name


def _wheels(
    request: ExportRequest, platform: Platform, folder: Path, progress: Progress
) -> tuple[list[Wheel], Path | None]:
    kernels = find_kernels(request.kernels, platform)
    progress.stage(f"get wheels for {platform}", 0)
    own = write_wheel(folder, platform, kernels)
    found = folder / "found"
    found.mkdir()
    wheels = gather_wheels(
        own, request.extras, platform, found,
        find_links=request.wheels, constraint=request.constraint,
    )  # fmt: skip
    return wheels, kernels


def _runtime(
    wheels: list[Wheel], platform: Platform, request: ExportRequest, kernels: bool
) -> Runtime:
    size = sum(wheel.installed_bytes for wheel in wheels if wheel.name != "pip")
    version = str(wheels[0].version)
    return Runtime(
        version, platform.machine, platform.python_text, platform.glibc_text, request.extras,
        size, kernels,
    )  # fmt: skip


def _runtime_contents(wheels: list[Wheel]) -> dict[str, Content]:
    contents = {f"{places.WHEELS}{wheel.path.name}": of_file(wheel.path) for wheel in wheels}
    contents[places.UNIT] = of_file(_HERE / places.UNIT)
    texts = collect_licences(wheels)
    return {**contents, **{name: of_bytes(data) for name, data in texts.items()}}


def _runtime_notes(
    request: ExportRequest,
    platform: Platform,
    wheels: list[Wheel],
    kernels: Path | None,
    manifest: Manifest | None,
) -> list[str]:
    """Raises ExportError where nothing in the runtime could compute."""
    notes = []
    engine = any(wheel.name in _ENGINES for wheel in wheels)
    if kernels is None:
        if not engine:
            raise ExportError(
                f"nothing would compute on {platform}: there are no native kernels for it, and no "
                "ONNX Runtime; add --extra cpu or --kernels FILE"
            )
        notes.append(
            f"there are no native kernels for {platform} in it: ONNX Runtime computes, more "
            "slowly; --kernels FILE adds some that were compiled there"
        )
    if "serve" not in request.extras:
        notes.append("without --extra serve the systemd unit has no server to start")
    return notes


def _readme(name: str | None, runtime: Runtime | None) -> bytes:
    text = (_HERE / "readme.txt").read_text(encoding="utf-8")
    words = {
        "@TITLE@": f"The app {name}" if name else "A runtime",
        "@VERSION@": runtime.version if runtime else "export, a bundle alone",
        "@PYTHON@": runtime.python if runtime else "3",
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return text.encode()
