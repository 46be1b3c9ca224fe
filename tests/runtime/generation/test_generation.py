"""Generations: pieces, ends, cancelling, what is reused of a prompt, asyncio."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pocketmoe
from pocketmoe import Grammar, Piece, Session
from pocketmoe.errors import ContextError, InputError
from pocketmoe.runtime.cpu import budget
from pocketmoe.runtime.native import library
from pocketmoe.tests.support.slow import slow
from pocketmoe.tests.support.waiting import until

PROMPT = "def main("


@pytest.fixture(scope="module")
def session(tiny_bundle_fp32: Path) -> Iterator[Session]:
    with pocketmoe.open(tiny_bundle_fp32) as session:
        yield session


def greedy(session: Session, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Tokens after PROMPT, and the logits that they are the largest of, by `forward` alone."""
    session.reset()
    logits, tokens, seen = session.forward(session.encode(PROMPT), last_only=True)[0], [], []
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        seen.append(logits)
        logits = session.forward(tokens[-1:], last_only=True)[0]
    return tokens, seen


class TestPieces:
    def test_they_are_what_forward_gives(self, session: Session) -> None:
        tokens, logits = greedy(session, 30)
        made = session.generate(PROMPT, max_new_tokens=30, logprobs=3)
        assert (made.prompt_tokens, made.new_tokens, made.finish_reason) == (
            len(session.encode(PROMPT)), 0, None,
        )  # fmt: skip
        pieces = list(made)
        assert [token for piece in pieces for token in piece.token_ids] == tokens
        assert "".join(piece.text for piece in pieces) == session.tokenizer.decode(tokens)
        assert (made.new_tokens, made.finish_reason) == (30, "length")
        assert [piece.finish_reason for piece in pieces[-2:]] == [None, "length"]
        assert made.text() == session.tokenizer.decode(tokens)
        assert next(made, None) is None
        told = [logprob for piece in pieces for logprob in piece.logprobs]
        for token, raw, logprob in zip(tokens, logits, told, strict=True):
            exact = raw.astype(np.float64)
            exact -= np.log(np.exp(exact).sum())
            assert logprob.token_id == token
            assert logprob.token == made.token_bytes(token)
            assert logprob.logprob == pytest.approx(exact[token], abs=1e-6)
            assert [other for other, _ in logprob.top] == np.argsort(-exact, kind="stable")[
                :3
            ].tolist()
            assert logprob.top[0] == (token, logprob.logprob)

    def test_log_probabilities_are_those_of_the_model(self, session: Session) -> None:
        plain = next(session.generate(PROMPT, logprobs=0)).logprobs[0]
        assert plain.top == ()
        other = plain.token_id + 1
        changed = session.generate(
            PROMPT, logprobs=1, temperature=0.5, logit_bias={other: 100.0}, max_new_tokens=1
        )
        (logprob,) = next(changed).logprobs
        assert logprob.token_id == other
        assert logprob.top == ((plain.token_id, pytest.approx(plain.logprob, abs=1e-9)),)

    def test_text_before_and_after_it_was_iterated(self, session: Session) -> None:
        made = session.generate(PROMPT, max_new_tokens=20)
        first = next(made).text
        text = made.text()
        assert text.startswith(first)
        assert text == session.generate(PROMPT, max_new_tokens=20).text()

    def test_the_seed_decides(self, session: Session) -> None:
        how = {"max_new_tokens": 30, "temperature": 1.3, "top_p": 0.9}
        texts = []
        for seed in (1, 1, 2, None, None):
            texts.append(session.generate(PROMPT, **how, seed=seed).text())
            session.forward([5, 6])  # what it saw meanwhile does not matter
        assert texts[0] == texts[1]
        assert len(set(texts)) == 4


