"""The answer to a text completion, whole and in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...runtime.generation.pieces import Piece, TokenLogprob
from .answer import Heading, TokenUsage, answer_schema
from .kinds import Schema


def schemas() -> dict[str, Schema]:
    """Of the description's components."""
    number = {"type": "number"}
    lists = {
        "tokens": {"type": "string"},
        "token_logprobs": number,
        "top_logprobs": {"type": "object", "additionalProperties": number},
        "text_offset": {"type": "integer", "minimum": 0},
    }
    logprobs = {
        "type": ["object", "null"],
        "required": list(lists),
        "properties": {name: {"type": "array", "items": item} for name, item in lists.items()},
    }
    choice = {"text": {"type": "string"}, "logprobs": logprobs}
    return {"Completion": answer_schema("cmpl", "text_completion", choice)}


class CompletionAnswer:
    """echoes: text that stands before each choice. spell: the bytes of a token; None where no
    probabilities are told."""

    def __init__(
        self, heading: Heading, echoes: Sequence[str], spell: Callable[[int], bytes] | None
    ):
        self.heading = heading
        self._reasons: list[str | None] = [None for _ in echoes]
        self._echoes = echoes
        self._spell = spell
        self._texts: list[list[str]] = [[] for _ in echoes]
        self._tokens: list[list[TokenLogprob]] = [[] for _ in echoes]
        self._offsets: list[list[int]] = [[] for _ in echoes]
        self._lengths = [0 for _ in echoes]

    def begin(self, index: int) -> list[dict[str, Any]]:
        echo = self._echoes[index]
        return [self._tell(index, echo, ())] if echo else []

    def push(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        logprobs = piece.logprobs if self._spell is not None else ()
        if not piece.text and not logprobs:
            return []
        return [self._tell(index, piece.text, logprobs)]

    def is_closed(self, index: int) -> bool:
        return False

    def finish(self, index: int, reason: str) -> list[dict[str, Any]]:
        self._reasons[index] = reason
        return [self._chunk(index, "", None)]

    def _tell(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        offset = self._lengths[index]
        offsets = []
        for item in logprobs:
            offsets.append(offset)
            offset += len(item.token.decode("utf-8", "replace"))
        self._texts[index].append(text)
        self._lengths[index] += len(text)
        self._tokens[index] += logprobs
        self._offsets[index] += offsets
        return self._chunk(index, text, self._logprobs(logprobs, offsets) if logprobs else None)

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return self.heading.chunk([{
            "index": index, "text": text, "logprobs": logprobs,
            "finish_reason": self._reasons[index],
        }])  # fmt: skip

    def whole(self, usage: TokenUsage) -> dict[str, Any]:
        return self.heading.whole([
            {
                "index": index,
                "text": "".join(texts),
                "logprobs": None if self._spell is None
                else self._logprobs(self._tokens[index], self._offsets[index]),
                "finish_reason": self._reasons[index],
            }
            for index, texts in enumerate(self._texts)
        ], usage)  # fmt: skip

    def _logprobs(self, items: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
        spell = self._spell or (lambda _: b"")
        return {
            "tokens": [_text(item.token) for item in items],
            "token_logprobs": [_finite(item.logprob) for item in items],
            "top_logprobs": [
                {
                    **{_text(spell(token)): _finite(logprob) for token, logprob in item.top},
                    _text(item.token): _finite(item.logprob),
                }
                for item in items
            ],
            "text_offset": list(offsets),
        }


def _text(token: bytes) -> str:
    """A token as text; bytes that are no character as OpenAI writes them."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)
