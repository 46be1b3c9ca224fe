"""Ctrl-C is put off, and then counts as the program wants it to."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from pocketmoe.signals import heed_interrupt, interrupts_deferred, unwinding_when_terminated
from pocketmoe.tests.support.waiting import PATIENCE


def interrupt(number: int = signal.SIGINT) -> None:
    signal.raise_signal(number)


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    """Python's own, before and after."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


class TestDeferring:
    def test_it_counts_at_the_end_of_the_block(self) -> None:
        done = []

        def work() -> None:
            with interrupts_deferred():
                interrupt()
                done.append(1)
                interrupt()  # a second one changes nothing
                done.append(2)
            done.append(3)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == [1, 2]

    def test_the_outermost_block_counts(self) -> None:
        done = []

        def work() -> None:
            with interrupts_deferred():
                with interrupts_deferred():
                    interrupt()
                done.append(1)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == [1]

    def test_it_is_heard_where_it_is_asked_for(self) -> None:
        done = []

        def work() -> None:
            with interrupts_deferred():
                heed_interrupt()
                interrupt()
                done.append(1)
                with interrupts_deferred():
                    heed_interrupt()
                done.append(2)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == [1]
        heed_interrupt()  # it was heard

    def test_an_error_of_the_block_is_its_context(self) -> None:
        def work() -> None:
            with interrupts_deferred():
                interrupt()
                raise ValueError("broken")

        with pytest.raises(KeyboardInterrupt) as caught:
            work()
        assert isinstance(caught.value.__context__, ValueError)

    def test_without_an_interrupt_errors_pass(self) -> None:
        with pytest.raises(ValueError, match="broken"), interrupts_deferred():
            raise ValueError("broken")

    def test_a_programs_own_handler_is_called_with_what_it_expects(self) -> None:
        told: list[tuple[int, str]] = []

        def handle(number: int, frame: FrameType | None) -> None:
            assert frame is not None
            told.append((number, frame.f_code.co_name))

        before = signal.signal(signal.SIGINT, handle)
        try:
            with interrupts_deferred():
                interrupt()
                assert told == []
            assert told == [(signal.SIGINT, "interrupt")]
            with interrupts_deferred():
                interrupt()
                heed_interrupt()
                assert len(told) == 2
            assert len(told) == 2
            assert signal.getsignal(signal.SIGINT) is handle
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_handler_that_the_block_has_set_stays(self) -> None:
        told: list[int] = []
        with interrupts_deferred():
            signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
        interrupt()
        assert told == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_where_no_function_handles_it_nothing_is_changed(self, handler: Any) -> None:
        before = signal.signal(signal.SIGINT, handler)
        try:
            with interrupts_deferred():
                assert signal.getsignal(signal.SIGINT) is handler
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)

    def test_in_another_thread_it_does_nothing(self) -> None:
        handlers = []

        def work() -> None:
            with interrupts_deferred():
                handlers.append(signal.getsignal(signal.SIGINT))
                heed_interrupt()

        with interrupts_deferred():
            interrupt()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            main = signal.getsignal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                heed_interrupt()  # which is the main thread's alone
        assert handlers == [main]

    def test_at_any_step_it_is_raised_once_and_never_within(self) -> None:
        """A tracer interrupts before the nth step of the interpreter, in the block and around."""
        code = """
import signal, sys
from pocketmoe import signals

def work(steps):
    steps.append("before")
    with signals.interrupts_deferred():
        steps.append("begun")
        with signals.interrupts_deferred():
            steps.append("inner")
        steps.append("ended")
    steps.append("after")

for count in range(10_000):
    left, heard, steps = count, 0, []
    def trace(frame, event, _):
        global left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace
    try:
        sys.settrace(trace)
        try:
            work(steps)
        finally:
            sys.settrace(None)
    except KeyboardInterrupt:
        heard = 1
    assert ("begun" in steps) == ("ended" in steps), steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signals._outermost is None
    assert heard == (0 < count and left <= 0), (count, left)
    if left > 0:
        break
print(count > 100)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.stdout == "True\n", done.stderr

    def test_asyncio_cancels_its_task_after_the_block(self) -> None:
        done = []

        async def work() -> None:
            with interrupts_deferred():
                interrupt()
                done.append("block")
            done.append("behind it")
            await asyncio.sleep(60)
            done.append("never")

        with pytest.raises(KeyboardInterrupt):
            asyncio.run(work())
        assert done == (["block", "behind it"] if sys.version_info >= (3, 11) else ["block"])

    def test_a_loops_own_handler_is_called(self) -> None:
        async def work() -> str:
            told = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, told.set)
            with interrupts_deferred():
                interrupt()
            await asyncio.wait_for(told.wait(), 10)
            return "told"

        assert asyncio.run(work()) == "told"
        signal.signal(signal.SIGINT, signal.default_int_handler)


class TestTermination:
    def test_it_unwinds_as_an_interrupt_does(self) -> None:
        def work() -> None:
            with unwinding_when_terminated():
                interrupt(signal.SIGTERM)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_it_is_put_off_as_an_interrupt_is(self) -> None:
        done = []

        def work() -> None:
            with unwinding_when_terminated(), interrupts_deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(1)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == [1]

    def test_it_counts_where_interrupts_are_ignored(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with pytest.raises(KeyboardInterrupt), unwinding_when_terminated():
                interrupt(signal.SIGTERM)
        finally:
            signal.signal(signal.SIGINT, before)
