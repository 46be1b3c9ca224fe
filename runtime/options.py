"""The options of opening a bundle, stated once for Python, the command line and the server."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..cpus import cpu_count
from ..errors import InputError
from ..numeric import is_integer
from .memory.budget import AUTO, read_budget
from .recording.files import PathLike

BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")

Options = ParamSpec("Options")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a bundle is to be opened.

    Attributes:
        memory_budget: bytes, or text like "2GiB", for the whole process; "auto" takes what the
            machine has free. None keeps all experts in memory, or the budget of the model that is
            open. A GPU with a memory of its own has `gpu_memory` and `host_memory` instead.
        threads: threads that compute; by default as many as the process may use CPUs.
        context: the most tokens that the session can see; by default 4096, or what the model can
            see if that is less.
        verify_pages: check the hashes of graphs and backbone now, and that of each page when it is
            first read.
        kernels: what computes on a CPU: "native", "onnxruntime", or "auto", native where it can.
            Segments of the backbone that the native kernels do not know run in ONNX Runtime: see
            `Stats.backbone_engine`.
        prefetch: whether pages that the next layer may want are read early: "on", "off", or "auto",
            while most guesses are right.
        active_experts: lossy: use only so many of a token's experts, the strongest.
        skip_cold: lossy: leave out an expert that is not in the cache where its weight is below
            this share of an even split.
        record_routes: a file to make when the session is closed: which experts each token went to,
            for `pocketmoe replay`.
        trace: a file to make when the session is closed: what happened when, for chrome://tracing.
        backend: what runs the layers: "tensorrt", "tensorrt-rtx", "cuda" (ONNX Runtime), "cpu", or
            "auto", the best of them that works. Which one and why is logged, and in the stats.
        gpu_memory: bytes, or text, on the GPU; None or "auto" for what is free there.
        host_memory: with such a GPU, for the process on the host; None or "auto" for what is free.

    Raises:
        InputError: one is wrong, whatever the bundle; the rest is checked as it is opened.
    """

    memory_budget: int | str | None = None
    threads: int | None = None
    context: int | None = None
    verify_pages: bool = True
    kernels: str = "auto"
    prefetch: str = "auto"
    active_experts: int | None = None
    skip_cold: float = 0.0
    record_routes: PathLike | None = None
    trace: PathLike | None = None
    backend: str = "auto"
    gpu_memory: int | str | None = None
    host_memory: int | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.verify_pages, bool):
            raise InputError(f"verify_pages must be True or False, not {self.verify_pages!r}")
        for name, size in (
            ("memory budget", self.memory_budget),
            ("GPU memory", self.gpu_memory),
            ("host memory", self.host_memory),
        ):
            if size != AUTO:
                read_budget(size, name)
        _check_threads(self.threads)
        if self.backend not in BACKENDS:
            raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend}")
        if self.kernels != "auto" and self.backend not in ("auto", "cpu"):
            raise InputError(
                f"kernels have no effect with the backend {self.backend}; use backend 'cpu'"
            )

    @property
    def cpu_threads(self) -> int:
        """All CPUs that the process may use, unless it was told."""
        return cpu_count() if self.threads is None else int(self.threads)

    @property
    def makes_files(self) -> bool:
        return self.record_routes is not None or self.trace is not None

    @property
    def of_model(self) -> OpenOptions:
        """Those in which sessions that share a model are alike. A budget is of all of them, and
        each session has a context of its own."""
        return replace(
            self, memory_budget=None, context=None, threads=self.cpu_threads,
            gpu_memory=_none_for_auto(self.gpu_memory),
            host_memory=_none_for_auto(self.host_memory),
        )  # fmt: skip


def _check_threads(threads: object) -> None:
    if threads is None:
        return
    if not is_integer(threads) or threads < 1:
        raise InputError(f"threads must be a whole number, 1 or more, not {threads!r}")


def _none_for_auto(size: int | str | None) -> int | str | None:
    return None if size == AUTO else size


def one_by_one(
    options: Callable[Options, OpenOptions],
) -> Callable[
    [Callable[[PathLike, OpenOptions], Result]], Callable[Concatenate[PathLike, Options], Result]
]:
    """Makes a function that takes OpenOptions take them one by one, by name, as `pocketmoe.open`
    does: so that their names, types and defaults stand in OpenOptions alone."""

    def decorate(
        function: Callable[[PathLike, OpenOptions], Result],
    ) -> Callable[Concatenate[PathLike, Options], Result]:
        def taking(path: PathLike, *args: Options.args, **kwargs: Options.kwargs) -> Result:
            signature.bind(path, *args, **kwargs)  # else an error would name OpenOptions
            return function(path, options(*args, **kwargs))

        signature = _sign(taking, function, options)
        return taking

    return decorate


def _sign(
    taking: Any, function: Callable[..., Any], options: Callable[..., Any]
) -> inspect.Signature:
    """Gives it the name of the function and the parameters of the options, for help() and for
    documentation; returns its signature."""
    taking.__name__, taking.__qualname__ = function.__name__, function.__qualname__
    taking.__module__, taking.__doc__ = function.__module__, function.__doc__
    signature = inspect.signature(function)
    path = next(iter(signature.parameters.values()))
    parameters = [path, *inspect.signature(options).parameters.values()]
    signature = signature.replace(parameters=parameters)
    taking.__signature__ = signature
    taking.__annotations__ = {item.name: item.annotation for item in parameters}
    taking.__annotations__["return"] = signature.return_annotation
    return signature
