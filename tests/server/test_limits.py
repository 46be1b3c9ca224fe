"""Who may ask, how much, how long; clients that go away; and how a server ends."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest
from click.testing import CliRunner

from pocketmoe.cli import main
from pocketmoe.server.application import Access
from pocketmoe.server.http.key_file import Keys
from pocketmoe.server.openai import response
from pocketmoe.server.service import Limits
from pocketmoe.tests.support.serving import (
    COMMAND,
    MODEL,
    LiveServer,
    Stream,
    ask,
    chat,
    completion,
    live_server,
    server_process,
    until,
)

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"max_tokens": 400, "logit_bias": {"0": -100}}
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
        streams = [Stream(server.port, TEXT, completion(**LONG)) for _ in range(3)]
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
        opened = Stream(server.port, path, make(**LONG))
        if stream:
            next(opened.events())
        server.wait_for(running=1)
        opened.close()
        begun = time.monotonic()
        server.wait_for(running=0)
        assert time.monotonic() - begun < 1  # of the 8 s that it would have taken

    def test_who_goes_while_it_waits(self, server: LiveServer) -> None:
        running = Stream(server.port, TEXT, completion(**LONG))
        server.wait_for(running=1)
        waiting = Stream(server.port, TEXT, completion(**LONG))
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
        stream = Stream(server.port, CHAT, chat(max_tokens=60, logit_bias={"0": -100}))
        server.wait_for(running=1)
        server.wait_for(running=0)  # the answer waits for its reader, not the session
        assert len(list(stream.events())) > 30
        stream.close()

    def test_threads_and_connections_go_back(self, server: LiveServer) -> None:
        ask(server.port, TEXT, completion())
        until(lambda: server.connections == 0)
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for number in range(12):
            stream = Stream(server.port, TEXT, completion(**LONG))
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
            stream = Stream(server.port, TEXT, completion(**LONG))
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
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
        ):
            connection.sendall(head)
            for _ in range(6):
                connection.sendall(b" ")
                time.sleep(0.1)
            assert connection.recv(13) == b"HTTP/1.1 408 "

    def test_a_wait_that_takes_too_long(self, server: LiveServer) -> None:
        running = Stream(server.port, TEXT, completion(**LONG))
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
            stream = Stream(server.port, TEXT, completion(max_tokens=4))
            lines = stream._file.read().split(b"\r\n\r\n", 1)[1]
            assert lines.count(b":\n\n") >= 4
            url = f"http://127.0.0.1:{server.port}/v1"
            with openai.OpenAI(base_url=url, api_key="x") as client:
                made = client.completions.create(model=MODEL, prompt="def", stream=True, n=2)
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
        streams = [Stream(server.port, TEXT, completion(**LONG)) for _ in range(3)]
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


class TestAccess:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"host": "localhost"}, 200),
            ({"host": "127.0.0.1:9"}, 200),
            ({"host": "[::1]:80"}, 200),
            ({"host": "evil.example"}, 403),
            ({"host": "127.0.0.1.evil.example"}, 403),
            ({"host": ""}, 403),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ],
    )
    def test_hosts_and_origins(
        self, server: LiveServer, headers: dict[str, str], status: int
    ) -> None:
        answered, body, told = ask(server.port, "/v1/models", headers=headers)
        assert answered == status
        assert (status == 200) != ("error" in body)
        assert "access-control-allow-origin" not in told

    def test_keys_and_pages_of_others(self, served_bundle: Path) -> None:
        access = Access(origins=("https://app.example",), keys=Keys(["k" * 20, "another key 5678"]))
        with live_server(served_bundle, access=access) as server:

            def status(path: str, key: str | None) -> int:
                headers = {} if key is None else {"authorization": key}
                return ask(server.port, path, headers=headers)[0]

            assert status("/v1/models", "Bearer " + "k" * 20) == 200
            assert status("/v1/models", "bearer " + "k" * 20) == 200
            assert status("/v1/models", "Bearer " + "k" * 19) == 401
            assert status("/v1/models", "Basic " + "k" * 20) == 401
            assert status("/v1/models", "Bearer ") == 401
            assert status("/v1/models", "Bearer \xff\xfe") == 401
            assert status("/v1/models", None) == 401
            assert status("/metrics", None) == 401
            assert status("/v1/nothing", None) == 401
            assert status("/health", None) == 200
            assert status("/openapi.json", None) == 200
            _, body, headers = ask(server.port, TEXT, completion())
            assert body["error"]["code"] == "invalid_api_key"
            assert headers["www-authenticate"] == "Bearer"

            origin = {"origin": "https://app.example"}
            asked = {"access-control-request-method": "POST",
                     "access-control-request-headers": "authorization, content-type"}  # fmt: skip
            status_, _, told = ask(server.port, TEXT, method="OPTIONS", headers={**origin, **asked})
            assert status_ == 200
            assert told["access-control-allow-origin"] == "https://app.example"
            key = {"authorization": "Bearer " + "k" * 20}
            status_, _, told = ask(server.port, TEXT, completion(), headers={**origin, **key})
            assert status_ == 200
            assert told["access-control-allow-origin"] == "https://app.example"
            url = f"http://127.0.0.1:{server.port}/v1"
            with (
                openai.OpenAI(base_url=url, api_key="wrong") as client,
                pytest.raises(openai.AuthenticationError),
            ):
                client.models.list()


class TestCommand:
    @pytest.mark.parametrize(
        ("text", "mode", "word"),
        [
            ("k" * 32, 0o644, "chmod 600"),
            ("", 0o600, "holds no key"),
            ("# nothing\n\n", 0o600, "holds no key"),
            ("short\n", 0o600, "16 characters"),
            ("k" * 20 + " " + "k" * 20, 0o600, "no spaces"),
            ("schlüssel-der-lang-ist", 0o600, "ASCII"),
        ],
    )
    def test_key_files(
        self, tmp_path: Path, tiny_bundle: Path, text: str, mode: int, word: str
    ) -> None:
        path = tmp_path / "keys"
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        done = CliRunner().invoke(main, ["serve", str(tiny_bundle), "--api-key-file", str(path)])
        assert done.exit_code == 2
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == 1

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
        self, tiny_bundle: Path, option: str, value: str, word: str
    ) -> None:
        done = CliRunner().invoke(main, ["serve", str(tiny_bundle), option, value])
        assert done.exit_code == 2
        assert word in done.stderr
        assert "chmod" not in done.stderr

    def test_a_budget_for_as_many_as_were_asked_for(self, tiny_bundle: Path) -> None:
        command = [*COMMAND, "serve", str(tiny_bundle), "--parallel", "40", "--port", "0"]
        command += ["--memory-budget", "100MiB"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "with 40 sessions of" in done.stderr

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_other_addresses_need_keys(self, tiny_bundle: Path, host: str) -> None:
        done = CliRunner().invoke(main, ["serve", str(tiny_bundle), "--host", host, "--port", "0"])
        assert done.exit_code == 2
        assert "--api-key-file" in done.stderr

    def test_what_is_taken_or_unknown(self, tiny_bundle: Path, server: LiveServer) -> None:
        for arguments, word in (
            (["--port", str(server.port)], "already in use"),
            (["--host", "no.such.host.invalid"], "no address of this machine"),
            (["--host", "192.0.2.1"], "cannot listen"),
            (["--grace", "nan"], "finite"),
        ):
            done = CliRunner().invoke(main, ["serve", str(tiny_bundle), *arguments])
            assert done.exit_code == 2
            assert word in done.stderr

    def test_a_bundle_without_a_chat_template(self, tiny_bundle: Path) -> None:
        with live_server(tiny_bundle) as server:
            status, body, _ = ask(server.port, CHAT, chat())
            assert status == 400
            assert "/v1/completions" in body["error"]["message"]
            assert ask(server.port, TEXT, completion())[0] == 200

    def test_a_template_without_tools(self, compile_served: Any) -> None:
        template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        with live_server(compile_served(template)) as server:
            tools = [{"type": "function", "function": {"name": "f"}}]
            status, body, _ = ask(server.port, CHAT, chat(tools=tools))
            assert (status, body["error"]["param"]) == (400, "tools")
            assert "template knows no tools" in body["error"]["message"]
            assert ask(server.port, CHAT, chat())[0] == 200


class TestEnding:
    """On signals. The model is fast, so a request asks for more than it makes in that time."""

    MANY: ClassVar[dict[str, Any]] = {**completion(prompt="def", **LONG), "n": 128}

    def test_what_runs_is_finished(self, served_bundle: Path) -> None:
        with server_process(served_bundle, "--grace", "60") as (process, port):
            stream = Stream(port, TEXT, {**self.MANY, "n": 2})
            events = stream.events()
            next(events)
            process.send_signal(signal.SIGTERM)
            ended = [choice for event in events for choice in event["choices"]
                     if choice["finish_reason"]]  # fmt: skip
            assert [choice["finish_reason"] for choice in ended] == ["length", "length"]
            assert process.wait(20) == 0
            assert process.stderr is not None
            assert process.stderr.read() == (
                "ending: 1 request has 60 s to finish; a second signal ends it at once\n"
            )

    def test_what_takes_too_long_is_ended(self, served_bundle: Path) -> None:
        with server_process(served_bundle, "--grace", "0.5") as (process, port):
            stream = Stream(port, TEXT, self.MANY)
            events = stream.events()
            next(events)
            waiting = Stream(port, TEXT, self.MANY)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert list(events)[-1]["error"]["code"] == "stopping"
            assert b"503" in waiting._file.readline()
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert "answers that were cut off: 1" in process.stderr.read()

    def test_a_second_signal_ends_it_at_once(self, served_bundle: Path) -> None:
        with server_process(served_bundle, "--grace", "60") as (process, port):
            stream = Stream(port, TEXT, self.MANY)
            next(stream.events())
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)  # a third one changes nothing
            assert process.wait(10) == 1
            assert time.monotonic() - begun < 3
            assert process.stderr is not None
            assert "answers that were cut off: 1" in process.stderr.read()
