"""Places and time of requests; clients that go away."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from pocketmoe.server.openai import response
from pocketmoe.server.service import Limits
from pocketmoe.tests.support.serving import (
    CHAT,
    LONG,
    MODEL,
    TEXT,
    LiveServer,
    RawStream,
    ask,
    chat,
    completion,
    live_server,
    until,
)
from pocketmoe.tests.support.waiting import PATIENCE

LIMITS = Limits(queue=2, grace=5)


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with live_server(served_bundle, delay=0.02, limits=LIMITS) as server:
        yield server


def limited(server: LiveServer, **changes: Any) -> Any:
    """The server with other limits, for a while."""
    patch = pytest.MonkeyPatch.context()

    class Changed:
        def __enter__(self) -> None:
            patch.__enter__().setattr(server.service, "limits", replace(LIMITS, **changes))

        def __exit__(self, *error: Any) -> None:
            patch.__exit__(*error)

    return Changed()


class TestPlaces:
    def test_a_full_queue(self, server: LiveServer) -> None:
        streams = [RawStream(server.port, TEXT, completion(**LONG)) for _ in range(3)]
        try:
            server.wait_for(running=1, queued=2)
            status, body, headers = ask(server.port, TEXT, completion())
            assert status == 429
            assert body["error"]["code"] == "queue_full"
            assert int(headers["retry-after"]) >= 1
            assert ask(server.port, "/health")[0] == 200
        finally:
            for stream in streams:
                stream.close()
        server.wait_for(running=0)

    @pytest.mark.parametrize("path", [CHAT, TEXT])
    @pytest.mark.parametrize("stream", [True, False])
    def test_who_goes_frees_its_place(self, server: LiveServer, path: str, stream: bool) -> None:
        make = chat if path == CHAT else completion
        opened = RawStream(server.port, path, make(**LONG))
        if stream:
            next(opened.events())
        server.wait_for(running=1)
        opened.close()
        begun = time.monotonic()
        server.wait_for(running=0)
        assert time.monotonic() - begun < 5  # of the 8 s that it would have taken

    def test_who_goes_while_it_waits(self, server: LiveServer) -> None:
        running = RawStream(server.port, TEXT, completion(**LONG))
        server.wait_for(running=1)
        waiting = RawStream(server.port, TEXT, completion(**LONG))
        server.wait_for(running=1, queued=1)
        waiting.close()
        server.wait_for(running=1)
        running.close()
        server.wait_for(running=0)

    def test_requests_come_in_turn(self, server: LiveServer) -> None:
        order: list[int] = []

        def run(number: int) -> None:
            assert ask(server.port, TEXT, completion(max_tokens=10))[0] == 200
            order.append(number)

        threads = []
        for number in range(3):
            threads.append(threading.Thread(target=run, args=(number,)))
            threads[-1].start()
            server.wait_for(running=1, queued=number)
        for thread in threads:
            thread.join()
        assert order == [0, 1, 2]

    def test_a_reader_that_takes_nothing_holds_no_place(self, server: LiveServer) -> None:
        stream = RawStream(server.port, CHAT, chat(max_tokens=60, logit_bias={"0": -100}))
        server.wait_for(running=1)
        server.wait_for(running=0)  # the answer waits for its reader, not the session
        assert len(list(stream.events())) > 30
        stream.close()

    def test_threads_and_connections_go_back(self, server: LiveServer) -> None:
        ask(server.port, TEXT, completion())
        until(lambda: server.connections == 0)
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for number in range(12):
            stream = RawStream(server.port, TEXT, completion(**LONG))
            if number % 2:
                next(stream.events())
            stream.close()
        server.wait_for(running=0)
        until(lambda: server.connections == 0)
        until(lambda: len(os.listdir("/proc/self/fd")) == files)
        assert threading.active_count() <= threads + 1  # the second of those that prepare


class TestTime:
    def test_an_answer_that_takes_too_long(self, server: LiveServer) -> None:
        with limited(server, timeout=0.5):
            status, body, headers = ask(server.port, TEXT, completion(**LONG))
            assert (status, body["error"]["code"]) == (504, "timeout")
            assert headers["x-should-retry"] == "false"
            stream = RawStream(server.port, TEXT, completion(**LONG))
            events = list(stream.events())
            stream.close()
        assert events[-1]["error"]["code"] == "timeout"
        assert events[0]["choices"][0]["text"]
        server.wait_for(running=0)

    def test_a_body_that_takes_too_long(self, server: LiveServer) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n"
        head += b"content-type: application/json\r\n\r\n"
        with (
            limited(server, timeout=0.5),
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection,
        ):
            connection.sendall(head)
            for _ in range(6):
                connection.sendall(b" ")
                time.sleep(0.1)
            assert connection.recv(13) == b"HTTP/1.1 408 "

    def test_a_wait_that_takes_too_long(self, server: LiveServer) -> None:
        running = RawStream(server.port, TEXT, completion(**LONG))
        server.wait_for(running=1)
        with limited(server, timeout=0.3):
            status, body, _ = ask(server.port, TEXT, completion())
        assert (status, body["error"]["code"]) == (503, "timeout")
        running.close()
        server.wait_for(running=0)

    def test_a_stream_that_is_quiet_has_comments(
        self, server: LiveServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those who read it do not see them."""
        monkeypatch.setattr(response, "QUIET_SECONDS", 0.03)
        server.sessions[0].delay = 0.1
        try:
            stream = RawStream(server.port, TEXT, completion(max_tokens=4))
            lines = stream._file.read().split(b"\r\n\r\n", 1)[1]
            assert lines.count(b":\n\n") >= 4
            url = f"http://127.0.0.1:{server.port}/v1"
            with openai.OpenAI(base_url=url, api_key="x") as client:
                made = client.completions.create(
                    model=MODEL, prompt="def", stream=True, n=2, logit_bias={"0": -100}
                )
                assert [chunk.choices[0].finish_reason for chunk in made][-1] == "length"
        finally:
            server.sessions[0].delay = 0.02
        server.wait_for(running=0)

    def test_a_client_with_a_time_limit(self, server: LiveServer) -> None:
        url = f"http://127.0.0.1:{server.port}/v1"
        with (
            openai.OpenAI(base_url=url, api_key="x", timeout=0.5, max_retries=0) as client,
            pytest.raises(openai.APITimeoutError),
        ):
            client.completions.create(model=MODEL, prompt="def", max_tokens=400, n=128)
        server.wait_for(running=0)

    def test_a_client_tries_again(self, server: LiveServer) -> None:
        """A full queue: it waits for as long as it was told."""
        streams = [RawStream(server.port, TEXT, completion(**LONG)) for _ in range(3)]
        server.wait_for(running=1, queued=2)
        url = f"http://127.0.0.1:{server.port}/v1"
        threading.Timer(0.5, lambda: [stream.close() for stream in streams]).start()
        with openai.OpenAI(base_url=url, api_key="x", max_retries=4) as client:
            made = client.completions.create(model=MODEL, prompt="def", max_tokens=2)
        assert made.choices[0].finish_reason in ("stop", "length")

    def test_cancelling_a_task(self, server: LiveServer) -> None:
        async def run() -> None:
            url = f"http://127.0.0.1:{server.port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="x") as client:
                about: Any = {"model": MODEL, "prompt": "def", "extra_body": LONG}
                task = asyncio.create_task(client.completions.create(**about))
                await asyncio.to_thread(server.wait_for, 1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.to_thread(server.wait_for, 0)

        asyncio.run(run())
