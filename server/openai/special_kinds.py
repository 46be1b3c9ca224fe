"""The kinds of values of single parameters: `prompt`, `stop`, `logit_bias`, `metadata` and
`modalities`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..refusals import show, wrong
from .kinds import Number, Schema, is_whole

Prompt = str | list[int]


@dataclass(frozen=True)
class Prompts:
    """One prompt or several, each text or token ids. Of more than `most`, one more than that is
    read. last: the largest number that may stand for a token."""

    most: int
    last: int

    @property
    def schema(self) -> Schema:
        ids = {
            "type": "array",
            "minItems": 1,
            "items": {"type": "integer", "minimum": 0, "maximum": self.last},
        }
        several = {"type": "array", "minItems": 1, "maxItems": self.most}
        texts = {**several, "items": {"type": "string"}}
        return {"anyOf": [{"type": "string"}, ids, texts, {**several, "items": ids}]}

    def read(self, value: Any, where: str) -> list[Prompt]:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not value:
            raise wrong(
                where, f"must be a string, token ids, or an array of either, not {show(value)}"
            )
        if isinstance(value[0], int):
            return [self._ids(value, where)]
        return [
            item if isinstance(item, str) else self._ids(item, where)
            for item in value[: self.most + 1]
        ]

    def _ids(self, ids: Any, where: str) -> list[int]:
        fits = isinstance(ids, list) and all(is_whole(token) for token in ids)
        if not fits or not all(0 <= token <= self.last for token in ids):
            raise wrong(where, "must be text or token ids, whole numbers from 0 on")
        checked: list[int] = ids
        return checked


@dataclass(frozen=True)
class StopTexts:
    """One text or at most `most`. longest: characters of one."""

    most: int
    longest: int

    @property
    def schema(self) -> Schema:
        text = {"type": "string", "minLength": 1, "maxLength": self.longest}
        return {"anyOf": [text, {"type": "array", "maxItems": self.most, "items": text}]}

    def read(self, value: Any, where: str) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise wrong(where, f"must be a string or an array of strings, not {show(value)}")
        if len(texts) > self.most:
            raise wrong(where, f"must have at most {self.most} strings, not {len(texts)}")
        for text in texts:
            if not 1 <= len(text) <= self.longest:
                raise wrong(
                    where, f"must be strings of 1 to {self.longest} characters, not {len(text)}"
                )
        return tuple(texts)


@dataclass(frozen=True)
class TokenNumbers:
    """A number for each of some tokens, by their ids."""

    number: Number

    @property
    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": self.number.schema,
        }

    def read(self, value: Any, where: str) -> dict[int, float] | None:
        """None where there are none."""
        if not isinstance(value, dict):
            raise wrong(where, f"must be an object, not {show(value)}")
        numbers = {}
        for token, number in value.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise wrong(where, f"has {show(token)} for a token id")
            if not self.number.holds(number):
                low, high = self.number.low, self.number.high
                raise wrong(where, f"must have numbers from {low} to {high}, not {show(number)}")
            numbers[int(token)] = float(number)
        return numbers or None


@dataclass(frozen=True)
class Labels:
    """At most `most` texts, each with a name."""

    most: int

    @property
    def schema(self) -> Schema:
        return {
            "type": "object",
            "maxProperties": self.most,
            "additionalProperties": {"type": "string"},
        }

    def read(self, value: Any, where: str) -> dict[str, str]:
        if not isinstance(value, dict):
            raise wrong(where, f"must be an object, not {show(value)}")
        labels = {name: text for name, text in value.items() if text is not None}
        if len(labels) > self.most or not all(isinstance(text, str) for text in labels.values()):
            raise wrong(where, f"must be an object of at most {self.most} strings")
        return labels


@dataclass(frozen=True)
class TextAlone:
    """The one kind of answers that there is, in an array."""

    @property
    def schema(self) -> Schema:
        return {"type": "array", "maxItems": 1, "items": {"const": "text"}}

    def read(self, value: Any, where: str) -> list[str]:
        if not isinstance(value, list):
            raise wrong(where, f"must be an array, not {show(value)}")
        if len(value) > 2:
            raise wrong(where, f"must have at most 2 entries, not {len(value)}")
        if value not in ([], ["text"]):
            raise wrong(where, 'must be ["text"]: this model writes text alone')
        return value
