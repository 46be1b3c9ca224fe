"""Ctrl-C at any step of a session: it is heard soon, and nothing is left half done."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe import runtime
from pocketmoe.errors import InputError
from pocketmoe.runtime.cpu import loading
from pocketmoe.runtime.memory import budget
from pocketmoe.runtime.session import Session
from pocketmoe.tests.support.session_runs import TOKENS
from pocketmoe.tests.support.waiting import PATIENCE

RUNTIME = str(Path(runtime.__file__).parent)
SLOTS = 5


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.fixture
def session(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Of few slots, so that pages leave; in batches of 16 tokens."""
    plan = loading.plan_memory

    def few_slots(*args: Any, **kwargs: Any) -> budget.MemoryPlan:
        return dataclasses.replace(plan(*args, **kwargs), slots=SLOTS)

    monkeypatch.setattr(loading, "plan_memory", few_slots)
    monkeypatch.setattr(budget, "BATCH", 16)
    with pocketmoe.open(tiny_bundle) as session:
        yield session


def interrupt_at(step: int, act: Callable[[], object]) -> bool:
    """Ctrl-C comes before the line with this number that the runtime executes. Whether there are so
    many; it was raised then."""
    left = step

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(RUNTIME):
            return None
        left -= event == "line"
        if left == 0 and event == "line":
            signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    assert left > 0, "the interrupt was lost"
    return False


def some_lines(act: Callable[[], object], count: int) -> list[int]:
    """Numbers of about so many of the lines that the runtime executes, from the first to the last.
    How many there are differs a little from time to time, as pages come when they come."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(RUNTIME):
            return None
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    assert lines > count
    return np.linspace(1, lines, count, dtype=int).tolist()


def decode(session: Session) -> bytes:
    session.reset()
    parts = [session.forward(TOKENS[:40])]
    parts += [session.forward([token]) for token in TOKENS[40:46]]
    return np.concatenate(parts).tobytes()


def test_at_any_step_of_a_call_nothing_is_lost(session: Session) -> None:
    expected, pager = decode(session), session.model.runner.pager
    session.rewind(20)

    def act() -> None:
        session.rewind(20)
        session.forward(TOKENS[20:38])

    for step in some_lines(act, 30):
        if interrupt_at(step, act):
            assert session.position in (20, 36, 38)
            assert session.seen == tuple(TOKENS[: session.position])
            assert len(pager._resident) + len(pager._loading) + len(pager._free) == SLOTS
    assert decode(session) == expected


def test_at_any_step_of_opening_and_closing_a_second_session(session: Session) -> None:
    expected = decode(session)

    def act() -> None:
        with session.another(100) as other:
            other.forward(TOKENS[:1])

    for step in some_lines(act, 20):
        interrupt_at(step, act)
        assert session.model.sessions == 1
    assert decode(session) == expected


def test_at_any_step_of_a_new_budget(session: Session) -> None:
    expected, plan = decode(session), session.plan
    sizes = [plan.least + 3 * plan.page, plan.least + 9 * plan.page]

    def act() -> None:
        for size in sizes:
            session.set_memory_budget(size)

    for step in some_lines(act, 30):
        interrupt_at(step, act)
        assert session.plan.budget in (*sizes, plan.budget)
    act()
    pager = session.model.runner.pager
    assert pager.slots == session.plan.slots
    assert decode(session) == expected


def test_a_prompt_stops_between_two_layers(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    pager = session.model.runner.pager
    visits: list[int] = []
    visit = pager.visit

    def interrupted(layer: int, *args: Any, **kwargs: Any) -> Any:
        visits.append(layer)
        signal.raise_signal(signal.SIGINT)
        return visit(layer, *args, **kwargs)

    monkeypatch.setattr(pager, "visit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.forward(TOKENS)
    assert visits == [session.manifest.experts[0].layer]
    assert session.position == 0


def test_a_program_that_only_takes_note_goes_on(session: Session) -> None:
    expected = decode(session)
    told: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: told.append(number))

    def observe(index: int, outputs: dict[str, np.ndarray]) -> None:
        if index == 0:
            signal.raise_signal(signal.SIGINT)

    session.forward(TOKENS[:10], observe=observe)
    assert session.position == 56
    assert told == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert decode(session) == expected


def test_waiting_for_others_can_be_interrupted(session: Session) -> None:
    """Another thread's batch runs for long; the main thread does not wait for its end."""
    begun, go_on = threading.Event(), threading.Event()

    def observe(index: int, outputs: dict[str, np.ndarray]) -> None:
        begun.set()
        go_on.wait(60)

    with session.another(100) as other:
        thread = threading.Thread(target=lambda: other.forward([1, 2], observe=observe))
        thread.start()
        assert begun.wait(60)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        threading.Timer(0.6, go_on.set).start()
        started = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            session.forward([1, 2])
        assert time.perf_counter() - started < 30
        thread.join(PATIENCE)
        with pytest.raises(InputError, match="empty"):
            session.forward([])
        session.forward([1, 2])
