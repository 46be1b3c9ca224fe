"""What runs a session's tokens: on the host, or on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .budget import MemoryPlan
from .pager import Pager

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


class Runner(Protocol):
    """Runs tokens through all layers, batch by batch.

    position: tokens seen. pager: whose pages it computes with, or copies to the device. accuracy:
    of the guesses of what the next layer wants, None where there are none.
    """

    pager: Pager
    engines: Engines

    @property
    def position(self) -> int: ...

    @property
    def accuracy(self) -> float | None: ...

    @property
    def figures(self) -> DeviceFigures: ...

    def run_batch(
        self, ids: np.ndarray, logits: np.ndarray, length: int, observe: Observer | None
    ) -> None:
        """Runs int64 `[T]` tokens, T at most a batch, that follow what was seen; fills `logits`,
        float32 `[R, V]`, for the last R of them. length: tokens seen at the end of the call that
        this batch is part of. After an error they are not seen.
        """
        ...

    def reset(self) -> None:
        """Forgets what it has seen."""
        ...

    def rewind(self, position: int) -> bool:
        """Forgets what came after `position` tokens; False, and nothing is done, where that is not
        possible any more."""
        ...

    def follow(self, plan: MemoryPlan) -> None:
        """Takes another memory plan; no batch is under way."""
        ...

    def close(self) -> None: ...
