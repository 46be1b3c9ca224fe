"""`run`; every failure is one line on stderr and exit code 2."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pocketmoe.tests.support.command import COMMAND, call, refused, spawn
from pocketmoe.tests.support.waiting import PATIENCE


def copied(bundle: Path, to: Path) -> Path:
    shutil.copytree(bundle, to)
    return to


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x10
    file.write_bytes(data)


class TestRunPrompt:
    def test_text_is_what_the_session_generates(self, tiny_bundle: Path) -> None:
        from pocketmoe.runtime.opening import open_bundle

        with open_bundle(tiny_bundle) as session:
            expected = session.generate(
                "def main(", max_new_tokens=12, temperature=0.8, top_k=20, seed=3
            ).text()
        arguments = ["run", tiny_bundle, "--max-tokens", "12", "--temperature", "0.8"]
        arguments += ["--top-k", "20", "--seed", "3"]
        result = call(*arguments, "--prompt", "def main(")
        assert result.exit_code == 0, result.output
        assert result.stdout == expected + "\n"
        assert result.stderr == ""
        assert call(*arguments, "--prompt", "-", stdin=b"def main(").stdout == result.stdout

    def test_stats_go_to_stderr(self, tiny_bundle: Path) -> None:
        plain = call("run", tiny_bundle, "--prompt", "x", "--max-tokens", "4")
        result = call("run", tiny_bundle, "--prompt", "x", "--max-tokens", "4", "--stats")
        assert result.stdout == plain.stdout
        for word in ("tok/s", "page hits", "bytes read", "peak memory", "time to first token"):
            assert word in result.stderr

    def test_a_budget_that_is_too_small_names_the_smallest(self, tiny_bundle: Path) -> None:
        arguments = ["run", tiny_bundle, "--prompt", "x", "--max-tokens", "4", "--memory-budget"]
        line = refused(spawn(*arguments, "1MiB"), "1.0 MiB", "smallest")
        smallest = line.split("smallest that works is ")[1].split()[0]
        assert spawn(*arguments, "8GiB").stdout == spawn(*arguments, smallest).stdout != ""

    @pytest.mark.parametrize(
        ("prompt", "stdin", "words"),
        [
            ("", None, ["prompt is empty"]),
            ("-", b"", ["prompt is empty"]),
            ("-", b"ok \xff", ["standard input is not UTF-8", "0xff at position 3"]),
            ("x " * 600, None, ["context", "512"]),
        ],
    )
    def test_bad_prompts(
        self, prompt: str, stdin: bytes | None, words: Sequence[str], tiny_bundle: Path
    ) -> None:
        refused(call("run", tiny_bundle, "--prompt", prompt, stdin=stdin), *words)

    def test_an_argument_that_is_not_utf8(self, tiny_bundle: Path) -> None:
        done = spawn("run", tiny_bundle, "--prompt", b"caf\xe9")
        refused(done, "--prompt is not UTF-8 text: byte 0xe9 at position 3")

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda path: shutil.rmtree(path), ["does not exist"]),
            (lambda path: (path / "manifest.json").unlink(), ["no manifest.json"]),
            (
                lambda path: (path / "manifest.json").rename(path / "config.json"),
                ["is a checkpoint; `pocketmoe compile`"],
            ),
            (lambda path: (path / "manifest.json").write_text("{"), ["manifest.json"]),
            (lambda path: (path / "manifest.json").write_bytes(b"\xff"), ["manifest.json"]),
            (lambda path: edit_manifest(path, version=99), ["version 99", "update pocketmoe"]),
            (lambda path: edit_manifest(path, experts=[{}]), ["damaged"]),
            (lambda path: (path / "backbone/embedding.bin").unlink(), ["embedding.bin"]),
            (lambda path: os.truncate(path / "backbone/segment_000.bin", 9), ["segment_000"]),
            (lambda path: flip_pages(path), ["pages.bin"]),
        ],
    )
    def test_bad_bundles(
        self, damage: Callable[[Path], None], words: list[str], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        bundle = copied(tiny_bundle, tmp_path / "bundle")
        damage(bundle)
        refused(call("run", bundle, "--prompt", "def main("), *words)

    def test_ctrl_c(self, tiny_bundle: Path) -> None:
        process = subprocess.Popen(
            [*COMMAND, "run", tiny_bundle, "--prompt", "x", "--max-tokens", "100000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stderr) == (130, b"interrupted\n")

    def test_a_reader_that_goes_away(self, tiny_bundle: Path) -> None:
        process = subprocess.Popen(
            [*COMMAND, "run", tiny_bundle, "--prompt", "x", "--max-tokens", "400"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


def edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def flip_pages(path: Path) -> None:
    """One byte of every page, so that whichever is read is damaged."""
    for file in path.glob("experts/*/pages.bin"):
        data = bytearray(file.read_bytes())
        for offset in range(10, len(data), 4096):
            data[offset] ^= 1
        file.write_bytes(data)
