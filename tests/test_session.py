"""Sessions on a real bundle: paging, context, generation, damage."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.errors import BudgetError, BundleError, ContextError, InputError
from pocketmoe.runtime import budget, opening, page_file
from pocketmoe.runtime.bundle import PREDICTORS, read_manifest, write_manifest
from pocketmoe.runtime.session import Session

TOKENS = np.random.default_rng(0).integers(1, 384, 80).tolist()


def smallest_budget(bundle: Path) -> int:
    """Bytes, from the message that refuses one byte."""
    with pytest.raises(BudgetError, match=r"smallest that works is \d+MiB") as caught:
        pocketmoe.open(bundle, memory_budget=1)
    return int(str(caught.value).split("works is ")[1].split("MiB")[0]) << 20


def run(session: Session) -> np.ndarray:
    parts = [session.forward(TOKENS[:50])]
    parts += [session.forward([token]) for token in TOKENS[50:]]
    return np.concatenate(parts)


def test_paged_logits_are_those_of_the_resident_model(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
        text = session.generate("def main(", max_new_tokens=40).text()
        assert session.stats.page_misses <= session.stats.num_pages
    plan = opening.plan_memory

    def few_slots(*args: object, **kwargs: object) -> budget.MemoryPlan:
        return dataclasses.replace(plan(*args, **kwargs), slots=3)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "plan_memory", few_slots)
    with pocketmoe.open(tiny_bundle) as session:
        paged = run(session)
        assert session.generate("def main(", max_new_tokens=40).text() == text
        assert session.stats.cache_slots == 3
        assert session.stats.page_misses > session.stats.num_pages
    assert paged.tobytes() == resident.tobytes()


def test_a_prompt_in_chunks_gives_the_logits_of_one_piece(tiny_bundle_fp32: Path) -> None:
    with pocketmoe.open(tiny_bundle_fp32) as session:
        whole = session.forward(TOKENS)
        session.reset()
        parts = np.concatenate([session.forward(TOKENS[i : i + 9]) for i in range(0, 80, 9)])
        assert session.position == 80
        session.reset()
        last = session.forward(TOKENS, last_only=True)
    assert np.abs(whole - parts).max() / np.abs(whole).max() < 1e-4
    assert np.abs(whole[-1:] - last).max() / np.abs(whole).max() < 1e-4


@pytest.mark.parametrize(("chunk", "batch"), [(16, 40), (7, 7), (8, 64)])
def test_batches_of_several_chunks_give_the_same_logits(
    tiny_bundle_fp32: Path, chunk: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention runs by chunks, experts by batches; layers of the model have a window of 16."""
    with pocketmoe.open(tiny_bundle_fp32) as session:
        whole = session.forward(TOKENS)
    monkeypatch.setattr(budget, "CHUNK", chunk)
    monkeypatch.setattr(budget, "BATCH", batch)
    with pocketmoe.open(tiny_bundle_fp32) as session:
        assert (session.plan.chunk, session.plan.batch) == (chunk, batch)
        by_chunks = session.forward(TOKENS)
        requests = session.stats.page_hits + session.stats.page_misses
        session.reset()
        last = session.forward(TOKENS, last_only=True)
        session.reset()
        parts = [session.forward(TOKENS[:33]), session.forward(TOKENS[33:])]
    assert np.abs(whole - by_chunks).max() / np.abs(whole).max() < 1e-4
    assert np.abs(whole[-1:] - last).max() / np.abs(whole).max() < 1e-4
    assert np.abs(whole - np.concatenate(parts)).max() / np.abs(whole).max() < 1e-4
    # A batch asks for each expert of a layer once.
    layers, experts = len(session.manifest.experts), len(session.manifest.experts[0].offsets)
    assert requests <= -(-len(TOKENS) // batch) * layers * experts


def test_generation_is_reproducible_and_streams(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        stream = session.generate("x = ", max_new_tokens=30, temperature=1.0, seed=7)
        assert next(stream).token_ids
        assert session.stats.new_tokens < 30
        text = stream.text()
        again = session.generate("x = ", max_new_tokens=30, temperature=1.0, seed=7).text()
        other = session.generate("x = ", max_new_tokens=30, temperature=1.0, seed=8).text()
    assert text == again
    assert text != other


def test_the_smallest_budget_opens_and_one_less_does_not(tiny_bundle: Path) -> None:
    smallest = smallest_budget(tiny_bundle)
    with pytest.raises(BudgetError, match="too small"):
        pocketmoe.open(tiny_bundle, memory_budget=smallest - (8 << 20))
    with pocketmoe.open(tiny_bundle, memory_budget=smallest + (8 << 20)) as session:
        assert session.forward(TOKENS).shape == (80, 384)
        assert session.stats.budget_bytes == smallest + (8 << 20)


def test_the_end_of_the_context_names_the_limit(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, context=32) as session:
        with pytest.raises(ContextError, match="32"):
            session.forward(TOKENS)
        assert session.position == 0
        session.forward(TOKENS[:30])
        with pytest.raises(ContextError, match="context of 32"):
            session.forward(TOKENS[:3])
        with pytest.raises(InputError, match="empty"):
            session.forward([])
        with pytest.raises(InputError, match="384"):
            session.forward([384])
    with pytest.raises(ContextError, match="512"):
        pocketmoe.open(tiny_bundle, context=513)


def test_a_flipped_byte_is_found_when_its_page_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    layer = read_manifest(broken).experts[0]
    for expert in range(8):  # so that whichever is chosen first is damaged
        with (broken / layer.file).open("r+b") as file:
            file.seek(layer.offsets[expert] + 5)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
    with (
        pocketmoe.open(broken) as session,
        pytest.raises(BundleError, match=rf"{layer.file}.*layer 1, expert \d"),
    ):
        session.forward(TOKENS)
    with pocketmoe.open(broken, verify_pages=False) as session:
        session.forward(TOKENS)


@pytest.mark.parametrize("name", ["backbone/segment_001.bin", "experts/layer_002/pages.bin"])
def test_missing_and_cut_files_are_found_at_once(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    path = broken / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name} has"):
        pocketmoe.open(broken)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        pocketmoe.open(broken)


def test_a_newer_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    newer = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, newer)
    manifest = newer / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3,', '"version": 4,', 1))
    with pytest.raises(BundleError, match="update pocketmoe"):
        pocketmoe.open(newer)


def test_a_fresh_interpreter_opens_without_the_compiler(tiny_bundle: Path) -> None:
    code = f"""
import sys, time
started = time.perf_counter()
import pocketmoe
session = pocketmoe.open({str(tiny_bundle)!r})
seconds = time.perf_counter() - started
session.forward([1, 2, 3])
heavy = {{"torch", "onnx", "onnxscript", "transformers", "safetensors"}} & set(sys.modules)
print(sorted(heavy), seconds)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] "), done.stdout


def test_a_generation_that_was_disturbed_says_so(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        first = session.generate("import os", max_new_tokens=40)
        next(first)
        list(session.generate("x = 1", max_new_tokens=3))
        with pytest.raises(InputError, match="something else"):
            list(first)
        third = session.generate("import os", max_new_tokens=40)
        next(third)
        session.reset()
        with pytest.raises(InputError, match="something else"):
            list(third)
    for call in (
        session.reset,
        lambda: session.generate("x"),
        lambda: session.forward([1]),
        lambda: session.position,
    ):
        with pytest.raises(InputError, match="closed"):
            call()


def test_a_full_context_ends_generation_after_the_text_that_fits(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, context=24) as session:
        stream = session.generate([5, 6, 7], max_new_tokens=400)
        assert stream.text()
        assert (session.position, stream.new_tokens, stream.finish_reason) == (24, 22, "length")
        with pytest.raises(ContextError, match="context of 24 tokens"):
            session.generate([5] * 25)


def test_damage_outside_the_pages_is_found_at_opening(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    for name in ("backbone/segment_001.bin", "experts/layer_002/engine.onnx"):
        shutil.copytree(tiny_bundle, broken, dirs_exist_ok=True)
        path = broken / name
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError, match=f"{re.escape(path.name)} is damaged"):
            pocketmoe.open(broken)
    shutil.copytree(tiny_bundle, broken, dirs_exist_ok=True)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"theta": 10000.0', '"theta": 9.0'))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        pocketmoe.open(broken)


def test_the_budget_changes_during_a_generation(tiny_bundle: Path) -> None:
    """The same text, the same logits, and the cache follows at once."""
    with pocketmoe.open(tiny_bundle, prefetch="off") as session:
        text = session.generate("def main(", max_new_tokens=40).text()
        session.reset()
        resident = run(session)
        fixed, page, pages = session.plan.fixed, session.plan.page, session.manifest.num_pages
        pieces = []
        slots = [3, 20, pages, 4, 5]
        for index, piece in enumerate(session.generate("def main(", max_new_tokens=40)):
            pieces.append(piece.text)
            count = slots[index % len(slots)]
            session.set_memory_budget(fixed + count * page)
            assert session.stats.cache_slots == count
            assert len(session._pager.resident()) <= count
            assert session.stats.budget_bytes == fixed + count * page
        assert "".join(pieces) == text
        session.reset()
        session.set_memory_budget(fixed + 3 * page)
        assert run(session).tobytes() == resident.tobytes()
        with pytest.raises(BudgetError, match=r"smallest that works is \d+MiB"):
            session.set_memory_budget(fixed)
        with pytest.raises(InputError):
            session.set_memory_budget("much")
        assert session.stats.cache_slots == 3
        session.set_memory_budget(None)
        assert session.stats.cache_slots == pages
        assert session.stats.budget_bytes is None
    with pytest.raises(InputError, match="closed"):
        session.set_memory_budget(None)


def test_another_thread_changes_the_budget_while_tokens_run(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, prefetch="off") as session:
        resident = run(session)
        fixed, page, pages = session.plan.fixed, session.plan.page, session.manifest.num_pages
        stop = threading.Event()

        def change() -> None:
            for count in itertools.cycle([3, pages, 9, 4]):
                session.set_memory_budget(fixed + count * page)
                if stop.is_set():
                    return

        changer = threading.Thread(target=change)
        changer.start()
        for _ in range(5):
            session.reset()
            assert run(session).tobytes() == resident.tobytes()
        stop.set()
        changer.join()
        wanted = (session.plan.total - fixed) // page
        assert session.stats.cache_slots == wanted
        assert len(session._pager.resident()) <= wanted


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 1e9, [], b"1GiB", True, 0, -1, ""])
def test_a_budget_that_is_none_is_refused(tiny_bundle: Path, budget: object) -> None:
    with pytest.raises(InputError):
        pocketmoe.open(tiny_bundle, memory_budget=budget)  # type: ignore[arg-type]
    with pocketmoe.open(tiny_bundle) as session:
        with pytest.raises(InputError):
            session.set_memory_budget(budget)  # type: ignore[arg-type]
        assert session.stats.budget_bytes is None
    with pytest.raises(InputError, match="context must be a whole number"):
        pocketmoe.open(tiny_bundle, context=1.5)  # type: ignore[arg-type]


def test_two_sessions_on_one_bundle_in_two_threads(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
        plan = session.plan
    logits: list[bytes] = []

    def work() -> None:
        with pocketmoe.open(tiny_bundle) as session:
            session.set_memory_budget(session.plan.fixed + session.plan.kv + 4 * plan.page)
            for _ in range(3):
                session.reset()
                logits.append(run(session).tobytes())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logits == [resident.tobytes()] * 6


def test_a_read_that_fails_twice_leaves_the_session_usable(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
    real = page_file.PageFile.read
    broken = threading.Event()

    def read(self: page_file.PageFile, target: memoryview, offset: int) -> int:
        if broken.is_set():
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target, offset)

    with pocketmoe.open(tiny_bundle) as session:
        session.set_memory_budget(session.plan.fixed + 3 * session.plan.page)
        monkeypatch.setattr(page_file.PageFile, "read", read)
        session.forward(TOKENS[:50])
        broken.set()
        with pytest.raises(BundleError, match=r"layer \d+, expert \d+ cannot be read \(Input"):
            session.forward(TOKENS[50:])
        broken.clear()
        session.reset()
        assert run(session).tobytes() == resident.tobytes()


def test_a_slow_disk_with_guesses_gives_the_same_bytes(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that take their time, early ones among them, some no longer wanted."""
    with pocketmoe.open(tiny_bundle) as session:
        resident = run(session)
    real, random = os.preadv, np.random.default_rng(0)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        time.sleep(float(random.random()) * 0.004)
        return real(fd, buffers, offset)

    with pocketmoe.open(tiny_bundle, prefetch="on") as session:
        monkeypatch.setattr(page_file.os, "preadv", preadv)
        session.set_memory_budget(
            session.plan.fixed + session.plan.predictor + 7 * session.plan.page
        )
        assert session.plan.predicts
        assert run(session).tobytes() == resident.tobytes()
        stats = session.stats
        assert stats.early_pages > stats.early_pages_used > 0
        assert 0 < (stats.guess_accuracy or 0) < 1
        assert stats.wait_seconds > 0


def test_what_prefetch_takes(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of auto, on, off, not yes"):
        pocketmoe.open(tiny_bundle, prefetch="yes")
    older = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, older)
    manifest = read_manifest(older)
    files = {name: record for name, record in manifest.files.items() if name != PREDICTORS}
    write_manifest(older, dataclasses.replace(manifest, files=files))
    with pytest.raises(InputError, match="no predictors; compile it again"):
        pocketmoe.open(older, prefetch="on")
    with pocketmoe.open(older) as session:
        session.set_memory_budget(session.plan.fixed + 7 * session.plan.page)
        session.forward(TOKENS)
        assert session.stats.guess_accuracy is None


def test_an_automatic_budget_does_not_shrink_because_of_what_it_holds(tiny_bundle: Path) -> None:
    """The cache is the process's own, so it is not counted as used by others."""
    with pocketmoe.open(tiny_bundle, memory_budget="auto") as session:
        before = session.plan.budget
        size = session._pager._slot_bytes
        session._pager._slot_bytes = 16 << 20  # 384 MiB in all
        session.forward(TOKENS)
        for slot in session._pager._resident.values():
            slot.data[:] = 1
        assert len(session._pager.resident()) >= 20
        session._pager._slot_bytes = size
        session.set_memory_budget("auto")
        assert before is not None
        assert session.plan.budget is not None
        assert session.plan.budget > before - (200 << 20)  # others take memory meanwhile


def test_after_a_fork_the_session_says_that_it_is_not_to_be_used(tiny_bundle: Path) -> None:
    code = f"""
import os, sys
import pocketmoe
from pocketmoe.errors import InputError
session = pocketmoe.open({str(tiny_bundle)!r})
session.forward([1, 2, 3])
child = os.fork()
if child == 0:
    try:
        session.forward([4])
    except InputError as error:
        print(error, flush=True)
    session.close()
    os._exit(0)
os.waitpid(child, 0)
session.forward([4])
session.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "the session was opened before a fork; open the bundle again here\n"


def test_another_thread_gets_an_error_and_disturbs_nothing(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        expected = run(session)
        session.reset()
        refused: list[str] = []

        def disturb(*_: object) -> None:
            def use(call: Callable[[], object]) -> None:
                with pytest.raises(InputError, match="another thread") as caught:
                    call()
                refused.append(str(caught.value))

            for call in (session.reset, session.close, lambda: session.forward([1])):
                thread = threading.Thread(target=use, args=(call,))
                thread.start()
                thread.join()

        turn = session.turn
        logits = session.forward(TOKENS[:50], observe=disturb)
        assert session.turn == turn + 1
        assert len(refused) == 3 * len(session.manifest.segments)
        assert logits.tobytes() == expected[:50].tobytes()


@pytest.mark.parametrize("prompt", [None, 5, {"role": "user"}, b"abc", object()])
def test_what_is_no_prompt(tiny_bundle: Path, prompt: object) -> None:
    with pocketmoe.open(tiny_bundle) as session, pytest.raises(InputError, match="a prompt is"):
        session.generate(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": None}, "named by a path"),
        ({"path": b"x"}, "named by a path"),
        ({"threads": "x"}, "threads must be a whole number"),
        ({"threads": True}, "threads must be a whole number"),
    ],
)
def test_what_cannot_be_opened(tiny_bundle: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pocketmoe.open(**{"path": tiny_bundle, **arguments})
    with pocketmoe.open(tiny_bundle) as session, pytest.raises(InputError, match="a string, not"):
        session.encode(b"abc")  # type: ignore[arg-type]


def test_text_of_tokens(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle) as session:
        ids = session.encode("def main(é)")
        assert session.decode(ids) == session.decode(np.array(ids)) == "def main(é)"
        assert session.decode([]) == ""
        for wrong in ([-1], [10**6], ["x"]):
            with pytest.raises(InputError, match="token id"):
                session.decode(wrong)


def test_closing_frees_the_weights(tiny_bundle: Path) -> None:
    session = pocketmoe.open(tiny_bundle)
    session.forward([1, 2, 3])
    backbone = weakref.ref(session._runner._backbone)  # type: ignore[attr-defined]
    session.close()
    assert backbone() is None  # at once, not when garbage is next collected
