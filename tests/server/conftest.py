"""Requests that are refused, each while another request runs, which none of them may disturb."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.server.service import Limits
from pocketmoe.tests.support.serving import (
    TEXT,
    LiveServer,
    RawStream,
    ask,
    completion,
    live_server,
)


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
        stream = RawStream(
            self._server.port,
            TEXT,
            completion(prompt="return 0", max_tokens=40, logit_bias={"0": -100}),
        )
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
def strict_server(served_bundle: Path) -> Iterator[LiveServer]:
    limits = Limits(body=1 << 20, grace=5)
    with live_server(served_bundle, parallel=2, delay=0.01, limits=limits) as server:
        yield server


@pytest.fixture(scope="module")
def companion(strict_server: LiveServer) -> Iterator[Companion]:
    companion = Companion(strict_server)
    yield companion
    companion.close()


@pytest.fixture
def refused(strict_server: LiveServer, companion: Companion) -> Any:
    """Asks, and checks the refusal; then that the server answers, and the companion goes on."""

    def check(
        path: str, body: Any, param: str | None, *words: str, status: int = 400, **more: Any
    ) -> dict[str, Any]:
        answered, told, headers = ask(strict_server.port, path, body, **more)
        assert (answered, set(told)) == (status, {"error"}), told
        error = told["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param
        assert "\n" not in error["message"]
        for word in words:
            assert word in error["message"]
        assert ask(strict_server.port, TEXT, completion(max_tokens=1))[0] == 200
        assert companion.undisturbed
        return {**error, **headers}

    return check
