"""The fields of a JSON object in a request: declared once as parameters, read and described by
what was declared. What no parameter takes is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..refusals import RequestError, missing, show, unsupported, wrong
from .kinds import Schema, ValueKind

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
NEEDED: Any = object()  # the default of a parameter that must not be left out


@dataclass(frozen=True)
class Parameter(Generic[T_co]):
    """A field by name.

    kind: of its values. default: the value where it is left out, or NEEDED. about: what it does,
    for the description.
    """

    name: str
    kind: ValueKind[T_co]
    default: T_co
    about: str = ""

    @property
    def needed(self) -> bool:
        return self.default is NEEDED

    @property
    def schema(self) -> Schema:
        schema = self.kind.schema if self.needed else or_null(self.kind.schema)
        if isinstance(self.default, (bool, int, float, str)):
            schema["default"] = self.default
        if self.about:
            schema["description"] = self.about
        return schema


def or_null(schema: Schema) -> Schema:
    """The schema, of null too; one that is defined elsewhere says so itself."""
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return schema if "null" in kinds else {**schema, "type": [*kinds, "null"]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [{"type": "null"}, *schema["anyOf"]]}
    return dict(schema)


def properties(parameters: Sequence[Parameter[Any]]) -> Schema:
    return {parameter.name: parameter.schema for parameter in parameters}


def object_schema(parameters: Sequence[Parameter[Any]]) -> Schema:
    """Of an object with these fields and no others."""
    needed = [parameter.name for parameter in parameters if parameter.needed]
    return {
        "type": "object",
        **({"required": needed} if needed else {}),
        "additionalProperties": False,
        "properties": properties(parameters),
    }


class Fields:
    """A JSON object, whose fields are taken one by one. A field that is null counts as left out.

    path: where it is in the body, in errors.
    """

    def __init__(self, data: object, path: str = ""):
        if not isinstance(data, dict):
            raise wrong(path or "the body", f"must be an object, not {show(data)}")
        self._left: dict[str, Any] = {
            name: value for name, value in data.items() if value is not None
        }
        self._path = path

    def where(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path and name else self._path or name

    def __contains__(self, parameter: Parameter[Any]) -> bool:
        return parameter.name in self._left

    def read(self, parameter: Parameter[T]) -> T:
        """The value, or the default.

        Raises:
            RequestError: it is missing and needed, or of another kind.
        """
        if parameter.needed and parameter not in self:
            raise missing(self.where(parameter.name))
        value = self.find(parameter)
        return parameter.default if value is None else value

    def find(self, parameter: Parameter[T]) -> T | None:
        """The value; None where it is left out, even if it is needed."""
        if parameter not in self:
            return None
        return parameter.kind.read(self._left.pop(parameter.name), self.where(parameter.name))

    def entries(self) -> dict[str, Any]:
        """All that is left."""
        left, self._left = self._left, {}
        return left

    def refuse(self, remedies: Mapping[str, str]) -> None:
        """Refuses fields by name; `remedies` says what to do instead."""
        for name, remedy in remedies.items():
            if name in self._left:
                raise unsupported(self.where(name), remedy)

    def finish(self) -> None:
        """Raises RequestError for a field that nobody took."""
        for name in self._left:
            raise RequestError(
                f"unknown parameter: {show(self.where(name))}",
                param=self.where(name)[:200],
                code="unknown_parameter",
            )


@dataclass(frozen=True)
class Object:
    """An object with these fields, which whoever takes it reads and finishes."""

    parameters: tuple[Parameter[Any], ...] = ()

    @property
    def schema(self) -> Schema:
        return object_schema(self.parameters)

    def read(self, value: Any, where: str) -> Fields:
        return Fields(value, where)
