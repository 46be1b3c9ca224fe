"""pocketmoe's own wheel, of the files that run now: no compiler, no network, the same bytes for the
same files."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from email.parser import Parser
from pathlib import Path

from ..errors import ExportError
from ..runtime.native.library import library_path
from .platforms import Platform
from .project import ROOT, project_metadata

_DATE = (1980, 1, 1, 0, 0, 0)
_LIBRARY = "runtime/native/libpocketmoe.so"
_ROOT_DATA = (".jinja", ".typed")
# What only builds the package, and the demo's checkpoint: 30 MiB that no runtime needs.
_NOT_TAKEN = (".pyc", ".cpp", ".h", ".inl", ".so", ".safetensors", ".dll", ".dylib")
_NO_CHECKPOINT = "model/demo/"


def package_files() -> dict[str, Path]:
    """The package's files by their path in it: sources and data, without the native library.

    In a clone, the root's other folders (tests and the like) are no packages, so they stay out.
    """
    found = {
        path.name: path
        for path in ROOT.iterdir()
        if path.is_file()
        and path.name != "setup.py"
        and (path.suffix in (".py", *_ROOT_DATA) or path.name in _ROOT_DATA)
        and not path.name.startswith(".")
    }
    for folder in ROOT.iterdir():
        if (folder / "__init__.py").is_file():
            for path in folder.rglob("*"):
                name = path.relative_to(ROOT).as_posix()
                hidden = any(part.startswith((".", "__pycache__")) for part in name.split("/"))
                data = path.suffix != ".py" and name.startswith(_NO_CHECKPOINT)
                if path.is_file() and not hidden and not data and path.suffix not in _NOT_TAKEN:
                    found[name] = path
    return dict(sorted(found.items()))


def write_wheel(folder: Path, platform: Platform, kernels: Path | None) -> Path:
    """Writes the wheel into `folder`. kernels: the native library; without one ONNX Runtime
    computes.

    Raises:
        ExportError: the package's sources are not there as files.
    """
    metadata, entry_points = project_metadata()
    version = Parser().parsestr(metadata)["Version"]
    files = package_files()
    if "cli.py" not in files or not version:
        raise ExportError(f"{ROOT} lacks the package's sources; install pocketmoe from its wheel")
    tag = f"py3-none-linux_{platform.machine}" if kernels is not None else "py3-none-any"
    info = f"pocketmoe-{version}.dist-info"
    wheel = (
        "Wheel-Version: 1.0\nGenerator: pocketmoe export\n"
        f"Root-Is-Purelib: {'false' if kernels is not None else 'true'}\nTag: {tag}\n"
    )
    content = {f"pocketmoe/{name}": path.read_bytes() for name, path in files.items()}
    if kernels is not None:
        content[f"pocketmoe/{_LIBRARY}"] = kernels.read_bytes()
    content[f"{info}/METADATA"] = metadata.encode()
    content[f"{info}/WHEEL"] = wheel.encode()
    content[f"{info}/entry_points.txt"] = entry_points.encode()
    content[f"{info}/licenses/LICENSE"] = _licence()
    record = "".join(f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"pocketmoe-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            member = zipfile.ZipInfo(name, _DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
            archive.writestr(member, data)
    return path


def has_own_kernels() -> bool:
    return library_path() is not None


def _licence() -> bytes:
    from importlib.metadata import distribution

    path = ROOT / "LICENSE"
    if path.is_file():
        return path.read_bytes()
    text = distribution("pocketmoe").read_text("licenses/LICENSE")
    if text is None:
        raise ExportError("pocketmoe's own LICENSE is not installed; install it from its wheel")
    return text.encode()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
