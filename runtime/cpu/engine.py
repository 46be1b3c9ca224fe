"""The contract of what computes routed experts on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from ..paging.pager import Loaded
from ..routing import Routing

# Told whether they must come in the order of the experts, it gives lists of experts and their
# pages: all of a routing, each once. A list's pages are valid until the next is asked for.
PageSource = Callable[[bool], Iterator[list[Loaded]]]


class ExpertEngine(Protocol):
    """Computes experts from their pages: down(activation(gate(x), up(x))), each projection with
    its bias where the page has one."""

    def add(self, out: np.ndarray, x: np.ndarray, routing: Routing, pages: PageSource) -> None:
        """out[tokens] += weights · expert(x[tokens]) for each expert; out, x: float32
        `[T, hidden_size]`.

        A token's terms are added in ascending order of experts, whatever is in the cache: so the
        sums have the same rounding, paged or not.
        """
        ...
