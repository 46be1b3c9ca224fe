"""Several sessions of one model: each gives what it gives alone, whatever the others do."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pocketmoe
from pocketmoe.errors import BundleError, InputError, PocketMoEError
from pocketmoe.model.spec import ModelSpec
from pocketmoe.runtime.cpu import budget
from pocketmoe.runtime.native import library
from pocketmoe.runtime.paging import page_file
from pocketmoe.runtime.session import Session
from pocketmoe.tests.compiler.test_segments import SPECS, make_decoder
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.gpu.bundles import HALF, write_bundle
from pocketmoe.tests.support.slow import slow
from pocketmoe.tests.support.waiting import PATIENCE

TOKENS = np.random.default_rng(0).integers(1, 96, 2000).tolist()
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # no tracing of every line
FIRST, *OTHERS = SPECS
NATIVE = pytest.mark.skipif(not library.available(), reason="no native library")


@dataclass(frozen=True)
class Script:
    """What one sequence does: after so many seconds, calls of so many tokens each."""

    wait: float
    calls: tuple[int, ...]

    def ids(self, number: int) -> Iterator[list[int]]:
        start = 37 * number
        for size in self.calls:
            yield TOKENS[start : start + size]
            start += size


def play(session: Session, script: Script, number: int) -> list[bytes]:
    session.reset()
    time.sleep(script.wait)
    found = []
    for index, ids in enumerate(script.ids(number)):
        found.append(session.forward(ids, last_only=index % 2 == 0).tobytes())
    return found


def play_together(sessions: Sequence[Session], scripts: Sequence[Script]) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in scripts]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            found[number] = play(sessions[number], scripts[number], number)
        except PocketMoEError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(scripts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert errors == []
    return found


def open_all(stack: ExitStack, bundle: Path, count: int, **options: Any) -> list[Session]:
    first = stack.enter_context(pocketmoe.open(bundle, **options))
    return [first, *(stack.enter_context(first.another()) for _ in range(count - 1))]


def set_slots(session: Session, slots: int) -> None:
    plan = session.plan
    fixed = plan.fixed - plan.predictor * plan.predicts
    session.set_memory_budget(fixed + plan.predictor + slots * plan.page)


scripts_of = st.lists(
    st.builds(
        Script,
        st.sampled_from([0.0, 0.0, 0.003, 0.02]),
        st.lists(st.sampled_from([1, 1, 1, 1, 2, 5, 40, 130]), min_size=1, max_size=8)
        .filter(lambda sizes: sum(sizes) <= 512)  # the context
        .map(tuple),
    ),
    min_size=2,
    max_size=4,
)


class TestEquality:
    @NATIVE
    @settings(
        max_examples=examples(25),
        deadline=None,
        phases=PHASES,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(scripts=scripts_of, slots=st.sampled_from([None, 3, 9, 20]))
    def test_each_has_the_bytes_that_it_has_alone(
        self, tiny_bundle: Path, scripts: list[Script], slots: int | None
    ) -> None:
        with ExitStack() as stack:
            sessions = open_all(stack, tiny_bundle, len(scripts))
            alone = [play(sessions[0], script, i) for i, script in enumerate(scripts)]
            if slots is not None:
                set_slots(sessions[0], slots)
            assert play_together(sessions, scripts) == alone

    @pytest.mark.parametrize(
        ("kernels", "name"),
        [
            ("native", FIRST),
            ("onnxruntime", FIRST),
            *(slow(kernels, name) for name in OTHERS for kernels in ("native", "onnxruntime")),
        ],
    )
    def test_whatever_a_spec_expresses(
        self, name: str, kernels: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Windows, sinks, dense layers, latent attention, biases: native, and in ONNX Runtime."""
        if kernels == "native" and not library.available():
            pytest.skip("no native library")
        bundle = bundle_of(SPECS[name], tmp_path_factory)
        scripts = [
            Script(0.0, (140, *[1] * 12)),
            Script(0.004, (5, *[1] * 20)),
            Script(0.01, (150, 1, 1, 20, 1, 1)),
        ]
        with ExitStack() as stack:
            sessions = open_all(stack, bundle, 3, kernels=kernels)
            alone = [play(sessions[0], script, i) for i, script in enumerate(scripts)]
            assert play_together(sessions, scripts) == alone
            set_slots(sessions[0], sessions[0].plan.fewest)
            assert play_together(sessions, scripts) == alone

    @NATIVE
    def test_windows_that_are_moved_at_other_times(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A window of 16, and buffers that are moved after some tens of tokens."""
        monkeypatch.setattr(budget, "CHUNK", 16)
        monkeypatch.setattr(budget, "BATCH", 48)
        scripts = [
            Script(0.0, (200, *[1] * 60, 90)),
            Script(0.0, (300, *[1] * 80)),
            Script(0.01, (3, *[1] * 70, 110, *[1] * 40)),
        ]
        with ExitStack() as stack:
            sessions = open_all(stack, tiny_bundle, 3)
            alone = [play(sessions[0], script, i) for i, script in enumerate(scripts)]
            assert play_together(sessions, scripts) == alone
            monkeypatch.setattr(budget, "BATCH", 512)
            with pocketmoe.open(tiny_bundle, context=500) as other:
                assert other.plan.batch == 500
                assert [play(other, script, i) for i, script in enumerate(scripts)] == alone

    @NATIVE
    def test_threads_that_decode_share_batches_and_pages(self, tiny_bundle: Path) -> None:
        count, steps = 4, 30
        with ExitStack() as stack:
            sessions = open_all(stack, tiny_bundle, count, prefetch="off")
            batches: list[int] = []
            runner = sessions[0]._runner
            run_batch = runner.run_batch

            def counted(parts: Sequence[Any], observe: Any = None) -> None:
                batches.append(len(parts))
                time.sleep(0.01)  # longer than a thread needs to come back
                run_batch(parts, observe)

            runner.run_batch = counted  # type: ignore[method-assign]
            play_together(sessions, [Script(0.0, (3, *[1] * steps))] * count)
            assert sum(batches) == count * (steps + 1)
            assert len(batches) < 2 * (steps + 1)  # apart they would be 4 ·
            usage = sessions[0].model.usage
            layers = [layer.layer for layer in sessions[0].manifest.experts]
            assert (usage[layers].sum(1) == 2 * count * (steps + 3)).all()
            assert usage.sum() == usage[layers].sum()


class TestErrors:
    def test_a_damaged_page_reaches_those_alone_that_need_it(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reads fail while one of the threads wants pages that are not there."""
        with ExitStack() as stack:
            good, bad = open_all(stack, tiny_bundle, 2, prefetch="off")
            alone = play(good, Script(0.0, (20, *[1] * 30)), 0)
            set_slots(good, good.manifest.num_pages)
            layer = next(iter(good.manifest.experts)).layer
            run_batch, guilty = good._runner.run_batch, bad._seat.cache

            def fails(parts: Sequence[Any], observe: Any = None) -> None:
                if any(part.cache is guilty for part in parts):
                    raise BundleError(f"layer {layer} cannot be read")
                run_batch(parts, observe)

            monkeypatch.setattr(good._runner, "run_batch", fails)
            errors: list[str] = []

            def work() -> None:
                for _ in range(10):
                    with pytest.raises(BundleError, match="cannot be read") as caught:
                        bad.forward(TOKENS[:3])
                    errors.append(str(caught.value))

            thread = threading.Thread(target=work)
            thread.start()
            assert play(good, Script(0.0, (20, *[1] * 30)), 0) == alone
            thread.join()
            assert len(errors) == 10
            assert bad.position == 0
            assert bad.seen == ()
            monkeypatch.setattr(good._runner, "run_batch", run_batch)
            assert play(bad, Script(0.0, (20, *[1] * 30)), 0) == alone

    def test_reads_that_fail_leave_all_of_them_usable(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, broken = page_file.PageFile.read, threading.Event()

        def read(self: page_file.PageFile, target: memoryview, offset: int) -> int:
            if broken.is_set():
                raise OSError(errno.EIO, "Input/output error")
            return real(self, target, offset)

        scripts = [Script(0.0, (30, *[1] * 20))] * 3
        with ExitStack() as stack:
            sessions = open_all(stack, tiny_bundle, 3, prefetch="off")
            alone = [play(sessions[0], script, i) for i, script in enumerate(scripts)]
            monkeypatch.setattr(page_file.PageFile, "read", read)
            set_slots(sessions[0], 3)
            broken.set()
            failed: list[str] = []

            def work(number: int) -> None:
                try:
                    play(sessions[number], scripts[number], number)
                except BundleError as error:
                    failed.append(str(error))

            threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert len(failed) == 3
            broken.clear()
            assert play_together(sessions, scripts) == alone

    def test_an_interrupt_of_the_thread_that_leads_strands_nobody(self, tiny_bundle: Path) -> None:
        code = f"""
import signal, sys, threading, time
sys.path[:0] = {sys.path!r}
import pocketmoe
first = pocketmoe.open({str(tiny_bundle)!r}, context=500)
others = [first.another() for _ in range(3)]
def decode(session, count=120):
    session.reset()
    out = [session.forward([7, 8, 9], last_only=True).tobytes()]
    out += [session.forward([i % 300], last_only=True).tobytes() for i in range(count)]
    return out
alone = decode(first)
found = [None] * 3
def work(i):
    found[i] = decode(others[i])
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for thread in threads: thread.start()
main, interrupts = threading.main_thread().ident, 0
ready = threading.Event()
def disturb():
    while any(thread.is_alive() for thread in threads):
        if ready.wait(0.1):
            ready.clear()
            time.sleep(0.004)
            signal.pthread_kill(main, signal.SIGINT)
disturber = threading.Thread(target=disturb)
disturber.start()
while disturber.is_alive():
    try:
        ready.set()  # the next interrupt comes within this block
        while disturber.is_alive():
            first.reset()
            for i in range(40):
                first.forward([i], last_only=True)
    except KeyboardInterrupt:
        interrupts += 1
for thread in threads: thread.join()
while True:
    try:
        time.sleep(0.05)
        break
    except KeyboardInterrupt:
        pass
print(interrupts > 3, [one == alone for one in found], decode(first) == alone)
for session in (first, *others): session.close()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.stdout == "True [True, True, True] True\n", done.stderr

    def test_an_observer_cannot_run_another_session_of_the_model(self, tiny_bundle: Path) -> None:
        with ExitStack() as stack:
            first, second = open_all(stack, tiny_bundle, 2)
            refused: list[str] = []

            def observe(index: int, outputs: dict[str, np.ndarray]) -> None:
                with pytest.raises(InputError, match="same model") as caught:
                    second.forward([1])
                refused.append(str(caught.value))

            first.forward([1, 2], observe=observe)
            assert len(refused) == len(first.manifest.segments)
            second.forward([1])


class TestRewinding:
    @NATIVE
    def test_what_follows_is_as_without(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            whole = session.forward(TOKENS[:120])
            assert session.rewind(100) == 100
            assert session.seen == tuple(TOKENS[:100])
            assert session.forward(TOKENS[100:120]).tobytes() == whole[100:].tobytes()
            assert session.keep(TOKENS[:120]) == 119
            assert session.forward(TOKENS[119:120]).tobytes() == whole[119:].tobytes()
            assert session.keep([*TOKENS[:50], 5, 6]) == 50
            assert session.position == 50
            assert session.keep([9, 9]) == 0
            assert session.keep([]) == 0
            with pytest.raises(InputError, match="from 0 to 0"):
                session.rewind(1)

    @NATIVE
    def test_windows_limit_how_far_it_goes(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budget, "BATCH", 48)
        monkeypatch.setattr(budget, "CHUNK", 16)
        with pocketmoe.open(tiny_bundle) as session:
            whole = session.forward(TOKENS[:300])
            assert session.keep(TOKENS[:300]) in (0, 299)
            session.reset()
            session.forward(TOKENS[:100])
            for token in TOKENS[100:300]:
                session.forward([token])
            for back in (296, 290):  # a few tokens are always there
                assert session.rewind(back) == back
                assert session.forward(TOKENS[back:300]).tobytes() == whole[back:].tobytes()
            assert session.rewind(100) == 0
            assert session.forward(TOKENS[:300]).tobytes() == whole.tobytes()

    @pytest.mark.parametrize(
        "name", [name for name in SPECS if "dynamic" in name or "long" in name]
    )
    def test_keys_that_were_rotated_otherwise_are_not_kept(
        self, name: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        with pocketmoe.open(bundle_of(SPECS[name], tmp_path_factory)) as session:
            short = session.manifest.spec.rope.original_length
            session.forward(TOKENS[: short - 5])
            kept = short - 5 if session.exact else 0  # else whole batches alone
            assert session.keep(TOKENS[: short - 3]) == kept
            session.forward(TOKENS[kept : short - 3])
            assert session.keep(TOKENS[: short + 1]) == 0
            session.forward(TOKENS[: short + 4])
            assert session.keep(TOKENS[: short - 3]) == 0


bundles: dict[str, Path] = {}


def bundle_of(spec: ModelSpec, factory: pytest.TempPathFactory) -> Path:
    name = repr(spec)
    if name not in bundles:
        spec = replace(spec, max_position_embeddings=1024)
        bundles[name] = write_bundle(
            factory.mktemp("parallel") / "bundle", spec, make_decoder(spec), HALF, devices=False
        )
    return bundles[name]
