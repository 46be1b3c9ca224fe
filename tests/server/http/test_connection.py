"""Connections: what is not HTTP, and what breaks off."""

import json
import socket
from typing import Any

import pytest

from pocketmoe.tests.support.serving import TEXT, LiveServer, until
from pocketmoe.tests.support.waiting import PATIENCE


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",  # a client that wants TLS
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_not_http(refused: Any, strict_server: LiveServer, data: bytes) -> None:
    with socket.create_connection(
        ("127.0.0.1", strict_server.port), timeout=PATIENCE
    ) as connection:
        connection.sendall(data)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    refused(TEXT, b"{}", "model")


def test_a_body_that_breaks_off_after_its_answer(
    refused: Any, strict_server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(
        ("127.0.0.1", strict_server.port), timeout=PATIENCE
    ) as connection:
        connection.sendall(head + b"3\r\nabc\r\n")
        assert connection.recv(13) == b"HTTP/1.1 404 "
        connection.sendall(b"zzzz\r\n")
        while connection.recv(4096):
            pass
    refused(TEXT, b"{}", "model")
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_client_that_goes_before_its_body_is_there(
    refused: Any, strict_server: LiveServer
) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    before = strict_server.connections
    with socket.create_connection(("127.0.0.1", strict_server.port)) as connection:
        connection.sendall((head + 'content-length: 100\r\n\r\n{"model": ').encode())
    until(lambda: strict_server.connections <= before + 1)
    refused(TEXT, b"{}", "model")