class TestEnds:
    def test_a_token_that_ends_the_text(self, session: Session) -> None:
        (end,) = session.manifest.spec.eos_token_ids
        made = session.generate(PROMPT, logit_bias={end: 1e9}, logprobs=0)
        assert list(made) == [Piece("", (), (), "stop")]
        assert (made.new_tokens, made.finish_reason) == (1, "stop")

    def test_stop_strings(self, session: Session) -> None:
        whole = session.generate(PROMPT, max_new_tokens=40).text()
        assert len(whole) > 12
        for start, length in itertools.product((0, 3, 9), (1, 2, 3)):
            stop = whole[start : start + length]
            made = session.generate(PROMPT, max_new_tokens=40, stop=["\0never", stop, "x" * 10_000])
            assert made.text() == whole[: whole.index(stop)]
            assert made.finish_reason == "stop"
        made = session.generate(PROMPT, max_new_tokens=40, stop=whole[3:5])  # no list
        assert made.text() == whole[: whole.index(whole[3:5])]

    def test_what_is_held_back_for_a_stop_string_comes_at_the_end(self, session: Session) -> None:
        whole = session.generate(PROMPT, max_new_tokens=20).text()
        made = session.generate(PROMPT, max_new_tokens=20, stop=whole[-3:] + "\0")
        pieces = list(made)
        assert made.text() == whole
        assert (pieces[-1].finish_reason, made.finish_reason) == ("length", "length")

    def test_one_token(self, session: Session) -> None:
        made = session.generate(PROMPT, max_new_tokens=1)
        (piece,) = made
        assert (len(piece.token_ids), piece.finish_reason, made.new_tokens) == (1, "length", 1)

    def test_the_context_ends(self, tiny_bundle_fp32: Path) -> None:
        with pocketmoe.open(tiny_bundle_fp32, context=16) as small:
            for length in (1, 10, 15, 16):
                made = small.generate([7] * length, max_new_tokens=100)
                tokens = [token for piece in made for token in piece.token_ids]
                assert (len(tokens), made.finish_reason) == (17 - length, "length")
            with pytest.raises(ContextError, match="17 tokens are more than the context of 16"):
                small.generate([7] * 17)


class TestCancelling:
    def test_an_event(self, session: Session) -> None:
        cancel = threading.Event()
        made = session.generate(PROMPT, max_new_tokens=400, cancel=cancel)
        pieces = [next(made), next(made)]
        position = session.position
        cancel.set()
        pieces += made
        assert session.position == position  # nothing was run any more
        assert [piece.finish_reason for piece in pieces] == [None, None, "cancelled"]
        assert (pieces[-1].text, made.finish_reason) == ("", "cancelled")

    def test_before_it_begins(self, session: Session) -> None:
        cancel = threading.Event()
        cancel.set()
        session.reset()
        assert list(session.generate(PROMPT, cancel=cancel)) == [Piece("", (), (), "cancelled")]
        with session.generate(PROMPT) as made:
            made.close()
            made.close()
        assert list(made) == []
        assert (made.finish_reason, made.text(), session.position) == ("cancelled", "", 0)

    def test_a_prompt_ends_between_two_batches(
        self, tiny_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budget, "BATCH", 16)
        with pocketmoe.open(tiny_bundle_fp32, threads=1) as session:  # not one with larger batches

            class Later(threading.Event):
                def is_set(self) -> bool:
                    return session.position >= 32

            tokens = list(range(1, 101))
            made = session.generate(tokens, cancel=Later())
            assert [piece.finish_reason for piece in made] == ["cancelled"]
            assert list(session.seen) == tokens[:32]
            again = session.generate(tokens, max_new_tokens=3)
            text = again.text()
            assert again.reused_tokens == 32
            session.reset()
            assert session.generate(tokens, max_new_tokens=3).text() == text

    def test_close_after_the_end(self, session: Session) -> None:
        made = session.generate(PROMPT, max_new_tokens=2)
        text = made.text()
        made.close()
        assert (made.finish_reason, made.text()) == ("length", text)

    def test_from_another_thread(self, session: Session) -> None:
        made = session.generate(PROMPT, max_new_tokens=480, logit_bias={0: -1e9})
        ends: list[str | None] = []
        thread = threading.Thread(target=lambda: (list(made), ends.append(made.finish_reason)))
        thread.start()
        while made.new_tokens < 5:
            time.sleep(0.0005)
        before = made.new_tokens
        made.close()
        thread.join()
        assert ends == ["cancelled"]
        assert made.new_tokens <= before + 200  # those made until `close` got its turn
        assert session.generate(PROMPT, max_new_tokens=3).text()

    def test_one_generation_in_two_threads(self, session: Session) -> None:
        made = session.generate(PROMPT, max_new_tokens=9)
        with made._running, pytest.raises(InputError, match="in use by another thread"):
            next(made)
        assert made.text()


class TestReuse:
    def test_a_prompt_that_goes_on(self, session: Session) -> None:
        session.reset()
        first = session.generate(PROMPT, max_new_tokens=12)
        assert first.text()
        assert first.reused_tokens == 0
        longer = [*session.seen, 9, 8, 7]
        second = session.generate(longer, max_new_tokens=12)
        text = second.text()
        assert (second.reused_tokens, second.prompt_tokens) == (len(longer) - 3, len(longer))
        third = session.generate(longer, max_new_tokens=12)
        assert third.text() == text
        assert third.reused_tokens == len(longer) - 1  # one is run for its logits
        session.reset()
        assert session.generate(longer, max_new_tokens=12).text() == text

    def test_only_what_was_run_is_counted(self, tiny_bundle_fp32: Path) -> None:
        with pocketmoe.open(tiny_bundle_fp32) as session:
            session.generate([5] * 20, max_new_tokens=1).text()
            session.generate([5] * 20, max_new_tokens=1).text()
            assert session.stats.prompt_tokens == 21

    @pytest.mark.parametrize(
        ("kernels", "bundle"),
        [
            ("native", "tiny_bundle"),
            ("native", "tiny_bundle_fp32"),
            ("onnxruntime", "tiny_bundle"),
            slow("onnxruntime", "tiny_bundle_fp32"),
        ],
    )
    def test_numbers_are_those_without_it(
        self,
        kernels: str,
        bundle: str,
        request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Prompts that part at random places, of a model with windows of 16 tokens; the logits are
        the same to the byte. Where ONNX Runtime computes, whole batches alone are reused."""
        if kernels == "native" and not library.available():
            pytest.skip("no native library")
        monkeypatch.setattr(budget, "CHUNK", 8)
        monkeypatch.setattr(budget, "BATCH", 16)
        path = request.getfixturevalue(bundle)
        with (
            pocketmoe.open(path, kernels=kernels) as session,
            pocketmoe.open(path, kernels=kernels) as fresh,
        ):
            assert session.exact == (kernels == "native")
            reused, random = [], np.random.default_rng(0)
            for _ in range(40):
                if session.position > 300:
                    session.reset()
                more = random.integers(1, 384, int(random.integers(1, 60))).tolist()
                ids = [*session.seen[: int(random.integers(0, session.position + 1))], *more]
                first = session.keep(ids)
                assert first <= len(ids) - 1
                assert list(session.seen) == ids[:first]
                assert session.position == first
                logits = session.forward(ids[first:], last_only=True)
                reused.append(first)
                fresh.reset()
                assert fresh.forward(ids, last_only=True).tobytes() == logits.tobytes()
                for token in random.integers(1, 384, int(random.integers(0, 30))).tolist():
                    session.forward([token])
            assert sum(map(bool, reused)) >= 5
            if kernels == "onnxruntime":
                assert all(first % 16 == 0 for first in reused)

    def test_rotations_that_depend_on_the_length(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import dataclasses

        spec = session.manifest.spec
        rope = dataclasses.replace(spec.rope, kind="dynamic", factor=2.0, original_length=20)
        other = dataclasses.replace(session.manifest, spec=dataclasses.replace(spec, rope=rope))
        for length, shared in ((20, 12), (21, 0)):
            session.reset()
            monkeypatch.setattr(session, "manifest", other)
            session.forward([5] * 12)
            assert session.keep([5] * length) == shared
            monkeypatch.undo()


class TestAsync:
    def test_the_same_pieces(self, session: Session) -> None:
        how = {"max_new_tokens": 20, "temperature": 0.9, "seed": 3, "logprobs": 1, "stop": "\0"}
        expected = list(session.generate(PROMPT, **how))

        async def run() -> list[Piece]:
            made = session.agenerate(PROMPT, **how)
            pieces = [piece async for piece in made]
            assert (made.new_tokens, made.finish_reason) == (20, "length")
            assert made.prompt_tokens == len(session.encode(PROMPT))
            assert [piece async for piece in made] == []
            return pieces

        assert asyncio.run(run()) == expected

    def test_all_of_its_text_and_the_end_of_a_block(self, session: Session) -> None:
        how = {"max_new_tokens": 20, "temperature": 0.9, "seed": 3, "stop": None}
        expected = session.generate(PROMPT, **how).text()

        async def run() -> None:
            async with session.agenerate(PROMPT, **how) as made:
                first = await anext(made)
                assert await made.text() == expected
            assert expected.startswith(first.text)
            async with session.agenerate(PROMPT, **how) as left:
                await anext(left)
            assert left.finish_reason == "cancelled"

        asyncio.run(run())

    def test_the_event_loop_goes_on(
        self, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward = session.forward

        def slow(*arguments: object, **named: object) -> np.ndarray:
            time.sleep(0.05)
            return forward(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(session, "forward", slow)

        async def run() -> int:
            async def use() -> None:
                async for _ in session.agenerate(PROMPT, max_new_tokens=6):
                    pass

            ticks, task = 0, asyncio.create_task(use())
            while not task.done():
                await asyncio.sleep(0.005)
                ticks += 1
            await task
            return ticks

        assert asyncio.run(run()) >= 15

    def test_a_cancelled_task_leaves_the_session_free(self, session: Session) -> None:
        async def run() -> None:
            made = session.agenerate(PROMPT, max_new_tokens=490, logit_bias={0: -1e9})
            begun = asyncio.Event()

            async def use() -> None:
                async for _ in made:
                    begun.set()

            task = asyncio.create_task(use())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert made.finish_reason == "cancelled"
            tokens = made.new_tokens
            assert session.generate(PROMPT, max_new_tokens=2).text()
            assert made.new_tokens == tokens < 400

        asyncio.run(run())

    def test_aclose_and_break(self, session: Session) -> None:
        async def run() -> None:
            made = session.agenerate(PROMPT, max_new_tokens=400)
            async for _ in made:
                break
            await made.aclose()
            await made.aclose()
            assert made.finish_reason == "cancelled"
            assert [piece async for piece in made] == []
            unused = session.agenerate(PROMPT)
            await unused.aclose()
            assert (unused.finish_reason, unused.new_tokens) == ("cancelled", 0)

        before = threading.active_count()
        asyncio.run(run())
        until(lambda: threading.active_count() <= before)

    def test_errors(self, session: Session) -> None:
        with pytest.raises(InputError, match="temperature"):
            session.agenerate(PROMPT, temperature=-1)
        with pytest.raises(TypeError, match="nonsense"):
            session.agenerate(PROMPT, nonsense=1)

        async def run() -> None:
            for prompt, how, words in (
                ([], {}, "prompt is empty"),
                ([384], {}, "384"),
                ("x", {"grammar": Grammar.regex("(")}, "llguidance|cannot be compiled"),
            ):
                with pytest.raises(InputError, match=words):
                    await anext(session.agenerate(prompt, **how))

        asyncio.run(run())

    def test_two_sessions_at_once(self, session: Session, tiny_bundle_fp32: Path) -> None:
        expected = session.generate(PROMPT, max_new_tokens=30).text()

        async def text(one: Session) -> str:
            made = one.agenerate(PROMPT, max_new_tokens=30)
            return "".join([piece.text async for piece in made])

        async def run() -> None:
            with pocketmoe.open(tiny_bundle_fp32) as other:
                assert await asyncio.gather(text(session), text(other)) == [expected] * 2

        asyncio.run(run())


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user"}, "content of message 1 must be text, not None"),
        ({"role": "user", "content": 5}, "content of message 1 must be text, not 5"),
        ({"content": "x"}, "message 1 must be a mapping with a role"),
        ("x", "message 1 must be a mapping"),
    ],
)
def test_messages_that_are_none(served_bundle: Path, message: object, words: str) -> None:
    with pocketmoe.open(served_bundle) as session, pytest.raises(InputError, match=words):
        session.generate([{"role": "user", "content": "x"}, message])  # type: ignore[list-item]
