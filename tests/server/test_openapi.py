"""The description: the committed file is what the code makes, and the code does what it says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from pocketmoe.server.application import Access, make_application
from pocketmoe.server.openai.parameters import CHAT, COMMON, COMPLETION
from pocketmoe.server.openapi import FILE, description, written
from pocketmoe.tests.support.serving import LiveServer, ask, chat, completion, live_server

CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with live_server(served_bundle) as server:
        yield server


def test_the_file_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == f"{written(description())}\n", "run: make openapi"


def test_lines_are_short_where_they_can_be() -> None:
    value = {"a": [1, {"b": "c" * 50}], "d": {"e": None, "f": "é" * 80}, "g": []}
    text = written(value)
    assert json.loads(text) == value
    assert text.splitlines()[1] == f'  "a": [1, {{"b": "{"c" * 50}"}}],'
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_schema_is_used() -> None:
    document = description()
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text, name


def test_every_endpoint_is_described(server: LiveServer) -> None:
    """But for the page's own."""
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in make_application(server.service, Access()).routes
        if isinstance(route, Route) and not route.path.startswith("/live/")
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, item in description()["paths"].items() for method in item}
    assert routes == described


@pytest.mark.parametrize(
    ("path", "make", "name"),
    [(CHATS, chat, parameter.name) for parameter in (*COMMON, *CHAT)]
    + [(TEXTS, completion, parameter.name) for parameter in (*COMMON, *COMPLETION)],
)
def test_every_parameter_is_read(server: LiveServer, path: str, make: Any, name: str) -> None:
    status, body, _ = ask(server.port, path, make(**{name: {"no": ["such", "value"]}}))
    if name == "chat_template_kwargs":  # takes any object
        assert status == 200
        return
    assert status in (400, 404)
    assert (body["error"]["param"] or "").startswith(name)
    assert (body["error"]["code"], body["error"]["param"]) != ("unknown_parameter", name)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHATS, chat(), "Chat"),
        (CHATS, chat(logprobs=True, top_logprobs=1, n=2), "Chat"),
        (CHATS, chat(tools=[TOOL], tool_choice="required", max_tokens=200, seed=1), "Chat"),
        (TEXTS, completion(), "Completion"),
        (TEXTS, completion(logprobs=1, n=2, best_of=2), "Completion"),
        (TEXTS, completion(temperature=7), "Error"),
        ("/v1/nothing", None, "Error"),
        ("/v1/models", {}, "Error"),
        ("/v1/models/tiny", None, "Model"),
        ("/health", None, "Health"),
    ],
)
def test_bodies_are_as_described(server: LiveServer, path: str, body: Any, name: str) -> None:
    status, answer, headers = ask(server.port, path, body)
    document = {**description(), "$ref": f"#/components/schemas/{name}"}
    jsonschema.Draft202012Validator(document).validate(answer)
    assert (status >= 400) == (name == "Error")
    assert headers["x-request-id"].startswith("req_")


def test_it_is_served(server: LiveServer) -> None:
    assert ask(server.port, "/openapi.json")[1] == description()


@pytest.mark.parametrize("parameter", [*COMMON, *CHAT, *COMPLETION], ids=lambda one: one.name)
def test_defaults_fit_their_own_schema(parameter: Any) -> None:
    schema = {**description(), **parameter.schema}
    validator = jsonschema.Draft202012Validator(schema)
    if "default" in parameter.schema:
        validator.validate(parameter.schema["default"])
    assert validator.is_valid(None) != parameter.needed
    assert parameter.about
