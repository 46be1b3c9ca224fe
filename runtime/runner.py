"""The runner of a model's tokens, on the host or on a GPU: what each has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..bundle.pages import ExpertKey
from ..model.spec import ModelSpec
from .memory.budget import MemoryPlan
from .paging.pager import Pager

Observer = Callable[[int, dict[str, np.ndarray]], None]


@dataclass(frozen=True)
class Engines:
    """What computes, in words: see Stats. backbone_bytes: its weights, where they are loaded to.

    backend: one of opening.BACKENDS but "auto"; reason: why it and no other. device: the GPU's
    name, empty on the host.
    """

    experts: str
    backbone: str
    backbone_bytes: int
    backend: str = "cpu"
    reason: str = ""
    device: str = ""


@dataclass(frozen=True)
class DeviceFigures:
    """Of pages in GPU memory, so far. page_requests, page_hits: what was asked for, and was there.
    link_bytes: that were copied there. memory: bytes of the GPU that the session has taken."""

    page_requests: int = 0
    page_hits: int = 0
    link_bytes: int = 0
    slots: int = 0
    memory: int = 0


class Cancelled(Exception):
    """A call was given up between two batches, as its caller wished; what they saw stays seen."""


class Cache(Protocol):
    """What one sequence has seen, where the runner keeps it: `position` tokens."""

    position: int

    def reset(self) -> None:
        """Forgets what it has seen."""
        ...

    def rewind(self, position: int) -> int:
        """Forgets what comes from `position` on, or all of it where what `position` sees is no
        longer there; returns how many tokens it has seen now."""
        ...


@dataclass(frozen=True, eq=False)
class BatchPart:
    """Tokens of one sequence in a batch.

    ids: int64 `[T]`, one or more, which follow what `cache` has seen. logits: float32 `[R, V]`, to
    be filled for the last R of them, one or more. length: tokens seen at the end of the call that
    this is part of.
    """

    cache: Cache
    ids: np.ndarray
    logits: np.ndarray
    length: int


class Runner(Protocol):
    """Runs tokens through all layers, batch by batch.

    pager: whose pages it computes with, or copies to the device. accuracy: of the guesses of what
    the next layer wants, None where there are none. usage: int64 `[layers, experts]`, how many
    tokens went to each so far. joins: whether a batch may have several parts.
    """

    pager: Pager
    engines: Engines
    usage: np.ndarray
    joins: bool

    @property
    def accuracy(self) -> float | None: ...

    @property
    def figures(self) -> DeviceFigures: ...

    def open_cache(self, context: int) -> Cache:
        """For another sequence.

        Raises:
            BudgetError: there is no memory for it, where that is known only now.
        """
        ...

    def close_cache(self, cache: Cache) -> None:
        """Gives its memory back; no batch is under way."""
        ...

    def take_caches(self, plan: MemoryPlan, contexts: Sequence[int]) -> MemoryPlan:
        """The plan with what caches of these contexts take."""
        ...

    def run_batch(self, parts: Sequence[BatchPart], observe: Observer | None = None) -> None:
        """Runs the tokens of several sequences, at most a batch in all. What each gives does not
        depend on the others. After an error none of them are seen. observe: with one part alone.
        """
        ...

    def resident(self) -> frozenset[ExpertKey]:
        """Experts whose pages are in memory. From any thread."""
        ...

    def follow(self, plan: MemoryPlan) -> None:
        """Takes another memory plan; no batch is under way."""
        ...

    def close(self) -> None: ...


def count_usage(spec: ModelSpec) -> np.ndarray:
    """Zeros for `Runner.usage`."""
    experts = [layer.router.num_experts for layer in spec.layers if layer.router is not None]
    return np.zeros((len(spec.layers), max(experts, default=0)), np.int64)
