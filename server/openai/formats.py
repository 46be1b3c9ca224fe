"""`response_format`: the form that an answer has to have, as a grammar."""

from __future__ import annotations

import re
from typing import Any

from ...runtime.generation.grammar import Grammar
from ..refusals import wrong
from .fields import Fields, check_depth

KINDS = ("text", "json_object", "json_schema", "regex", "grammar")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def read_format(fields: Fields) -> Grammar | None:
    """The grammar of `response_format`; None where any text will do.

    json_schema and json_object are OpenAI's; `{"type": "regex", "regex": …}` and
    `{"type": "grammar", "grammar": …}`, a grammar in Lark's form, are further ones.
    """
    about = fields.inner("response_format")
    if about is None:
        return None
    kind = about.choice("type", KINDS)
    if kind is None:
        raise wrong("response_format.type", "is missing", "missing_required_parameter")
    grammar = None
    if kind == "json_object":
        grammar = Grammar.json_object()
    elif kind == "json_schema":
        grammar = Grammar.json_schema(read_schema(about))
    elif kind == "regex":
        grammar = Grammar.regex(need_text(about, "regex"))
    elif kind == "grammar":
        grammar = Grammar.lark(need_text(about, "grammar"))
    about.finish()
    return grammar


def read_schema(about: Fields) -> dict[str, Any]:
    named = about.inner("json_schema")
    if named is None:
        raise wrong(about.where("json_schema"), "is missing", "missing_required_parameter")
    name = named.text("name")
    if name is None or not _NAME.fullmatch(name):
        raise wrong(named.where("name"), "must be 1 to 64 letters, digits, '_' or '-'")
    named.text("description")
    named.boolean("strict")  # the schema is always kept to
    schema = named.need("schema")
    if not isinstance(schema, dict):
        raise wrong(named.where("schema"), "must be an object")
    check_depth(schema, named.where("schema"))
    named.finish()
    return schema


def need_text(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if not text:
        raise wrong(fields.where(name), "is missing", "missing_required_parameter")
    return text
