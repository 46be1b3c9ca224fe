"""Sessions with a chosen number of slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pocketmoe.runtime.cpu import loading
from pocketmoe.runtime.memory.budget import MemoryPlan


@pytest.fixture
def with_slots(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes sessions that are opened from now on cache so many pages."""
    plan = loading.plan_memory

    def choose(slots: int) -> None:
        def planned(*args: Any, **kwargs: Any) -> MemoryPlan:
            return dataclasses.replace(plan(*args, **kwargs), slots=slots)

        monkeypatch.setattr(loading, "plan_memory", planned)

    return choose
