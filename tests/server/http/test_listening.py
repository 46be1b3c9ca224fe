"""Addresses to listen at; and how a server ends."""

import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from pocketmoe.cli import main
from pocketmoe.tests.support.serving import (
    LONG,
    TEXT,
    RawStream,
    completion,
    live_server,
    server_process,
)
from pocketmoe.tests.support.waiting import PATIENCE


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_addresses_need_keys(tiny_bundle: Path, host: str) -> None:
    done = CliRunner().invoke(main, ["serve", str(tiny_bundle), "--host", host, "--port", "0"])
    assert done.exit_code == 2
    assert "--api-key-file" in done.stderr


def test_what_is_taken_or_unknown(tiny_bundle: Path) -> None:
    with live_server(tiny_bundle) as server:
        for arguments, word in (
            (["--port", str(server.port)], "already in use"),
            (["--host", "no.such.host.invalid"], "no address of this machine"),
            (["--host", "192.0.2.1"], "cannot listen"),
            (["--grace", "nan"], "finite"),
        ):
            done = CliRunner().invoke(main, ["serve", str(tiny_bundle), *arguments])
            assert done.exit_code == 2
            assert word in done.stderr


class TestEnding:
    """On signals. The model is fast, so a request asks for more than it makes in that time."""

    MANY: ClassVar[dict[str, Any]] = {**completion(prompt="def", **LONG), "n": 128}

    def test_what_runs_is_finished(self, served_bundle: Path) -> None:
        with server_process(served_bundle, "--grace", "60") as (process, port):
            stream = RawStream(port, TEXT, {**self.MANY, "n": 2})
            events = stream.events()
            next(events)
            process.send_signal(signal.SIGTERM)
            ended = [choice for event in events for choice in event["choices"]
                     if choice["finish_reason"]]  # fmt: skip
            assert [choice["finish_reason"] for choice in ended] == ["length", "length"]
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert process.stderr.read() == (
                "ending: 1 request has 60 s to finish; a second signal ends it at once\n"
            )

    def test_what_takes_too_long_is_ended(self, served_bundle: Path) -> None:
        with server_process(served_bundle, "--grace", "0.5") as (process, port):
            stream = RawStream(port, TEXT, self.MANY)
            events = stream.events()
            next(events)
            waiting = RawStream(port, TEXT, self.MANY)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert list(events)[-1]["error"]["code"] == "stopping"
            assert b"503" in waiting._file.readline()
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert "answers that were cut off: 1" in process.stderr.read()

    def test_a_second_signal_ends_it_at_once(self, served_bundle: Path) -> None:
        with server_process(served_bundle, "--grace", "60") as (process, port):
            stream = RawStream(port, TEXT, self.MANY)
            next(stream.events())
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)  # a third one changes nothing
            assert process.wait(PATIENCE) == 1
            assert time.monotonic() - begun < 30  # of the 60 s of grace
            assert process.stderr is not None
            assert "answers that were cut off: 1" in process.stderr.read()
