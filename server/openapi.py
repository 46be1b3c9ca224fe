"""The OpenAPI description of the server, made from what its readers check requests by.

    python -m pocketmoe.server.openapi     # or make openapi

writes it to openapi.json beside this file, of which the reference of the HTTP API is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .openai import (
    answer,
    chat_answer,
    completion_answer,
    messages,
    models,
    parameters,
    response_format,
    tools,
)
from .openai.fields import Parameter, properties
from .openai.kinds import Schema, ref
from .refusals import ERROR_SCHEMA

FILE = Path(__file__).with_name("openapi.json")
_ABOUT = (
    "A model over HTTP, in the form of OpenAI's API. A parameter that is not listed here is "
    "refused with a 400 that names it; null stands for a parameter that is left out."
)
_GET_REFUSALS = (401, 403, 405)
_OPEN_REFUSALS = (403, 405)  # of what needs no key
_POST_REFUSALS = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504)
_WIDTH = 100  # columns of openapi.json


@cache
def description() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "pocketmoe serve", "version": "1", "description": _ABOUT},
        "security": [{"key": []}, {}],
        "paths": paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Refusal": {"description": "An error, in one line.", **json_content(ref("Error"))},
                "Busy": {
                    "description": "The queue is full.",
                    "headers": {
                        "Retry-After": {
                            "description": "Seconds.",
                            "required": True,
                            "schema": {"type": "integer", "minimum": 1},
                        }
                    },
                    **json_content(ref("Error")),
                },
            },
            "schemas": schemas(),
        },
    }


def paths() -> dict[str, Any]:
    """By path, what can be asked there. The page's own paths, /live/…, are no part of the API."""
    model_name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }
    model_list = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref("Model")},
        },
    }
    health = json_content(ref("Health"))
    return {
        "/v1/chat/completions": {
            "post": generation(
                "chat", "Answer a conversation.", "The answer", "ChatRequest", "Chat"
            )
        },
        "/v1/completions": {
            "post": generation(
                "complete", "Continue a text.", "The text", "CompletionRequest", "Completion"
            )
        },
        "/v1/models": {
            "get": {
                "operationId": "models",
                "summary": "The model that is served.",
                "responses": {
                    "200": {"description": "A list of one model.", **json_content(model_list)},
                    **refusals(_GET_REFUSALS),
                },
            }
        },
        "/v1/models/{name}": {
            "get": {
                "operationId": "model",
                "summary": "The model that is served, by its name.",
                "parameters": [model_name],
                "responses": {
                    "200": {"description": "The model.", **json_content(ref("Model"))},
                    **refusals((400, 401, 403, 404, 405)),
                },
            }
        },
        "/health": {
            "get": {
                "operationId": "health",
                "summary": "Whether requests are let in.",
                "security": [],
                "responses": {
                    "200": {"description": "They are.", **health},
                    **refusals(_OPEN_REFUSALS),
                    "503": {"description": "The server is stopping.", **health},
                },
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Figures in Prometheus' text format.",
                "responses": {
                    "200": {
                        "description": "The figures.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    **refusals(_GET_REFUSALS),
                },
            }
        },
        "/openapi.json": {
            "get": {
                "operationId": "openapi",
                "summary": "This description.",
                "security": [],
                "responses": {
                    "200": {"description": "The description.", **json_content({"type": "object"})},
                    **refusals(_OPEN_REFUSALS),
                },
            }
        },
    }


def generation(operation: str, summary: str, answered: str, request: str, answer: str) -> Schema:
    """A POST that has a model generate. request, answer: names of components."""
    streamed = {**json_content(ref(answer))["content"], "text/event-stream": {}}
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": {"required": True, **json_content(ref(request))},
        "responses": {
            "200": {
                "description": f"{answered}; a stream of chunks where `stream` is true.",
                "content": streamed,
            },
            **refusals(_POST_REFUSALS),
        },
    }


def json_content(schema: Schema) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def refusals(statuses: Sequence[int]) -> dict[str, Any]:
    """Responses by status; 429 says when to try again."""
    return {
        str(status): {"$ref": f"#/components/responses/{'Busy' if status == 429 else 'Refusal'}"}
        for status in statuses
    }


def schemas() -> dict[str, Schema]:
    return {
        "Error": ERROR_SCHEMA,
        "Health": {
            "type": "object",
            "required": ["status"],
            "properties": {"status": {"enum": ["ok", "stopping"]}},
        },
        "Model": models.MODEL_SCHEMA,
        **answer.schemas(),
        **chat_answer.schemas(),
        **completion_answer.schemas(),
        **messages.schemas(),
        **tools.schemas(),
        **response_format.schemas(),
        "Common": {"type": "object", "properties": properties(parameters.COMMON)},
        "ChatRequest": request_schema(parameters.CHAT),
        "CompletionRequest": request_schema(parameters.COMPLETION),
    }


def request_schema(own: Sequence[Parameter[Any]]) -> Schema:
    """Of a request with the common parameters and its own."""
    needed = [parameter.name for parameter in (*parameters.COMMON, *own) if parameter.needed]
    return {
        "allOf": [ref("Common")],
        "type": "object",
        "required": needed,
        "unevaluatedProperties": False,
        "properties": properties(own),
    }


def written(value: object, indent: int = 0, before: int = 0) -> str:
    """JSON, with a line for each entry of what does not fit into one. before: columns that are
    taken in the first line."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (Mapping, list)) or indent + before + len(line) < _WIDTH:
        return line
    inner = " " * (indent + 2)
    entries = []
    if isinstance(value, Mapping):
        for name, item in value.items():
            key = f"{json.dumps(name)}: "
            entries.append(f"{inner}{key}{written(item, indent + 2, len(key))}")
    else:
        entries = [f"{inner}{written(item, indent + 2)}" for item in value]
    start, end = ("{", "}") if isinstance(value, Mapping) else ("[", "]")
    return f"{start}\n" + ",\n".join(entries) + f"\n{' ' * indent}{end}"


def main() -> None:
    FILE.write_text(f"{written(description())}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
