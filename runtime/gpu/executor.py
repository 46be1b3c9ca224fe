"""The interface of what runs a GPU graph, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ...bundle.gpu_graphs import TensorInfo
from ...errors import BundleError
from .device import Stream

DECODE, PROMPT = 0, 1  # profiles of a segment: one token, or up to a chunk; others have the first


class Executor(Protocol):
    """A graph over memory whose addresses are bound before each run, and stay bound."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]: ...

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """An input or an output, on the device, in an order of dimensions as they lie."""
        ...

    def run(self, stream: Stream, profile: int = DECODE) -> None:
        """Gives the work to the stream. The bindings may be changed at once; their memory not.

        Raises:
            EngineError: it does not run.
        """
        ...

    def close(self) -> None: ...


class Loader(Protocol):
    """Loads the graphs of a bundle for one backend.

    grows: whether runs may take device memory that loading did not.
    """

    @property
    def grows(self) -> bool: ...

    def load(self, graph: str) -> Executor:
        """graph: its file in the bundle.

        Raises:
            BundleError: it cannot be read, or is not accepted.
            EngineError: it cannot be run here; DeviceMemoryError where memory is too small.
        """
        ...

    def ready(self) -> None:
        """All graphs are loaded: takes the device memory that runs need, as far as it is known."""
        ...

    def close(self) -> None:
        """Once its executors are closed."""
        ...


def check_names(
    executor: Executor, where: Path, inputs: set[str], outputs: set[str], optional: set[str]
) -> None:
    """optional: inputs and outputs that it may have or not.

    Raises:
        BundleError: it has others.
    """
    for kind, has, known in (
        ("input", set(executor.inputs), inputs),
        ("output", set(executor.outputs), outputs),
    ):
        if unknown := has - known - optional:
            raise BundleError(f"{where} has an unknown {kind} {min(unknown)}; update pocketmoe")
        if missing := known - has:
            raise BundleError(f"{where} has no {kind} {min(missing)}; compile the bundle again")
