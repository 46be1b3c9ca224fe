"""Sessions on a real bundle: paging, context, generation, damage."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.bundle.manifest import PREDICTORS, read_manifest, write_manifest
from pocketmoe.errors import ContextError, InputError
from pocketmoe.runtime.cpu import budget
from pocketmoe.tests.support.session_runs import TOKENS, run
from pocketmoe.tests.support.waiting import PATIENCE


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
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE
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
