"""What the answers of both endpoints have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from ...runtime.generation.pieces import Piece


@dataclass
class Usage:
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

    def whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {**self._body(self.kind, choices), "usage": usage.body}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        # Chunks of text completions have the same name as the whole, those of chats another.
        kind = self.kind if self.kind == "text_completion" else f"{self.kind}.chunk"
        body = self._body(kind, choices)
        return {**body, "usage": None} if self.streams_usage else body

    def last(self, usage: Usage) -> dict[str, Any]:
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

    def whole(self, usage: Usage) -> dict[str, Any]: ...


DONE = b"data: [DONE]\n\n"


def event(chunk: dict[str, Any]) -> bytes:
    """A server-sent event."""
    text = json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
