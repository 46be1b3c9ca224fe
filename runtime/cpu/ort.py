"""ONNX Runtime, set up once for the process: one thread pool and one allocator for all sessions."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BundleError, EngineError, how_to_add
from .installed import find_onnxruntime

find_onnxruntime()
try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as native
except ImportError as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
        raise EngineError(
            f"this needs ONNX Runtime, which is not installed: {how_to_add('cpu')}; for NVIDIA "
            "GPUs the extra cuda, but not both"
        ) from error
    raise EngineError(f"ONNX Runtime cannot be loaded ({error}); install it again") from error

_log = logging.getLogger(__name__)
_ERRORS_ONLY = 3
_SAME_AS_REQUESTED = 1  # the arena grows by what is asked for, not in powers of two
_LOAD_ERRORS = (
    native.Fail, native.InvalidArgument, native.InvalidGraph, native.InvalidProtobuf,
    native.NoModel, native.NoSuchFile, native.NotImplemented, native.RuntimeException,
)  # fmt: skip

# Until 1.23, GroupQueryAttention saw one position more than its local_window_size.
_WIDE_WINDOW = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 24)
_WINDOW = re.compile(rb"local_window_size\x18([\x80-\xff]*[\x00-\x7f])")  # then an int, as varint

_threads = 0


def version() -> str:
    return str(onnxruntime.__version__)


def set_up(threads: int) -> int:
    """Makes the pool and the allocator, the first time; returns the threads of the pool.

    ONNX Runtime cannot change either later: a second call keeps what the first one made.
    """
    global _threads
    if _threads == 0:
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
        try:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
        except native.Fail:
            _log.warning("another user of ONNX Runtime made its thread pool; it stays as it is")
        memory = native.OrtMemoryInfo(
            "Cpu", native.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, native.OrtMemType.DEFAULT
        )
        arena = native.OrtArenaCfg(0, _SAME_AS_REQUESTED, -1, -1)
        onnxruntime.create_and_register_allocator(memory, arena)
        _threads = threads
    elif threads != _threads:
        _log.warning("threads stay %d: this process has made its thread pool already", _threads)
    return _threads


def load_session(model: Path | bytes, where: Path) -> onnxruntime.InferenceSession:
    """A CPU session on the shared pool and allocator; `where` names it in errors.

    Raises:
        BundleError: ONNX Runtime does not accept the graph.
    """
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.use_env_allocators", "1")
    source = model if isinstance(model, bytes) else str(model)
    if _WIDE_WINDOW and isinstance(model, bytes):
        source = narrow_windows(model, where)
    elif _WIDE_WINDOW and isinstance(model, Path):
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(model.parent))
        try:
            source = narrow_windows(model.read_bytes(), where)
        except OSError as error:
            raise BundleError(f"{where} cannot be read ({error.strerror})") from error
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{where} cannot be loaded ({reason}); compile the bundle again"
        ) from error


def narrow_windows(model: bytes, where: Path) -> bytes:
    """The serialized graph with each local_window_size one less, in as many bytes.

    Raises:
        BundleError: a window of one position, which would become none.
    """

    def narrower(match: re.Match[bytes]) -> bytes:
        digits = match[1]
        value = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(digits))
        if len(digits) > 4:  # negative: no window
            return match[0]
        if value == 1:
            raise BundleError(f"{where} has a window of 1 position; update onnxruntime to run it")
        last = len(digits) - 1
        patched = bytes(
            ((value - 1) >> (7 * place)) & 0x7F | (0x80 if place < last else 0)
            for place in range(len(digits))
        )
        return match[0][: -len(digits)] + patched

    return _WINDOW.sub(narrower, model)


class Binding:
    """The inputs and outputs of a session, bound to numpy arrays that their owner keeps alive."""

    def __init__(self, session: onnxruntime.InferenceSession):
        self._session = session
        self._io = session.io_binding()
        self.inputs = {item.name: item for item in session.get_inputs()}
        self.outputs = {item.name: item for item in session.get_outputs()}

    def input(self, name: str, array: np.ndarray) -> None:
        self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def raw_input(self, name: str, element: Any, shape: tuple[int, ...], address: int) -> None:
        """Binds memory at `address`; element is a numpy scalar type."""
        self._io.bind_input(name, "cpu", 0, element, shape, address)

    def output(self, name: str, array: np.ndarray) -> None:
        self._io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._io)
