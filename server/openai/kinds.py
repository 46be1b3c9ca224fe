"""The kinds of values that a request's fields have: each says how it is read, and how it is
described as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..refusals import show, unsupported, wrong

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Schema = dict[str, Any]


class ValueKind(Protocol[T_co]):
    @property
    def schema(self) -> Schema:
        """JSON Schema of what `read` takes; null aside, which stands for a field that is left
        out."""
        ...

    def read(self, value: Any, where: str) -> T_co:
        """The value as the server uses it. value: JSON, not null. where: it stands, for errors.

        Raises:
            RequestError: it is not of this kind.
        """
        ...


@dataclass(frozen=True)
class Anything:
    """As it is: whoever takes it checks it, as `described` says."""

    described: Mapping[str, Any]

    @property
    def schema(self) -> Schema:
        return dict(self.described)

    def read(self, value: Any, where: str) -> Any:
        return value


@dataclass(frozen=True)
class Narrowed(Generic[T]):
    """What `kind` reads, of which whoever takes it refuses a part: `described` says so in the
    schema."""

    kind: ValueKind[T]
    described: Mapping[str, Any]

    @property
    def schema(self) -> Schema:
        return {**self.kind.schema, **self.described}

    def read(self, value: Any, where: str) -> T:
        return self.kind.read(value, where)


@dataclass(frozen=True)
class Only(Generic[T]):
    """One value of a kind, as the others ask for what is not here. remedy: what to do instead."""

    kind: ValueKind[T]
    value: T
    remedy: str = "leave it out"

    @property
    def schema(self) -> Schema:
        return {"enum": [self.value]}

    def read(self, value: Any, where: str) -> T:
        read = self.kind.read(value, where)
        if read != self.value:
            raise unsupported(where, self.remedy)
        return read


@dataclass(frozen=True)
class Boolean:
    @property
    def schema(self) -> Schema:
        return {"type": "boolean"}

    def read(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise wrong(where, f"must be true or false, not {show(value)}")
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`; 2.0 is one."""

    low: int
    high: int

    @property
    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def read(self, value: Any, where: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not is_whole(value) or not self.low <= value <= self.high:
            raise wrong(
                where, f"must be a whole number from {self.low} to {self.high}, not {show(value)}"
            )
        whole: int = value
        return whole


@dataclass(frozen=True)
class Number:
    """A number from `low`, or more than it where `above`, to `high`."""

    low: int
    high: int
    above: bool = False

    @property
    def schema(self) -> Schema:
        least = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "number", least: self.low, "maximum": self.high}

    def holds(self, value: Any) -> bool:
        fits = is_whole(value) or isinstance(value, float)
        return fits and self.low <= value <= self.high and not (self.above and value == self.low)

    def read(self, value: Any, where: str) -> float:
        if not self.holds(value):
            least = f"more than {self.low} and at most" if self.above else f"from {self.low} to"
            raise wrong(where, f"must be a number {least} {self.high}, not {show(value)}")
        return float(value)


@dataclass(frozen=True)
class Text:
    """most: characters."""

    most: int | None = None

    @property
    def schema(self) -> Schema:
        longest = {} if self.most is None else {"maxLength": self.most}
        return {"type": "string", **longest}

    def read(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise wrong(where, f"must be a string, not {show(value)}")
        if self.most is not None and len(value) > self.most:
            raise wrong(where, f"must have at most {self.most} characters, not {len(value)}")
        return value


@dataclass(frozen=True)
class Choice:
    names: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        return {"enum": list(self.names)} if len(self.names) > 1 else {"const": self.names[0]}

    def read(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise wrong(where, f"must be one of {', '.join(self.names)}, not {show(value)}")
        return value


@dataclass(frozen=True)
class Array:
    """At most `most` values, which whoever takes it reads. items: their schema."""

    most: int
    items: Mapping[str, Any] | None = None

    @property
    def schema(self) -> Schema:
        items = {} if self.items is None else {"items": dict(self.items)}
        return {"type": "array", "maxItems": self.most, **items}

    def read(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise wrong(where, f"must be an array, not {show(value)}")
        if len(value) > self.most:
            raise wrong(where, f"must have at most {self.most} entries, not {len(value)}")
        return value


@dataclass(frozen=True)
class Component(Generic[T]):
    """A kind that is described among the description's components, null included."""

    kind: ValueKind[T]
    name: str

    @property
    def schema(self) -> Schema:
        return ref(self.name)

    def read(self, value: Any, where: str) -> T:
        return self.kind.read(value, where)


def is_whole(value: object) -> bool:
    """Whether it is an integer: JSON's true is none, although Python's is."""
    return isinstance(value, int) and not isinstance(value, bool)


def ref(name: str) -> Schema:
    """A schema that stands among the description's components."""
    return {"$ref": f"#/components/schemas/{name}"}
