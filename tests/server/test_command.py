"""`serve`'s options, and bundles that can answer a part of what is asked."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pocketmoe.cli import main
from pocketmoe.tests.support.serving import CHAT, TEXT, ask, chat, completion, live_server


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--api-key-file", "/", "is a directory; name a file"),
        ("--timeout", "0", "0<x<=86400"),
        ("--cors-origin", "https://a.example/", "is no origin"),
        ("--cors-origin", "foo", "is no origin"),
        ("--allow-host", "http://box.lan:8471/", "is no name"),
        ("--allow-host", "box.lan:8471", "is no name"),
        ("--name", " ", "--name is empty"),
    ],
)
def test_options_that_would_serve_nobody(
    tiny_bundle: Path, option: str, value: str, word: str
) -> None:
    done = CliRunner().invoke(main, ["serve", str(tiny_bundle), option, value])
    assert done.exit_code == 2
    assert word in done.stderr
    assert "chmod" not in done.stderr


def test_a_bundle_without_a_chat_template(tiny_bundle: Path) -> None:
    with live_server(tiny_bundle) as server:
        status, body, _ = ask(server.port, CHAT, chat())
        assert status == 400
        assert "/v1/completions" in body["error"]["message"]
        assert ask(server.port, TEXT, completion())[0] == 200


def test_a_template_without_tools(compile_served: Any) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with live_server(compile_served(template)) as server:
        tools = [{"type": "function", "function": {"name": "f"}}]
        status, body, _ = ask(server.port, CHAT, chat(tools=tools))
        assert (status, body["error"]["param"]) == (400, "tools")
        assert "template knows no tools" in body["error"]["message"]
        assert ask(server.port, CHAT, chat())[0] == 200
