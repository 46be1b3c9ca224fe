"""The common part of both endpoints' answers: heading, usage, and what an answer does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ...runtime.generation.pieces import Piece
from .kinds import Schema, ref

_COUNT: Schema = {"type": "integer", "minimum": 0}
_SOME: Schema = {"type": "integer", "minimum": 1}


def schemas() -> dict[str, Schema]:
    """Of the description's components."""
    cached = {
        "type": "object",
        "required": ["cached_tokens"],
        "additionalProperties": False,
        "properties": {"cached_tokens": _COUNT},
    }
    usage = {
        "prompt_tokens": _SOME,
        "completion_tokens": _COUNT,
        "total_tokens": _SOME,
        "prompt_tokens_details": cached,
    }
    return {
        "Usage": {
            "type": "object",
            "required": list(usage),
            "additionalProperties": False,
            "properties": usage,
        },
        "FinishReason": {"enum": ["stop", "length", "tool_calls"]},
    }


def answer_schema(prefix: str, kind: str, choice: Schema) -> Schema:
    """Of a whole answer. prefix: of its id. choice: properties of each choice, beside its index and
    finish_reason."""
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "pattern": f"^{prefix}-"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "system_fingerprint": {"type": "string"},
            "usage": ref("Usage"),
            "choices": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["index", *choice, "finish_reason"],
                    "additionalProperties": False,
                    "properties": {
                        "index": _COUNT,
                        "finish_reason": ref("FinishReason"),
                        **choice,
                    },
                },
            },
        },
    }


@dataclass
class TokenUsage:
    """Tokens of one request. cached: of the prompts, taken from what a session had seen."""

    prompt: int = 0
    cached: int = 0
    new: int = 0

    @property
    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.new,
            "total_tokens": self.prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True)
class Heading:
    """What every object of an answer begins with. created: seconds since 1970. streams_usage: each
    chunk has a usage, which is null but in the last one."""

    identity: str
    kind: str
    created: int
    model: str
    fingerprint: str
    streams_usage: bool

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def whole(self, choices: list[dict[str, Any]], usage: TokenUsage) -> dict[str, Any]:
        return {**self._body(self.kind, choices), "usage": usage.body}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        # Chunks of text completions have the same name as the whole, those of chats another.
        kind = self.kind if self.kind == "text_completion" else f"{self.kind}.chunk"
        body = self._body(kind, choices)
        return {**body, "usage": None} if self.streams_usage else body

    def last(self, usage: TokenUsage) -> dict[str, Any]:
        """The chunk with the usage and no choices."""
        return {**self.chunk([]), "usage": usage.body}


class Answer(Protocol):
    """The choices of one request as they grow. `begin`, `push` and `finish` return chunks, which
    only streams use. reason: why the generation ended."""

    heading: Heading

    def begin(self, index: int) -> list[dict[str, Any]]: ...

    def push(self, index: int, piece: Piece) -> list[dict[str, Any]]: ...

    def is_closed(self, index: int) -> bool:
        """Whether nothing can follow any more, so that its generation can end."""
        ...

    def finish(self, index: int, reason: str) -> list[dict[str, Any]]: ...

    def whole(self, usage: TokenUsage) -> dict[str, Any]: ...
