"""Loading TensorRT and CUDA: what is missing or does not fit is said in one line."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pocketmoe.engines import hardware, libraries
from pocketmoe.engines.hardware import find_gpu
from pocketmoe.engines.libraries import RTX, STOCK, is_installed, load_tensorrt
from pocketmoe.errors import EngineError
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages, in place of the TensorRT that may be installed."""
    real = libraries.find_spec

    def find(name: str) -> object:
        if name.partition(".")[0] in NAMES and not (tmp_path / name).is_dir():
            return None
        return real(name)

    kept = {name: sys.modules.pop(name) for name in list(sys.modules)
            if name.partition(".")[0] in NAMES}  # fmt: skip
    monkeypatch.setattr(libraries, "find_spec", find)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_tensorrt.cache_clear()
    yield tmp_path
    for name in list(sys.modules):
        if name.partition(".")[0] in NAMES:
            del sys.modules[name]
    sys.modules.update(kept)
    load_tensorrt.cache_clear()


def package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    importlib.invalidate_caches()


def problem(toolchain: str) -> str:
    with pytest.raises(EngineError) as caught:
        load_tensorrt(toolchain)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestTensorRT:
    def test_not_installed(self, installed: Path) -> None:
        assert problem(RTX) == (
            "TensorRT for RTX is not installed: pip install 'pocketmoe[tensorrt-rtx]'"
        )
        assert "on a Jetson it comes with JetPack" in problem(STOCK)
        assert "--system-site-packages" in problem(STOCK)
        assert not is_installed(RTX)
        assert not is_installed(STOCK)

    def test_stubs_alone_are_no_tensorrt(self, installed: Path) -> None:
        (installed / "tensorrt").mkdir()
        (installed / "tensorrt/__init__.pyi").write_text("")
        importlib.invalidate_caches()
        assert not is_installed(STOCK)
        assert "is not installed" in problem(STOCK)

    def test_bindings_without_libraries(self, installed: Path) -> None:
        package(installed, "tensorrt_rtx_bindings", "__version__ = '1.7.1.116'")
        assert problem(RTX).startswith("the libraries of TensorRT for RTX are not installed")

    def test_a_library_that_does_not_load(self, installed: Path) -> None:
        package(installed, "tensorrt_rtx_bindings", "__version__ = '1.7.1.116'")
        package(installed, "onnxruntime_ep_nv_tensorrt_rtx", "")
        for name in ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx"):
            (installed / f"onnxruntime_ep_nv_tensorrt_rtx/{name}.so.1.7.1").write_bytes(b"no ELF")
        message = problem(RTX)
        assert message.startswith("TensorRT for RTX does not load (")
        assert "libtensorrt_rtx.so.1.7.1" in message

    @needs_rtx
    def test_two_versions(self, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            libraries, "rtx_libraries", lambda: [Path("/x/libtensorrt_rtx.so.1.6.0")]
        )
        monkeypatch.setattr(libraries.ctypes, "CDLL", lambda *_: None)
        package(installed, "tensorrt_rtx_bindings", "__version__ = '1.7.1.116'")
        assert "in two versions, 1.7.1.116 of its Python module and 1.6.0" in problem(RTX)

    def test_another_python(self, installed: Path) -> None:
        package(installed, "tensorrt", "from .tensorrt import *")
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert f"the installed TensorRT is not made for Python {python}" in problem(STOCK)

    def test_a_module_whose_library_is_missing(self, installed: Path) -> None:
        package(installed, "tensorrt", "raise ImportError('libnvinfer.so.10: cannot open')")
        assert problem(STOCK).startswith("TensorRT does not load (libnvinfer.so.10: cannot open)")

    def test_too_old(self, installed: Path) -> None:
        package(installed, "tensorrt", "__version__ = '8.6.2'")
        assert problem(STOCK) == (
            "TensorRT 8.6.2 is too old: 10.3 (JetPack 6) is the oldest that works"
        )

    def test_one_that_works(self, installed: Path) -> None:
        package(installed, "tensorrt", "__version__ = '10.3.0'")
        assert load_tensorrt(STOCK).__version__ == "10.3.0"

    def test_a_toolchain_that_does_not_exist(self) -> None:
        assert "choose tensorrt-rtx or tensorrt" in problem("tensorflow")


def fake_cuda(**answers: object) -> ModuleType:
    kinds = SimpleNamespace(
        cudaSuccess=0, cudaErrorInitializationError=3, cudaErrorInsufficientDriver=35,
        cudaErrorNoDevice=100,
    )  # fmt: skip
    properties = SimpleNamespace(
        name=b"Orin", major=8, minor=7, totalGlobalMem=8 << 30, integrated=1
    )
    module = ModuleType("runtime")
    module.__dict__.update({
        "cudaError_t": kinds, "cudaGetDeviceCount": lambda: (0, 1),
        "cudaGetDeviceProperties": lambda _: (0, properties),
        "cudaDriverGetVersion": lambda: (0, 12020), "cudaRuntimeGetVersion": lambda: (0, 13040),
        "cudaGetErrorString": lambda _: (0, b"unknown error"), **answers,
    })  # fmt: skip
    return module


def no_library() -> tuple[int, int]:
    """What cuda-python 12.6 does without a driver."""
    raise RuntimeError("Failed to dlopen libcuda.so.1")


class TestGpu:
    @pytest.mark.parametrize(
        ("answers", "words"),
        [
            ({"cudaGetDeviceCount": lambda: (35, None)},
             "the NVIDIA driver is too old: it knows CUDA 12.2, and cuda-python is made for 13.4"),
            ({"cudaGetDeviceCount": lambda: (35, None), "cudaDriverGetVersion": lambda: (0, 0)},
             "this machine has no NVIDIA driver"),
            ({"cudaGetDeviceCount": lambda: (100, None)}, "has no NVIDIA GPU that CUDA can use"),
            ({"cudaGetDeviceCount": lambda: (999, None)}, "CUDA cannot count the GPUs: unknown"),
            ({"cudaGetDeviceCount": no_library}, r"no NVIDIA driver.*libcuda\.so\.1"),
        ],
    )  # fmt: skip
    def test_none(
        self, answers: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hardware, "load_cuda_runtime", lambda: fake_cuda(**answers))
        with pytest.raises(EngineError, match=words):
            find_gpu()

    def test_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardware, "load_cuda_runtime", fake_cuda)
        gpu = find_gpu()
        assert str(gpu) == "Orin (sm87)"
        assert (gpu.memory_bytes, gpu.unified) == (8 << 30, True)

    def test_without_cuda_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> ModuleType:
            raise ModuleNotFoundError(name=name)

        monkeypatch.setattr(hardware.importlib, "import_module", missing)
        with pytest.raises(EngineError, match="cuda-python is not installed: pip install"):
            find_gpu()
