"""Device graphs in ONNX Runtime: its CUDA provider, or its CPU provider on a HostDevice."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from ...bundle.gpu_graphs import TensorInfo, plain_file
from ...errors import BundleError, EngineError
from ..cpu.ort import load_session, set_up
from .device import Device, Stream
from .errors import DeviceMemoryError
from .executor import DECODE, PROMPT

CUDA_PROVIDER = "CUDAExecutionProvider"
_log = logging.getLogger(__name__)
_ERRORS_ONLY = 3
_FAILURES = (
    native.EPFail, native.Fail, native.InvalidArgument, native.InvalidGraph,
    native.InvalidProtobuf, native.NoModel, native.NoSuchFile, native.NotImplemented,
    native.RuntimeException,
)  # fmt: skip
_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(int4)": "int4",
    "tensor(float8e4m3fn)": "fp8",
}  # fmt: skip
# How a tensor's elements are named when it is bound: a numpy type, or where numpy has none the
# number of ONNX's TensorProto.DataType.
_ELEMENTS: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8,
    "uint8": np.uint8, "int4": 22, "fp8": 17,
}  # fmt: skip


class OnnxLoader:
    """On the CPU where the device is the host; else on the GPU and `stream`."""

    grows = True

    def __init__(
        self,
        root: Path,
        device: Device,
        stream: Stream,
        threads: int,
        plain: Collection[str] = (),
    ):
        """threads: of the CPU provider. plain: graphs in whose place their plain files are loaded.

        Raises:
            EngineError: this ONNX Runtime has no CUDA provider.
        """
        self._root = root
        self._cuda = bool(stream.handle)
        self._threads = set_up(threads)
        self._device = device
        self._stream = stream
        self._plain = plain
        if self._cuda:
            check_cuda_provider()
            _find_libraries()

    def load(self, graph: str) -> OnnxExecutor:
        path = self._root / (plain_file(graph) if graph in self._plain else graph)
        if not self._cuda:
            return OnnxExecutor(load_session(path, path), "cpu", path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.enable_mem_pattern = False
        provider = {
            "device_id": "0",
            "user_compute_stream": str(self._stream.handle),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=[(CUDA_PROVIDER, provider), "CPUExecutionProvider"],
                enable_fallback=0,  # which prints, and goes on with the CPU's
            )  # fmt: skip
        except _FAILURES as error:
            self._raise_if_memory(error)
            raise BundleError(
                f"{path} cannot be loaded ({_one_line(error)}); compile the bundle again"
            ) from error
        if CUDA_PROVIDER not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime {onnxruntime.__version__} could not start its CUDA provider; it "
                "wants the CUDA and cuDNN libraries that its release notes name: pip install "
                "'onnxruntime-gpu[cuda,cudnn]'"
            )
        return OnnxExecutor(session, "cuda", path, self._raise_if_memory)

    def _raise_if_memory(self, error: Exception) -> None:
        text = str(error)
        if "out of memory" in text.lower() or "Failed to allocate memory" in text:
            raise DeviceMemoryError(0, self._device.memory()[0]) from error

    def ready(self) -> None:
        pass

    def close(self) -> None:
        pass


class OnnxExecutor:
    """A session whose bindings are noted here, and handed to it when it runs."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        kind: str,
        where: Path,
        examine: Any = lambda error: None,
    ):
        self.inputs = {item.name: _info(item, where) for item in session.get_inputs()}
        self.outputs = {item.name: _info(item, where) for item in session.get_outputs()}
        self._session: Any = session
        self._kind = kind
        self._where = where
        self._examine = examine
        self._io: Any = session.io_binding()
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._changed: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._options = [onnxruntime.RunOptions() for _ in (DECODE, PROMPT)]
        if kind == "cuda":
            for options in self._options:  # who gave the stream waits for it where he has to
                options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            # A session keeps what its largest run took: for a prompt, times the number of segments.
            self._options[PROMPT].add_run_config_entry(
                "memory.enable_memory_arena_shrinkage", "gpu:0"
            )

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        place = (address, shape)
        if self._bound.get(name) != place:
            self._bound[name] = self._changed[name] = place

    def run(self, stream: Stream, profile: int = DECODE) -> None:
        changed = dict(self._changed)
        if self._kind == "cpu":
            stream.call(lambda: self._run(changed, profile))
        else:
            self._run(changed, profile)
        self._changed.clear()

    def _run(self, changed: dict[str, tuple[int, tuple[int, ...]]], profile: int) -> None:
        for name, (address, shape) in changed.items():
            if name in self.inputs:
                element = _ELEMENTS[self.inputs[name].dtype]
                self._io.bind_input(name, self._kind, 0, element, shape, address)
            else:
                element = _ELEMENTS[self.outputs[name].dtype]
                self._io.bind_output(name, self._kind, 0, element, shape, address)
        try:
            self._session.run_with_iobinding(self._io, self._options[profile])
        except _FAILURES as error:
            self._examine(error)
            raise EngineError(f"{self._where} does not run ({_one_line(error)})") from error

    def close(self) -> None:
        """Gives back the session's memory too, whoever still holds this. May be called twice."""
        self._io = self._session = None
        self._bound.clear()


def check_cuda_provider() -> None:
    """Raises EngineError where this ONNX Runtime has no CUDA provider."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} as installed has no CUDA provider: pip "
            "uninstall onnxruntime, then pip install 'pocketmoe[cuda]' (the two are one module, "
            "and cannot be installed side by side)"
        )


def _find_libraries() -> None:
    """Loads CUDA and cuDNN where they were installed as packages. What it cannot load it prints,
    which is a session's error later."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        preload()
    if said.getvalue():
        _log.debug("%s", said.getvalue().strip())


def _info(item: Any, where: Path) -> TensorInfo:
    dtype = _DTYPES.get(item.type)
    if dtype is None:
        raise BundleError(f"{where} has {item.name} of type {item.type}; update pocketmoe")
    shape = tuple(size if isinstance(size, int) else -1 for size in item.shape)
    return TensorInfo(item.name, dtype, shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
