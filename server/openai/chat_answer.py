"""The answer to a chat, whole and in chunks."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from ...runtime.generation.pieces import Piece, TokenLogprob
from ..tool_calls.call import ToolCall
from ..tool_calls.forms import CallStyle
from ..tool_calls.reader import CallReader, Part, forced_call
from .answer import Heading, TokenUsage, answer_schema
from .kinds import Schema, ref
from .tools import Tools

_TEXT: Schema = {"type": "string"}
_NO_TEXT: Schema = {"type": "null"}


def schemas() -> dict[str, Schema]:
    """Of the description's components."""
    byte = {"type": "integer", "minimum": 0, "maximum": 255}
    token = {
        "token": _TEXT,
        "logprob": {"type": "number", "maximum": 0},
        "bytes": {"type": "array", "items": byte},
        "top_logprobs": {"type": "array", "items": ref("TokenLogprob")},
    }
    function = {"name": _TEXT, "arguments": _TEXT}
    call = {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {"type": "object", "required": list(function), "properties": function},
    }
    message = {
        "type": "object",
        "required": ["role", "content", "refusal"],
        "additionalProperties": False,
        "properties": {
            "role": {"const": "assistant"},
            "content": {"type": ["string", "null"]},
            "refusal": _NO_TEXT,
            "tool_calls": {"type": "array", "minItems": 1, "items": ref("ToolCall")},
        },
    }
    logprobs = {
        "type": ["object", "null"],
        "required": ["content", "refusal"],
        "properties": {
            "content": {"type": "array", "items": ref("TokenLogprob")},
            "refusal": _NO_TEXT,
        },
    }
    return {
        "TokenLogprob": {
            "type": "object",
            "required": ["token", "logprob", "bytes"],
            "properties": token,
        },
        "ToolCall": {"type": "object", "required": list(call), "properties": call},
        "Chat": answer_schema(
            "chatcmpl", "chat.completion", {"message": message, "logprobs": logprobs}
        ),
    }


class CallTask:
    """What an answer's calls are read by. mark_token: see CallReader."""

    def __init__(self, tools: Tools, style: CallStyle, mark_token: int | None):
        self.tools, self.style, self._mark_token = tools, style, mark_token

    def reader(self) -> CallReader:
        return CallReader(self.style, self.tools.schemas, mark_token=self._mark_token)


class ChatChoice:
    """One choice as it grows. Each method returns the deltas that it makes."""

    def __init__(self, task: CallTask | None):
        self._task = task
        self._forced = task is not None and bool(task.tools.needed)
        self._reader = task.reader() if task is not None and not self._forced else None
        self._text = ""
        self.content: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.closed = False  # after the only call that may be

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        if self._forced:
            self._text += piece.text
            return []
        if self._reader is None:
            return self._tell([piece.text] if piece.text else [])
        return self._tell(self._reader.push(piece.text, piece.token_ids))

    def finish(self) -> list[dict[str, Any]]:
        if self._forced and self._task is not None:
            call = forced_call(self._task.style, self._task.tools.needed, self._text)
            return self._tell([] if call is None else [call])
        return self._tell(self._reader.finish() if self._reader is not None else [])

    def reason(self, reason: str) -> str:
        """finish_reason, from the generation's."""
        named = self._task is not None and self._task.tools.named
        return "tool_calls" if self.calls and not named and reason != "length" else reason

    def _tell(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if self.closed:
                break
            if isinstance(part, ToolCall):
                call = {
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": part.name, "arguments": part.arguments},
                }
                deltas.append({"tool_calls": [{"index": len(self.calls), **call}]})
                self.calls.append(call)
                self.closed = self._task is not None and self._task.tools.single
            else:
                self.content.append(part)
                deltas.append({"content": part})
        return deltas


class ChatAnswer:
    """spell: the bytes of a token."""

    def __init__(
        self,
        heading: Heading,
        choices: int,
        task: CallTask | None,
        spell: Callable[[int], bytes] | None,
    ):
        self.heading = heading
        self._reasons: list[str | None] = [None] * choices
        self._choices = [ChatChoice(task) for _ in range(choices)]
        self._spell = spell  # None: no probabilities are told
        self._told: list[list[dict[str, Any]]] = [[] for _ in range(choices)]
        self._untold: list[list[dict[str, Any]]] = [[] for _ in range(choices)]

    def begin(self, index: int) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": "", "refusal": None})]

    def push(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        if self._spell is not None:
            self._untold[index] += [chat_logprob(item, self._spell) for item in piece.logprobs]
        return [self._chunk(index, delta) for delta in self._choices[index].push(piece)]

    def is_closed(self, index: int) -> bool:
        return self._choices[index].closed

    def finish(self, index: int, reason: str) -> list[dict[str, Any]]:
        choice = self._choices[index]
        chunks = [self._chunk(index, delta) for delta in choice.finish()]
        self._reasons[index] = choice.reason(reason)
        return [*chunks, self._chunk(index, {}, self._reasons[index])]

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        told, self._untold[index] = self._untold[index], []
        self._told[index] += told
        return self.heading.chunk([{
            "index": index,
            "delta": delta,
            "logprobs": {"content": told, "refusal": None} if told else None,
            "finish_reason": reason,
        }])  # fmt: skip

    def whole(self, usage: TokenUsage) -> dict[str, Any]:
        return self.heading.whole([
            {
                "index": index,
                "message": self._message(choice),
                "logprobs": None if self._spell is None
                else {"content": self._told[index], "refusal": None},
                "finish_reason": self._reasons[index],
            }
            for index, choice in enumerate(self._choices)
        ], usage)  # fmt: skip

    def _message(self, choice: ChatChoice) -> dict[str, Any]:
        text = "".join(choice.content)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = choice.calls
        return message


def chat_logprob(item: TokenLogprob, spell: Callable[[int], bytes]) -> dict[str, Any]:
    return {
        **_token(item.token, item.logprob),
        "top_logprobs": [_token(spell(token), logprob) for token, logprob in item.top],
    }


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    text = token.decode("utf-8", "replace")
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(token)}
