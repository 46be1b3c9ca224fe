"""Flat combining: threads that want tokens run at the same time have them run as one batch.

A thread leaves a request with its sequence. Whoever gets the lock runs a batch of all requests that
lie there, its own among them, wakes those that are done, and goes on until its own is. So there is
no thread of the engine's own, and one thread alone pays for a lock.

Sequences that generate come back soon for their next token: a batch waits for them for a few ms, so
that they stay in step. One that came late is not waited for until it was quick again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from ...errors import InputError, PocketMoEError
from ..recording.files import Recording
from ..runner import BatchPart, Cancelled, Observer, Runner
from .requests import Seat, Work, share_batch

# Seconds that a batch waits for a sequence after its last token: a share of what the batch before
# took, within bounds.
_WAIT_SHARE, _LEAST_WAIT, _MOST_WAIT = 0.25, 0.002, 0.01
# A thread that waits looks by itself now and then, in case the one that was to wake it was
# interrupted.
_LOOK_AGAIN = 0.05
# A sequence whose last token is as many seconds old is taken to be at work: prompts of others go
# in small pieces, so that it need not wait for long when it comes back.
_AT_WORK = 1.0


class Combiner:
    """Runs requests of all seats, batch by batch.

    chunk, batch: tokens, of the plan. after: called after each batch, while no other runs.
    """

    def __init__(
        self,
        runner: Runner,
        chunk: int,
        batch: int,
        recording: Recording,
        after: Callable[[], None],
    ):
        self._runner, self._chunk, self._batch = runner, chunk, batch
        self._recording = recording
        self._after = after
        self._step = threading.RLock()  # held while a batch runs; it knows its owner
        self._leader: int | None = None  # the thread that is within a batch
        self._arrived = threading.Event()
        self._seats: list[Seat] = []
        self._expected: set[Seat] = set()
        self._wait = _LEAST_WAIT

    def add(self, seat: Seat) -> None:
        self._seats.append(seat)

    def remove(self, seat: Seat) -> None:
        """No request of it is under way."""
        self._expected.discard(seat)
        self._seats.remove(seat)

    def rest(self, seat: Seat) -> None:
        """Its next token is not waited for. From any thread."""
        self._expected.discard(seat)
        self._arrived.set()  # whoever waits looks again

    def run(
        self,
        seat: Seat,
        ids: np.ndarray,
        logits: np.ndarray,
        observe: Observer | None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Runs tokens of a sequence, which one thread at a time does. See Work.

        observe: they run by themselves, in this thread. cancelled: asked before each batch.

        Raises:
            BundleError: a page cannot be read. Whole batches before it are seen.
            InputError: this is called by an observer.
            Cancelled: the caller wished it. Batches before are seen.
        """
        self._refuse_within()
        now = time.perf_counter()
        seat.late = now - seat.ended > self._wait
        request = Work(seat, ids, logits, seat.cache.position, now)
        if observe is not None:
            while not request.done:
                _heed(cancelled)
                with self._step:
                    self._run([(request, min(request.left, self._batch))], observe)
        else:
            self._run_with_others(request, cancelled)
        if request.error is not None:
            raise request.error

    def _run_with_others(self, request: Work, cancelled: Callable[[], bool] | None) -> None:
        seat = request.seat
        seat.wake.clear()
        seat.request = request
        self._arrived.set()
        try:
            while not request.done:
                _heed(cancelled)
                if self._step.acquire(blocking=False):
                    if not request.done:
                        self._lead()
                    self._step.release()
                else:
                    seat.wake.wait(_LOOK_AGAIN)
                    seat.wake.clear()
        finally:
            self._let_go()
            if request.done:
                seat.request = None
            else:
                self.withdraw(seat)
            self._pass_on()

    def withdraw(self, seat: Seat) -> None:
        """What it wanted is not run any further; returns when no batch has it."""
        if seat.request is not None:
            with self._step:
                seat.request = None

    @contextmanager
    def still(self) -> Iterator[None]:
        """No batch runs meanwhile.

        Raises:
            InputError: this is called by an observer.
        """
        self._refuse_within()
        with self._step:
            yield
        self._pass_on()

    def if_still(self, act: Callable[[], None]) -> None:
        """Does it, unless a batch runs just now, which does it when it ends."""
        if not self.leads and self._step.acquire(blocking=False):
            try:
                act()
            finally:
                self._let_go()
                self._pass_on()

    @property
    def leads(self) -> bool:
        """Whether this thread is within a batch: an observer asks."""
        return self._leader == threading.get_ident()

    def _refuse_within(self) -> None:
        if self.leads:
            raise InputError(
                "a session of the same model runs in this thread: wait until its call returns"
            )

    def _let_go(self) -> None:
        """Also after an interrupt between taking the lock and what follows."""
        with suppress(RuntimeError):  # it is not this thread's
            self._step.release()

    def _pass_on(self) -> None:
        """Wakes a thread whose request is to be led."""
        if waiting := self._pending():
            waiting[0].seat.wake.set()

    def _pending(self) -> list[Work]:
        """Oldest first."""
        found = [seat.request for seat in list(self._seats)]
        wanted = [request for request in found if request is not None and not request.done]
        return sorted(wanted, key=lambda request: request.stamp)

    def _lead(self) -> None:
        """Runs the next batch."""
        if len(self._seats) > 1 and self._runner.joins:
            self._gather()
        pending = self._pending()
        if not self._runner.joins:
            self._run([(pending[0], min(pending[0].left, self._batch))], None)
            return
        now = time.perf_counter()
        others = len(self._seats) > 1 and any(
            (seat.request is None or seat.request.done) and now - seat.ended < _AT_WORK
            for seat in list(self._seats)
        )
        self._run(share_batch(pending, self._chunk, self._batch, others=others), None)

    def _gather(self) -> None:
        """Waits for those that are expected, but not for long."""
        while True:
            self._arrived.clear()  # before looking
            missing = [
                seat for seat in list(self._expected)
                if seat.request is None or seat.request.done
            ]  # fmt: skip
            if not missing:
                return
            left = max(seat.ended for seat in missing) + self._wait - time.perf_counter()
            if left <= 0:
                self._expected.difference_update(missing)
                return
            self._arrived.wait(left)

    def _run(self, shares: list[tuple[Work, int]], observe: Observer | None) -> None:
        """Runs a batch; the lock is held."""
        routes, trace = self._recording.routes, self._recording.trace
        started = time.perf_counter()
        self._leader = threading.get_ident()
        try:
            parts = [request.part(tokens) for request, tokens in shares]
            if routes is not None:
                routes.begin(
                    parts[0].cache.position,
                    prompt=any(request.is_prompt for request, _ in shares),
                    joint=len(parts) > 1,
                )
            try:
                self._runner.run_batch(parts, observe)
            except PocketMoEError as error:
                self._find_guilty(shares, parts, error)
            self._after()
        finally:
            self._leader = None
            now = time.perf_counter()
            self._wait = min(max(_LEAST_WAIT, _WAIT_SHARE * (now - started)), _MOST_WAIT)
            for request, _ in shares:
                request.stamp = now
                if request.done:
                    request.seat.ended = now
                    self._expect(request.seat)
                    request.seat.wake.set()
            if trace is not None:
                trace.flush()

    def _expect(self, seat: Seat) -> None:
        if seat.late:
            self._expected.discard(seat)
        else:
            self._expected.add(seat)

    def _find_guilty(
        self, shares: list[tuple[Work, int]], parts: list[BatchPart], error: PocketMoEError
    ) -> None:
        """After an error of a batch, which has left nothing behind: each runs by itself."""
        if len(parts) == 1:
            shares[0][0].error = error
            return
        for (request, _), part in zip(shares, parts, strict=True):
            try:
                self._runner.run_batch([part])
            except PocketMoEError as own:
                request.error = own


def _heed(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled
