"""Text made token by token is the text of all tokens; stop strings end it where they begin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pocketmoe.runtime.generation.pieces import Piece, PieceMaker
from pocketmoe.runtime.generation.stops import StopStrings
from pocketmoe.runtime.generation.text import TextStream, TokenBytes, _byte_letters
from pocketmoe.tests.support.examples import examples

WORDS = ["a", "b", "ab", " ", "\n", "é", "日", "🙂", "é🙂"]


def byte_level() -> Tokenizer:
    """Each byte is a token; then whole words; then pieces that begin and end within characters."""
    letters = {byte: letter for letter, byte in _byte_letters().items()}
    split = [bytes("é🙂日", "utf-8")[i:j] for i, j in ((0, 3), (1, 4), (3, 7), (5, 9))]
    known = [bytes([byte]) for byte in range(256)] + [word.encode() for word in WORDS] + split
    spelled = dict.fromkeys("".join(letters[byte] for byte in word) for word in known)
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(spelled)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """In the style of SentencePiece: what is not a word is spelled in bytes."""
    words = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁a", "▁", "b", "日", "▁é"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


STYLES = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Spelled in bytes."""
    by_bytes = {TokenBytes(tokenizer).of(token): token for token in range(256)}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def stream_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join([*(stream.push(token) for token in tokens), stream.finish()])


class TestStream:
    @pytest.mark.parametrize("style", STYLES)
    @settings(max_examples=examples(150), deadline=None)
    @given(data=st.data())
    def test_valid_text_comes_character_by_character(self, style: str, data: st.DataObject) -> None:
        tokenizer = STYLES[style]
        text = data.draw(st.text("aé日🙂\n\ufffd", max_size=30))
        stream, told = TextStream(tokenizer), ""
        for count, token in enumerate(ids_of(tokenizer, text), 1):
            told += stream.push(token)
            whole = text.encode()[:count].decode(errors="ignore")
            assert whole.rstrip("\ufffd") == told.rstrip("\ufffd")
        assert told + stream.finish() == text

    @settings(max_examples=examples(300), deadline=None)
    @given(data=st.data())
    def test_any_tokens_of_a_byte_level_tokenizer(self, data: st.DataObject) -> None:
        """What is no text comes out as the decoder writes it."""
        tokenizer = STYLES["byte level"]
        some = st.integers(0, tokenizer.get_vocab_size() - 1) | st.integers(0x80, 0xFF)
        tokens = data.draw(st.lists(some, max_size=40))
        assert stream_of(tokenizer, tokens) == tokenizer.decode(tokens)

    def test_bytes_that_are_no_text_do_not_hold_back_what_follows(self) -> None:
        for tokenizer in STYLES.values():
            stream = TextStream(tokenizer)
            (broken,) = [t for t in range(256) if TokenBytes(tokenizer).of(t) == b"\xff"]
            told = [len(stream.push(broken)) for _ in range(100)]
            assert sum(told) >= 97
            assert stream.push(tokenizer.token_to_id("b")).endswith("b")

    def test_bytes_of_tokens(self) -> None:
        first, second = (TokenBytes(tokenizer) for tokenizer in STYLES.values())
        assert [first.of(token) for token in ids_of(STYLES["byte level"], "é")] == [
            b"\xc3",
            b"\xa9",
        ]
        known = STYLES["byte level"].get_vocab_size()
        assert first.of(known - 1) == b"<end>"
        assert {first.of(token) for token in range(known)} >= {word.encode() for word in WORDS}
        assert first.of(99_999) == b""
        assert [second.of(token) for token in (0xC3, 256, 257, 259, 260, 261)] == [
            b"\xc3", b" a", b" ", "日".encode(), " é".encode(), b"<end>",
        ]  # fmt: skip


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the stop string that is whole first, the longest of those."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


class TestStops:
    @settings(max_examples=examples(400))
    @given(
        parts=st.lists(st.text("ab", max_size=4), max_size=8),
        stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    )
    def test_as_in_the_whole_text(self, parts: list[str], stops: list[str]) -> None:
        found, told, given = StopStrings(stops), "", ""
        for part in parts:
            told += found.push(part)
            given += part
            expected = cut(given, stops)
            if found.stopped:
                assert told == expected
                return
            assert expected == given
            # Nothing is held back but what a stop string may begin with.
            held = given[len(told) :]
            assert told + held == given
            assert not held or any(stop.startswith(held) for stop in stops)
            assert not any(
                stop.startswith(given[start:])
                for stop in stops for start in range(len(told))
            )  # fmt: skip
        assert told + found.finish() == "".join(parts)

    def test_a_long_one(self) -> None:
        stop = "ab" * 5000
        found = StopStrings([stop])
        told = "".join(found.push("a" if i % 2 == 0 else "b") for i in range(9999))
        assert (told, found.stopped) == ("", False)
        assert found.push("ac") == stop[:-1] + "ac"
        assert "".join(found.push(part) for part in ("x", stop[:7000], stop[7000:], "y")) == "x"
        assert found.stopped


def pieces_of(tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str]) -> list[Piece]:
    maker, logits = PieceMaker(tokenizer, stops, 0), np.zeros(1000, np.float32)
    pieces = []
    for token in tokens:
        if piece := maker.push(token, logits):
            pieces.append(piece)
        if maker.stopped:
            break
    return [*pieces, maker.finish("length")]


class TestPieces:
    def test_a_character_of_several_tokens(self) -> None:
        tokenizer = STYLES["byte level"]
        tokens = ids_of(tokenizer, "a🙂b")
        assert [(piece.text, piece.token_ids) for piece in pieces_of(tokenizer, tokens, ())] == [
            ("a", (tokens[0],)), ("🙂", tuple(tokens[1:5])), ("b", (tokens[5],)), ("", ()),
        ]  # fmt: skip

    def test_a_stop_string_within_a_token_and_a_character(self) -> None:
        """The token that has its first byte also ends the character before it."""
        tokenizer = STYLES["byte level"]
        (middle,) = [
            t for t in range(tokenizer.get_vocab_size())
            if TokenBytes(tokenizer).of(t) == "é🙂".encode()[1:4]
        ]  # fmt: skip
        start, _, *_ = ids_of(tokenizer, "é")
        rest = ids_of(tokenizer, "🙂")[2:]
        a = ids_of(tokenizer, "a")[0]
        pieces = pieces_of(tokenizer, [a, start, middle, *rest, a], ["🙂"])
        assert [(piece.text, piece.token_ids, piece.finish_reason) for piece in pieces] == [
            ("a", (a,), None), ("é", (start,), None), ("", (middle,), "stop"),
        ]  # fmt: skip

    def test_what_may_be_a_stop_string_is_held_back(self) -> None:
        tokenizer = STYLES["byte level"]
        x, *end = ids_of(tokenizer, "x<a>")
        assert [piece.text for piece in pieces_of(tokenizer, [x, *end], ["<b>"])] == [
            "x", "<a", ">", "",
        ]  # fmt: skip
        assert [piece.text for piece in pieces_of(tokenizer, [x, *end[:2]], ["<a>"])] == ["x", "<a"]
        stopped = pieces_of(tokenizer, [x, *end], ["<a>"])
        assert [(piece.text, piece.token_ids) for piece in stopped] == [("x", (x,)), ("", ())]

    @pytest.mark.parametrize("style", STYLES)
    @settings(max_examples=examples(200), deadline=None)
    @given(data=st.data())
    def test_each_token_comes_once_and_in_order(self, style: str, data: st.DataObject) -> None:
        tokenizer = STYLES[style]
        known = st.integers(0, tokenizer.get_vocab_size() - 1)
        tokens = data.draw(
            st.lists(known | st.sampled_from(ids_of(tokenizer, "aé🙂b")), max_size=30)
        )
        stops = data.draw(st.lists(st.text("aé🙂b", min_size=1, max_size=3), max_size=2))
        pieces = pieces_of(tokenizer, tokens, stops)
        told = [token for piece in pieces for token in piece.token_ids]
        assert told == tokens[: len(told)]
        assert all(piece.text for piece in pieces[:-1])
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert all(len(piece.logprobs) == len(piece.token_ids) for piece in pieces)
        text = "".join(piece.text for piece in pieces)
        if pieces[-1].finish_reason == "length":
            assert told == tokens
            if style == "byte level":
                assert text == tokenizer.decode(tokens)
        else:
            assert not any(stop in text for stop in stops)
            if (
                style == "byte level"
            ):  # the other takes back what it said, where broken bytes follow
                assert any(stop in tokenizer.decode(tokens) for stop in stops)
