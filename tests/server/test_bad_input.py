"""Requests that are refused, each while another request runs, which none of them may disturb."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.server.service import Limits
from pocketmoe.tests.support.serving import (
    LiveServer,
    Stream,
    ask,
    chat,
    completion,
    live_server,
    until,
)

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "x"}
LONG = {"max_tokens": 40, "logit_bias": {"0": -100}}


class Companion:
    """A request that runs all the time: its answer has to be the one that it has alone."""

    def __init__(self, server: LiveServer):
        self._server = server
        self.expected = self._once()
        self.answers: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _once(self) -> str:
        stream = Stream(self._server.port, TEXT, completion(prompt="return 0", **LONG))
        try:
            return stream.text()
        finally:
            stream.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.answers.append(self._once())

    def close(self) -> None:
        self._ended.set()
        self._thread.join(30)

    @property
    def undisturbed(self) -> bool:
        return self._thread.is_alive() and set(self.answers) <= {self.expected}


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    limits = Limits(body=1 << 20, grace=5)
    with live_server(served_bundle, parallel=2, delay=0.01, limits=limits) as server:
        yield server


@pytest.fixture(scope="module")
def companion(server: LiveServer) -> Iterator[Companion]:
    companion = Companion(server)
    yield companion
    companion.close()


@pytest.fixture
def refused(server: LiveServer, companion: Companion) -> Any:
    """Asks, and checks the refusal; then that the server answers, and the companion goes on."""

    def check(
        path: str, body: Any, param: str | None, *words: str, status: int = 400, **more: Any
    ) -> dict[str, Any]:
        answered, told, headers = ask(server.port, path, body, **more)
        assert (answered, set(told)) == (status, {"error"}), told
        error = told["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param
        assert "\n" not in error["message"]
        for word in words:
            assert word in error["message"]
        assert ask(server.port, TEXT, completion(max_tokens=1))[0] == 200
        assert companion.undisturbed
        return {**error, **headers}

    return check


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b'{"model": "tiny", ', "line 1, column 19"),
        (b"{'model': 'tiny'}", "not JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "surrogate"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"a":' * 90_000, "nested too deeply"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"x": [' + b"[]," * 60_000 + b"[]]}", "more than 108192 values"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_not_json(refused: Any, path: str, body: bytes, word: str) -> None:
    refused(path, body, None, word)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": []}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": "x" * 10_000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"user": 1}, "user"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "a", "schema": {"type": "nothing"}}}},
         "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema":
                              {"name": "a", "schema": {"type": "string", "pattern": "(("}}}},
         "response_format"),
        ({"response_format": {"type": "regex", "regex": "["}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "start: nowhere"}}, "response_format"),
        ({"tokens": 5}, "tokens"),
        ({"x" * 1000: 5}, "x" * 200),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("path", "make"), [(CHAT, chat), (TEXT, completion)])
def test_parameters_of_both(refused: Any, path: str, make: Any, change: Any, param: str) -> None:
    refused(path, make(**change), param, "")


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{**USER, "content": 5}]}, "messages[0].content"),
        ({"messages": [{**USER, "mood": "good"}]}, "messages[0].mood"),
        ({"messages": [{**USER, "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{**USER, "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{**USER, "content": "forbidden"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
         "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "1"}}]},
         "messages[0].audio"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 9}, "max_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"functions": []}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters=deep(300))]}, "tools[0]"),
        ({"tools": [tool(), tool(name="g", parameters={"type": "nothing"})],
          "tool_choice": "required"}, "tools[1].function.parameters"),
        ({"tools": [tool(parameters={"x-guidance": {}})], "tool_choice": "required"},
         "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "g"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice"),
        ({"tools": [tool()], "response_format": {"type": "json_object"}}, "response_format"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "a", "schema": deep(300)}}},
         "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_parameters_of_chats(refused: Any, change: Any, param: str) -> None:
    refused(CHAT, chat(**change), param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, 2, 100_000]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": ["x"] * 200}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"messages": [USER]}, "messages"),
    ],
)
def test_parameters_of_texts(refused: Any, change: Any, param: str | None) -> None:
    refused(TEXT, completion(**change), param)


def test_another_model(refused: Any) -> None:
    error = refused(CHAT, chat(model="gpt-4o"), "model", "'gpt-4o'", "'tiny'", status=404)
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize("prompt", ["x " * 300_000, [5] * 100_000])
def test_a_prompt_longer_than_the_context(refused: Any, prompt: Any) -> None:
    error = refused(TEXT, completion(prompt=prompt), "prompt", "context of 512 tokens")
    assert error["code"] == "context_length_exceeded"
    if isinstance(prompt, str):
        messages = [{**USER, "content": prompt}]
        refused(CHAT, chat(messages=messages), "messages", "context of 512 tokens")


@pytest.mark.parametrize("length", [True, False])
def test_a_body_of_100_megabytes(refused: Any, server: LiveServer, length: bool) -> None:
    """With its length told, and in chunks."""
    size = 100_000_000
    if length:
        refused(CHAT, b" " * size, None, "larger than 1.0 MiB", status=413)
        return
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        about = "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall((head + about).encode())
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        for _ in range(size // 0x100000):
            connection.sendall(chunk)
        connection.sendall(b"0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"
    refused(TEXT, b"{}", "model")


def test_other_content(refused: Any) -> None:
    kind = {"content-type": "text/plain"}
    refused(CHAT, b"{}", "content-type", "application/json", status=415, headers=kind)
    packed = {"content-encoding": "gzip"}
    refused(CHAT, b"\x1f\x8b", "content-encoding", "as it is", status=415, headers=packed)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/a/b/%00%ff", 404),
        ("PUT", "/", 405),
        ("PUT", "/nothing", 404),
        ("PUT", "/%00", 404),
        ("PUT", "/" + "a" * 300, 404),
    ],
)
def test_paths(refused: Any, method: str, path: str, status: int) -> None:
    refused(path, None, "model" if "models/" in path else None, method=method, status=status)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",  # a client that wants TLS
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_not_http(refused: Any, server: LiveServer, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    refused(TEXT, b"{}", "model")


def test_a_body_that_breaks_off_after_its_answer(
    refused: Any, server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b"3\r\nabc\r\n")
        assert connection.recv(13) == b"HTTP/1.1 404 "
        connection.sendall(b"zzzz\r\n")
        while connection.recv(4096):
            pass
    refused(TEXT, b"{}", "model")
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_client_that_goes_before_its_body_is_there(refused: Any, server: LiveServer) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    before = server.connections
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall((head + 'content-length: 100\r\n\r\n{"model": ').encode())
    until(lambda: server.connections <= before + 1)
    refused(TEXT, b"{}", "model")
