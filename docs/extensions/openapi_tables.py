"""An OpenAPI description as Markdown: a heading for each request, a table for each object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Schema = Mapping[str, Any]
_INNER = "#/components/schemas/"


class Row(NamedTuple):
    """A field of an object. name: with its parents', as `stream_options.include_usage`."""

    name: str
    kind: str
    required: bool
    meaning: str


def markdown(api: Mapping[str, Any]) -> str:
    """Each request with its body and its answers, then the objects that these are made of."""
    lines: list[str] = []
    for path, methods in api["paths"].items():
        for method, about in methods.items():
            lines += _request(api, f"{method.upper()} {path}", about)
    lines += ["## Objects", ""]
    for name, schema in api["components"]["schemas"].items():
        lines += [f"### {name}", "", *_schema(api, schema)]
    return "\n".join(lines)


def _request(api: Mapping[str, Any], title: str, about: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## `{title}`", "", about["summary"], "")
    if "security" in about and not about["security"]:
        yield from ("It needs no key.", "")
    for parameter in about.get("parameters", ()):
        kind = _kind(parameter["schema"])
        yield from (f"`{parameter['name']}` in the {parameter['in']}: {kind}.", "")
    if "requestBody" in about:
        for content, body in about["requestBody"]["content"].items():
            yield from (f"Body: `{content}`, {_kind(body['schema'])}.", "")
    yield from ("| status | meaning | content |", "|---|---|---|")
    statuses: dict[tuple[str, str], list[str]] = {}
    for status, response in about["responses"].items():
        statuses.setdefault(_answer(api, response), []).append(status)
    for (meaning, content), alike in statuses.items():
        yield _line(", ".join(alike), meaning, content)
    yield ""


def _answer(api: Mapping[str, Any], response: Mapping[str, Any]) -> tuple[str, str]:
    """What it means, and what it holds."""
    if "$ref" in response:
        response = api["components"]["responses"][response["$ref"].rpartition("/")[2]]
    contents = [
        f"`{content}`: {_kind(body['schema'])}" if body.get("schema") else f"`{content}`"
        for content, body in response.get("content", {}).items()
    ]
    headers = [
        f"header `{name}`: {_meaning(header) or _kind(header['schema'])}"
        for name, header in response.get("headers", {}).items()
    ]
    return _meaning(response), "; ".join([*contents, *headers])


def _schema(api: Mapping[str, Any], schema: Schema) -> Iterator[str]:
    if meaning := _meaning(schema):
        yield from (meaning, "")
    choices = schema.get("oneOf", schema.get("anyOf", ()))
    objects = [item for item in choices if "properties" in item]
    if objects:
        plain = [_kind(item) for item in choices if "properties" not in item and not _none(item)]
        yield from (_or([*plain, f"one of {len(objects)} objects"]) + ":", "")
        for item in objects:
            yield from _table(list(_rows(api, item)))
    elif rows := list(_rows(api, schema)):
        yield from _table(rows)
    else:
        yield from (f"{_kind(schema)}.", "")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    told = any(row.meaning for row in rows)
    yield "| field | type | required |" + (" meaning |" if told else "")
    yield "|---|---|---|" + ("---|" if told else "")
    for row in sorted(rows, key=lambda row: not row.required):
        cells = [f"`{row.name}`", row.kind, "yes" if row.required else ""]
        yield _line(*cells, *([row.meaning] if told else []))
    yield ""


def _rows(api: Mapping[str, Any], schema: Schema, parent: str = "") -> Iterator[Row]:
    for other in schema.get("allOf", ()):
        yield from _rows(api, _resolved(api, other), parent)
    needed = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if field is False:
            continue
        where = f"{parent}{name}"
        yield Row(where, _kind(field), name in needed, _meaning(field))
        inner = field.get("items", field)
        if "properties" in inner:
            yield from _rows(api, inner, where + ("[]." if inner is not field else "."))


def _resolved(api: Mapping[str, Any], schema: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    resolved: Schema = api["components"]["schemas"][schema["$ref"].removeprefix(_INNER)]
    return resolved


def _kind(schema: Schema) -> str:
    """The type and the range of a value, in words. That null stands for "left out" is said once."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_INNER)
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return _or([f"`{json.dumps(value)}`" for value in schema["enum"] if value is not None])
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return _or([_kind(item) for item in choices if not _none(item)])
    kinds = schema.get("type", "object")
    kinds = [kinds] if isinstance(kinds, str) else [kind for kind in kinds if kind != "null"]
    return _or([_one_kind(kind, schema) for kind in kinds]) or "`null`"


def _one_kind(kind: str, schema: Schema) -> str:
    if kind == "array":
        count = _range(schema, "minItems", "maxItems")
        items = f" of {_kind(schema['items'])}" if "items" in schema else ""
        return f"array{items}" + (f", {count} long" if count else "")
    if kind == "string":
        length = _range(schema, "minLength", "maxLength")
        pattern = f" that fits `{schema['pattern']}`" if "pattern" in schema else ""
        return f"string{pattern}" + (f" of {length} characters" if length else "")
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object whose values are: {_kind(schema['additionalProperties'])}"
    numbers = _range(schema, "minimum", "maximum")
    return f"{kind} {numbers}".strip()


def _range(schema: Schema, low: str, high: str) -> str:
    least, most = schema.get(low), schema.get(high)
    if "exclusiveMinimum" in schema:
        above = f"more than {schema['exclusiveMinimum']}"
        return f"{above}, at most {most}" if most is not None else above
    if least is not None and most is not None:
        return f"{least} to {most}"
    if most is not None:
        return f"at most {most}"
    return f"{least} or more" if least is not None else ""


def _none(schema: Schema) -> bool:
    return schema.get("type") == "null"


def _or(parts: Sequence[str]) -> str:
    return " or ".join(part for part in parts if part)


def _meaning(about: Mapping[str, Any]) -> str:
    default = about.get("default")
    text = str(about.get("description", ""))
    return text if default is None else f"{text} Default: `{json.dumps(default)}`.".strip()


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
