"""The ONNX Runtime that is installed: at most one of the packages that share its module."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from ...errors import EngineError

# Each of them installs the module `onnxruntime`: the last one wins, file by file.
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino",
    "onnxruntime-migraphx", "onnxruntime-qnn",
)  # fmt: skip


@lru_cache(maxsize=1)
def find_onnxruntime() -> str | None:
    """The package that is installed, if one is.

    Raises:
        EngineError: there are several, of which none works as it should.
    """
    found = []
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    if len(found) > 1:
        extra = "cuda" if "onnxruntime-gpu" in found else "cpu"
        raise EngineError(
            f"{' and '.join(found)} are both installed, and overwrite each other's files: "
            f"pip uninstall -y {' '.join(found)}, then pip install 'pocketmoe[{extra}]'"
        )
    return found[0] if found else None
