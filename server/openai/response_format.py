"""`response_format`: the form that an answer has to have, as a grammar."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from ...runtime.generation.grammar import Grammar
from ..refusals import missing, wrong
from .fields import NEEDED, Fields, Object, Parameter, object_schema
from .json_body import check_depth
from .kinds import Anything, Boolean, Choice, Narrowed, Schema, Text
from .parameters import RESPONSE_FORMAT

_NAME = "[a-zA-Z0-9_-]{1,64}"
_SOME = Narrowed(Text(), {"minLength": 1})

TYPE: Parameter[str] = Parameter(
    "type", Choice(("text", "json_object", "json_schema", "regex", "grammar")), NEEDED
)
REGEX: Parameter[str] = Parameter("regex", _SOME, NEEDED)
GRAMMAR: Parameter[str] = Parameter("grammar", _SOME, NEEDED, "In Lark's form.")
NAME: Parameter[str] = Parameter("name", Narrowed(Text(), {"pattern": f"^{_NAME}$"}), NEEDED)
DESCRIPTION = Parameter("description", Text(), None)
STRICT = Parameter("strict", Boolean(), False, "The schema is always kept to.")
SCHEMA: Parameter[Any] = Parameter("schema", Anything({"type": "object"}), NEEDED)
JSON_SCHEMA: Parameter[Fields] = Parameter(
    "json_schema", Object((NAME, DESCRIPTION, STRICT, SCHEMA)), NEEDED
)


def schemas() -> dict[str, Schema]:
    """Of the description's components. regex and grammar are no types of OpenAI's."""

    def of_type(names: tuple[str, ...], *more: Parameter[Any]) -> Schema:
        return object_schema((replace(TYPE, kind=Choice(names)), *more))

    types = [
        of_type(("text", "json_object")),
        of_type(("json_schema",), JSON_SCHEMA),
        of_type(("regex",), REGEX),
        of_type(("grammar",), GRAMMAR),
    ]
    return {"ResponseFormat": {"anyOf": [{"type": "null"}, *types]}}


def read_format(fields: Fields) -> Grammar | None:
    """The grammar of `response_format`; None where any text will do."""
    about = fields.read(RESPONSE_FORMAT)
    if about is None:
        return None
    kind = about.read(TYPE)
    grammar = None
    if kind == "json_object":
        grammar = Grammar.json_object()
    elif kind == "json_schema":
        grammar = Grammar.json_schema(read_schema(about))
    elif kind == "regex":
        grammar = Grammar.regex(read_text(about, REGEX))
    elif kind == "grammar":
        grammar = Grammar.lark(read_text(about, GRAMMAR))
    about.finish()
    return grammar


def read_schema(about: Fields) -> dict[str, Any]:
    named = about.read(JSON_SCHEMA)
    name = named.find(NAME)
    if name is None or not re.fullmatch(_NAME, name):
        raise wrong(named.where("name"), "must be 1 to 64 letters, digits, '_' or '-'")
    named.read(DESCRIPTION)
    named.read(STRICT)
    schema: object = named.read(SCHEMA)
    if not isinstance(schema, dict):
        raise wrong(named.where("schema"), "must be an object")
    check_depth(schema, named.where("schema"))
    named.finish()
    return schema


def read_text(about: Fields, parameter: Parameter[str]) -> str:
    text = about.read(parameter)
    if not text:
        raise missing(about.where(parameter.name))
    return text
