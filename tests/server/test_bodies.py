"""Bodies that are too large, or of another kind."""

import json
import socket
from typing import Any

import pytest

from pocketmoe.tests.support.serving import CHAT, TEXT, LiveServer
from pocketmoe.tests.support.waiting import PATIENCE


@pytest.mark.parametrize("length", [True, False])
def test_a_body_of_100_megabytes(refused: Any, strict_server: LiveServer, length: bool) -> None:
    """With its length told, and in chunks."""
    size = 100_000_000
    if length:
        refused(CHAT, b" " * size, None, "larger than 1.0 MiB", status=413)
        return
    with socket.create_connection(
        ("127.0.0.1", strict_server.port), timeout=PATIENCE
    ) as connection:
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
