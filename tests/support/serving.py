"""Servers for tests: a process of its own, or a thread whose parts can be looked at."""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from pocketmoe.runtime.generation.generation import Generation
from pocketmoe.runtime.generation.pieces import Piece
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.session import Session
from pocketmoe.server.application import Access, make_application
from pocketmoe.server.http.listening import bind, make_server, run_server
from pocketmoe.server.service import Limits, Service
from pocketmoe.tests.support.waiting import PATIENCE, until

COMMAND = (sys.executable, "-m", "pocketmoe")
MODEL = "tiny"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"max_tokens": 400, "logit_bias": {"0": -100}}  # an answer that takes a while


@contextlib.contextmanager
def server_process(bundle: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`pocketmoe serve` at a free port, which it tells."""
    command = [*COMMAND, "serve", str(bundle), "--port", "0", "--name", MODEL, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r":(\d+)/v1", line)
        assert found, line
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class SlowGeneration:
    def __init__(self, generation: Generation, delay: float):
        self._generation, self._delay = generation, delay

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generation, name)

    def __enter__(self) -> "SlowGeneration":
        return self

    def __exit__(self, *_: object) -> None:
        self._generation.close()

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._generation:
            time.sleep(self._delay)
            yield piece


class SlowSession:
    """A session that takes a while for each token. gate: once it is there, a generation waits for
    it before its first token."""

    def __init__(self, session: Session, delay: float):
        self._session, self.delay = session, delay

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def generate(self, *arguments: Any, **options: Any) -> SlowGeneration:
        return SlowGeneration(self._session.generate(*arguments, **options), self.delay)


class LiveServer:
    """A server in a thread. sessions: SlowSessions on bundles of their own."""

    def __init__(self, sessions: Sequence[Any], limits: Limits, access: Access):
        self.sessions = sessions
        self.service = Service(sessions, MODEL, limits)
        self._listener = bind("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self._server = make_server(make_application(self.service, access), self.service)
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(run_server(self._server, self._listener, ready.set))
        )
        self._thread.start()
        assert ready.wait(PATIENCE)

    def stop(self) -> None:
        self._server.handle_exit(15, None)

    def close(self) -> None:
        self.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()
        self.service.close()

    def wait_for(self, running: int, queued: int = 0) -> None:
        until(lambda: (self.service.pool.running, self.service.pool.queued) == (running, queued))

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)


@contextlib.contextmanager
def live_server(
    bundle: Path,
    *,
    parallel: int = 1,
    delay: float = 0.0,
    limits: Limits | None = None,
    access: Access | None = None,
) -> Iterator[LiveServer]:
    with contextlib.ExitStack() as ends:
        opened = [ends.enter_context(open_bundle(bundle, threads=1)) for _ in range(parallel)]
        server = LiveServer(
            [SlowSession(session, delay) for session in opened],
            limits or Limits(grace=5),
            access or Access(),
        )
        ends.callback(server.close)
        yield server


def ask(
    port: int,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers. body: bytes as they are, anything else as JSON."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if body is None else {"content-type": "application/json"}
        chosen = method or ("GET" if body is None else "POST")
        connection.request(chosen, path, body=data, headers={**kind, **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        told = {name.lower(): value for name, value in response.getheaders()}
        if told.get("content-type", "").startswith("application/json") and text:
            return response.status, json.loads(text), told
        return response.status, text.decode(), told
    finally:
        connection.close()


def chat(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "def main("}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8, **changes}


def completion(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "def main(", "temperature": 0, "max_tokens": 8, **changes}


class RawStream:
    """A stream read by hand. status: of HTTP."""

    def __init__(self, port: int, path: str, body: dict[str, Any]):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        data = json.dumps({**body, "stream": True}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\nconnection: close\r\n\r\n"
        )
        self._socket.sendall(head.encode() + data)
        self._file = self._socket.makefile("rb")

    def events(self) -> Iterator[dict[str, Any]]:
        """Until [DONE], or the end."""
        for line in self._file:
            if line.startswith(b"data: "):
                if line.strip() == b"data: [DONE]":
                    return
                yield json.loads(line[6:])

    def text(self) -> str:
        return "".join(
            choice.get("text", choice.get("delta", {}).get("content") or "")
            for event in self.events()
            for choice in event.get("choices", ())
        )

    def close(self) -> None:
        self._file.close()
        self._socket.close()
