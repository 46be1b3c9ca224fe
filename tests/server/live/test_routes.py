"""The live model over HTTP: facts, events, and the memory budget."""

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketmoe.server.application import Access
from pocketmoe.server.http.key_file import read_keys
from pocketmoe.server.live.routes import MOST_WATCHERS
from pocketmoe.tests.support.serving import LiveServer, ask, completion, live_server, until
from pocketmoe.tests.support.waiting import PATIENCE


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with live_server(served_bundle) as server:
        yield server


class Watcher:
    """A stream of events, read by hand."""

    def __init__(self, port: int, **headers: str):
        self._connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._connection.request("GET", "/live/events", headers=headers)
        self.response = self._connection.getresponse()

    def next(self) -> dict[str, Any]:
        while line := self.response.readline():
            if line.startswith(b"data: "):
                told: dict[str, Any] = json.loads(line[6:])
                return told
        raise EOFError

    def close(self) -> None:
        self.response.close()
        self._connection.close()


@pytest.fixture
def watcher(server: LiveServer) -> Iterator[Watcher]:
    watcher = Watcher(server.port)
    yield watcher
    watcher.close()


def used(told: dict[str, Any], total: int) -> np.ndarray:
    counts = np.zeros(total, np.int64)
    counts[told["used"][::2]] = told["used"][1::2]
    return counts


def test_the_model_says_what_it_is(server: LiveServer) -> None:
    status, facts, _ = ask(server.port, "/live/model")
    model = server.service.session.model
    assert status == 200
    assert facts["chat"] is True
    assert sum(layer["experts"] for layer in facts["layers"]) == model.manifest.num_pages
    assert [layer["layer"] for layer in facts["layers"]] == [
        pages.layer for pages in model.manifest.experts
    ]
    assert facts["smallest_budget"] < facts["largest_budget"]
    assert facts["memory_budget"] is None


def test_events_add_up_to_the_use_of_experts(server: LiveServer, watcher: Watcher) -> None:
    model = server.service.session.model
    total = model.manifest.num_pages
    first = watcher.next()
    assert first["first"]
    counts = used(first, total)
    ask(server.port, "/v1/completions", completion(prompt=[5, 6, 7, 8], max_tokens=20))

    def all_of_it() -> np.ndarray:
        rows = [model.usage[pages.layer, : len(pages.offsets)] for pages in model.manifest.experts]
        return np.concatenate(rows)

    while not np.array_equal(counts, all_of_it()):
        told = watcher.next()
        assert not told["first"]
        counts += used(told, total)
    assert counts.sum() > 0
    held = np.unpackbits(
        np.frombuffer(base64.b64decode(told["resident"]), np.uint8), bitorder="little"
    )[:total]
    assert held.sum() == told["resident_pages"] == len(model.resident())
    keys = [
        (pages.layer, expert)
        for pages in model.manifest.experts
        for expert in range(len(pages.offsets))
    ]
    shown = {key for key, bit in zip(keys, held, strict=True) if bit}
    assert shown == {(key.layer, key.expert) for key in model.resident()}
    assert told["resident_memory"] > 1 << 20


def test_a_budget_is_followed_and_told(server: LiveServer, watcher: Watcher) -> None:
    facts = ask(server.port, "/live/model")[1]
    smallest, largest = facts["smallest_budget"], facts["largest_budget"]
    for wanted, slots in ((smallest, server.service.session.plan.fewest), (largest, None)):
        status, told, _ = ask(server.port, "/live/budget", {"memory_budget": wanted})
        assert status == 200
        assert told == {"memory_budget": wanted, "slots": slots or facts["num_pages"]}
        until(lambda wanted=wanted: watcher.next()["memory_budget"] == wanted)
    told = ask(server.port, "/live/budget", {"memory_budget": "64GiB"})[1]
    assert told["memory_budget"] == 64 << 30


@pytest.mark.parametrize(
    ("budget", "word"),
    [
        (1, "smallest that works"),
        ("1MiB", "smallest that works"),
        ("much", "not a positive number"),
        (-5, "more than 0"),
        (True, "number of bytes"),
        (1.5, "number of bytes"),
        ([1], "number of bytes"),
        (None, "is missing"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(server: LiveServer, budget: object, word: str) -> None:
    before = server.service.session.plan.budget
    status, told, _ = ask(server.port, "/live/budget", {"memory_budget": budget})
    assert status == 400
    assert word in told["error"]["message"]
    assert "\n" not in told["error"]["message"]
    assert server.service.session.plan.budget == before


def test_what_else_cannot_be_is_refused(server: LiveServer) -> None:
    def status(body: bytes | dict[str, Any], **headers: str) -> int:
        return ask(server.port, "/live/budget", body, headers=headers)[0]

    assert status(b"{") == 400
    assert status({"memory_budget": "1GiB", "other": 1}) == 400
    # What another site's page could send without asking first.
    assert status(b'{"memory_budget": "1GiB"}', **{"content-type": "text/plain"}) == 415
    assert status({"memory_budget": "1GiB"}, origin="https://example.org") == 403


def test_watchers_that_come_at_once_are_counted(served_bundle: Path) -> None:
    with live_server(served_bundle) as server, contextlib.ExitStack() as ends:
        watchers = [
            ends.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            )
            for _ in range(2 * MOST_WATCHERS)
        ]
        for one in watchers:
            one.sendall(b"GET /live/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        statuses = [one.recv(13) for one in watchers]
    assert statuses.count(b"HTTP/1.1 200 ") == MOST_WATCHERS


def test_watchers_are_counted_and_leave(server: LiveServer) -> None:
    watchers = [Watcher(server.port) for _ in range(MOST_WATCHERS)]
    for one in watchers:
        one.next()
    status, told, headers = ask(server.port, "/live/events")
    assert (status, told["error"]["code"]) == (429, "too_many_watchers")
    assert int(headers["retry-after"]) > 0
    for one in watchers:
        one.close()

    def welcome() -> bool:
        another = Watcher(server.port)
        another.close()
        return another.response.status == 200

    until(welcome)


def test_a_key_is_needed_where_there_is_one(served_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("correct-horse-battery-staple\n")
    path.chmod(0o600)
    with live_server(served_bundle, access=Access(keys=read_keys(path))) as server:
        for name in ("/live/model", "/live/events"):
            assert ask(server.port, name)[0] == 401
        assert ask(server.port, "/live/budget", {"memory_budget": "1GiB"})[0] == 401
        shown = {"authorization": "Bearer correct-horse-battery-staple"}
        assert ask(server.port, "/live/model", headers=shown)[0] == 200
        status, text, headers = ask(server.port, "/")  # the page itself asks for the key
        assert status == 200
        assert "<title>" in text
        assert "default-src 'self'" in headers["content-security-policy"]


def test_who_watches_does_not_hold_a_server_that_stops(served_bundle: Path) -> None:
    with live_server(served_bundle) as server:
        watcher = Watcher(server.port)
        watcher.next()
        server.stop()
        while watcher.response.readline():  # until its end
            pass
        watcher.close()


def test_the_page_is_nothing_but_its_files(server: LiveServer) -> None:
    assert ask(server.port, "/main.js")[2]["content-type"].startswith("text/javascript")
    assert ask(server.port, "/nothing.js")[0] == 404
    assert ask(server.port, "/../live.py")[0] == 404
    assert ask(server.port, "/nothing", {"a": 1})[0] == 404
    assert ask(server.port, "/main.js", {"a": 1})[0] == 405
