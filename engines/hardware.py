"""The GPU that is here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from ..bundle.gpu_graphs import capability_name
from ..errors import EngineError

_INSTALL = (
    "pip install 'pocketmoe[tensorrt-rtx]' (on a Jetson 'pocketmoe[tensorrt]', for ONNX Runtime "
    "'pocketmoe[cuda]')"
)


class CudaPythonError(EngineError):
    """cuda-python is missing or does not load. problem: without what to install."""

    def __init__(self, problem: str):
        self.problem = problem
        super().__init__(f"{problem}: {_INSTALL}")


_NO_DRIVER = "this machine has no NVIDIA driver, or no GPU for it; see that nvidia-smi runs"


@dataclass(frozen=True)
class Gpu:
    """compute_capability: as "8.9". memory_bytes: all of it. unified: it is the host's memory."""

    name: str
    compute_capability: str
    memory_bytes: int
    unified: bool

    def __str__(self) -> str:
        return f"{self.name} ({capability_name(self.compute_capability)})"


def find_gpu(index: int = 0) -> Gpu:
    """The GPU with this number.

    Raises:
        EngineError: cuda-python is not installed, there is no GPU, or its driver is missing or
            too old.
    """
    cuda = start_cuda(index)
    error, found = cuda.cudaGetDeviceProperties(index)
    _check(cuda, error, "ask for the GPU's properties")
    return Gpu(
        name=found.name.decode("utf-8", "replace").rstrip("\0"),
        compute_capability=f"{found.major}.{found.minor}",
        memory_bytes=found.totalGlobalMem,
        unified=bool(found.integrated),
    )


def start_cuda(index: int = 0) -> ModuleType:
    """The module `cuda.bindings.runtime`, with a driver and a GPU of this number behind it.

    Raises:
        EngineError: see find_gpu.
    """
    cuda = load_cuda_runtime()
    try:
        error, count = cuda.cudaGetDeviceCount()
    except RuntimeError as failure:  # older releases of cuda-python, where there is no libcuda.so
        raise EngineError(f"{_NO_DRIVER} ({failure})") from failure
    kinds = cuda.cudaError_t
    if error in (kinds.cudaErrorInsufficientDriver, kinds.cudaErrorInitializationError):
        raise EngineError(_driver_problem(cuda))
    if error == kinds.cudaErrorNoDevice or (error == kinds.cudaSuccess and count <= index):
        raise EngineError("this machine has no NVIDIA GPU that CUDA can use")
    _check(cuda, error, "count the GPUs")
    return cuda


def load_cuda_runtime() -> ModuleType:
    """The module `cuda.bindings.runtime` of cuda-python; raises EngineError where it is missing
    or does not load."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        raise CudaPythonError("cuda-python is not installed") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise CudaPythonError(f"cuda-python does not load ({error})") from error


def _driver_problem(cuda: ModuleType) -> str:
    """What is wrong with the driver: the version that it knows is 0 where there is none."""
    _, driver = cuda.cudaDriverGetVersion()
    if not driver:
        return _NO_DRIVER
    _, needed = cuda.cudaRuntimeGetVersion()
    return (
        f"the NVIDIA driver is too old: it knows CUDA {_version(driver)}, and cuda-python is made "
        f"for {_version(needed)}; update the driver, or install a cuda-python of CUDA "
        f"{driver // 1000}"
    )


def _version(number: int) -> str:
    """CUDA's 12060 as 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _check(cuda: ModuleType, error: object, what: str) -> None:
    if error != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(error)
        raise EngineError(f"CUDA cannot {what}: {text.decode('utf-8', 'replace')}")
