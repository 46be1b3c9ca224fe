"""CUDA graphs by hand: one launch for all kernels of a segment while its bindings stay."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ...errors import EngineError
from .device import Stream

_log = logging.getLogger(__name__)
_said = False


class GraphCapture:
    """Keeps the graph of the latest bindings.

    After a change the work runs as it is, since TensorRT sets up what it needs then; what runs a
    second time is captured. Where that fails, it is said once, and everything runs as it is.
    """

    def __init__(self, runtime: Any):
        self._runtime = runtime
        self._graph: Any = None
        self._fresh = True
        self._works = True

    def run(self, stream: Stream, enqueue: Callable[[], None], *, fresh: bool) -> None:
        """fresh: something was bound anew."""
        if fresh:
            self.free()
            self._fresh = True
        if not self._works or self._fresh:
            self._fresh = False
            enqueue()
            return
        if self._graph is None:
            self._graph = self._record(stream, enqueue)
        if self._graph is None:
            enqueue()
        else:
            self._check(self._runtime.cudaGraphLaunch(self._graph, stream.handle))

    def _record(self, stream: Stream, enqueue: Callable[[], None]) -> Any:
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        failure = ""
        try:
            self._check(runtime.cudaStreamBeginCapture(stream.handle, mode))
            try:
                enqueue()
            except EngineError as error:
                failure = str(error)
            recorded = self._check(runtime.cudaStreamEndCapture(stream.handle))
            if not failure:
                graph = self._check(runtime.cudaGraphInstantiate(recorded, 0))
                runtime.cudaGraphDestroy(recorded)
                return graph
        except EngineError as error:
            failure = failure or str(error)
        self._works = False
        runtime.cudaGetLastError()  # or the next call would say it again
        _say(failure)
        return None

    def _check(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if status != self._runtime.cudaError_t.cudaSuccess:
            _, name = self._runtime.cudaGetErrorName(status)
            text = name.decode() if isinstance(name, bytes) else str(name)
            raise EngineError(f"a CUDA graph failed: {text}")
        return values[0] if values else None

    def free(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._runtime.cudaGraphExecDestroy(graph)


def _say(reason: str) -> None:
    global _said
    if not _said:
        _said = True
        _log.warning("segments run without CUDA graphs, slower: %s", reason)
