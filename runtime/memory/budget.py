"""The memory budget: the whole process in it, what is left of it to the page cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import BudgetError, InputError
from ...numeric import is_integer
from ...sizes import format_size, parse_size
from .host_memory import read_host_memory

MIB = 1 << 20
AUTO = "auto"  # as a budget
# Tokens that a graph gets at once, and tokens that go through a layer together, so that a page is
# read once for all of them. The same figures for every budget: others would round differently, and
# paged output has to be the resident output to the byte.
CHUNK = 128
BATCH = 512
_MARGIN_BYTES = 4 * MIB  # by which a process may start larger the next time


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory of a model goes, in bytes by purpose.

    Attributes:
        budget: the memory budget; None for no limit.
        process: interpreter, libraries and sessions.
        backbone: weights that stay in memory.
        kv: keys and values of all sessions.
        workspace: what computing one batch needs.
        chunk: tokens that a graph gets at once.
        batch: tokens that go through a layer together.
        slots: pages in the cache.
        page: bytes of a page, on average where they differ.
        fewest: slots that it cannot do without.
        auto: whether the budget was made of what the machine has free.
        predictor: bytes that guessing the next pages needs.
        predicts: whether they are guessed.
        grammars: what grammars take together, once there has been one.
    """

    budget: int | None
    process: int
    backbone: int
    kv: int
    workspace: int
    chunk: int
    batch: int
    slots: int
    page: int
    fewest: int
    auto: bool = False
    predictor: int = 0
    predicts: bool = False
    grammars: int = 0

    @property
    def fixed(self) -> int:
        """All but the pages."""
        guess = self.predictor if self.predicts else 0
        return self.process + self.backbone + self.kv + self.workspace + self.grammars + guess

    @property
    def total(self) -> int:
        """All of it."""
        return self.fixed + self.slots * self.page

    @property
    def smallest(self) -> int:
        """The smallest budget, in whole MiB; a process that starts a little larger fits too."""
        return _whole_mib(self.least + _MARGIN_BYTES)

    @property
    def least(self) -> int:
        """The smallest budget for this very process."""
        return replace(self, predicts=False).fixed + self.fewest * self.page


def read_budget(budget: object, what: str = "memory budget") -> int | None:
    """Bytes of a budget as a caller gives it; "auto" is what the machine has free. what: its name
    in errors.

    Raises:
        InputError: it is no positive size, or "auto" where the machine does not say.
    """
    if budget == AUTO:
        return read_host_memory().budget
    if isinstance(budget, str):
        return parse_size(budget)
    if budget is None:
        return None
    if not is_integer(budget):
        raise InputError(f"{what} must be a number of bytes, or text like '2GiB', not {budget!r}")
    if budget < 1:
        raise InputError(f"{what} must be more than 0 bytes, not {budget}")
    return int(budget)


def fit_budget(
    plan: MemoryPlan,
    budget: int | None,
    *,
    num_pages: int,
    context: int,
    name: str,
    auto: bool = False,
    what: str = "memory budget",
    sessions: int = 1,
    running: bool = False,
) -> MemoryPlan:
    """The plan with as many cached pages as another budget leaves room for; None: all of them.

    context: tokens of all sessions. what: the budget's name in errors. running: it is for this very
    process, so the smallest that an error names needs no margin.

    Raises:
        BudgetError: see plan_memory.
    """
    plan = replace(plan, budget=budget, auto=auto, predicts=False, slots=num_pages)
    if budget is None:
        return plan
    if budget < plan.least:
        one = sessions == 1
        smallest = _whole_mib(plan.least) if running else plan.smallest
        grammars = " and grammars" if plan.grammars else ""
        raise BudgetError(
            f"{what} {format_size(budget)} is too small for {name}{grammars} with "
            + (f"a context of {context} tokens" if one
               else f"{sessions} sessions of {context} tokens of context in all")
            + f"; the smallest that works is {smallest // MIB}MiB "
            + ("(a shorter context needs less)" if one
               else "(fewer sessions, or shorter contexts, need less)")
        )  # fmt: skip
    slots = (budget - plan.fixed) // plan.page if plan.page else 0
    if slots < num_pages and 0 < plan.predictor <= (slots - plan.fewest) * plan.page:
        plan = replace(plan, predicts=True)
        slots = (budget - plan.fixed) // plan.page
    return replace(plan, slots=min(num_pages, slots))


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB
