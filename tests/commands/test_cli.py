"""The command line as a whole; every failure is one line on stderr and exit code 2."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pocketmoe import __version__
from pocketmoe.cli import main
from pocketmoe.errors import InputError, how_to_add
from pocketmoe.files import decode_utf8
from pocketmoe.tests.support.command import COMMAND, call, refused
from pocketmoe.tests.support.waiting import PATIENCE

HEAVY = "torch onnx onnxruntime onnxscript safetensors transformers tokenizers numpy rich jinja2"


class TestStart:
    def test_importing_loads_nothing_heavy(self) -> None:
        code = f"import sys, pocketmoe.cli; print(*set({HEAVY.split()!r}) & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == ""

    def test_help_lists_the_commands_in_the_order_of_use(self) -> None:
        result = call()
        assert result.exit_code == 0
        assert result.output == call("--help").output
        commands = result.output.partition("Commands:")[2].splitlines()
        names = [line.split()[0] for line in commands if line.strip()]
        order = (
            "inspect targets plan calibrate compile build verify run chat serve replay eval bench "
            "report export"
        )
        assert names == order.split()

    def test_version(self) -> None:
        assert call("--version").stdout == f"pocketmoe {__version__}\n"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["complie"], ["'complie'", "did you mean compile?"]),
            (["xyz"], ["no command 'xyz'", "inspect, targets, plan, calibrate, compile"]),
            (["run", "x"], ["give a --prompt, or --chat", "pocketmoe run --help"]),
            (["run", "x", "--promt", "y"], ["--promt", "--prompt"]),
            (["bench"], ["missing argument 'BUNDLE'"]),
            (["bench", "x", "--threads", "0"], ["--threads", "0 is not in the range"]),
            (["bench", "x", "--memory-budget", "2 elephants"], ["2 elephants", "GiB"]),
            (["run", "x", "--prompt", "y", "--max-tokens", "-1"], ["--max-tokens"]),
            (["run", "x", "--prompt", "y", "--temperature", "nan"], ["nan is not a finite"]),
            (["run", "x", "--prompt", "y", "--temperature", "inf"], ["inf is not a finite"]),
            (["run", "x", "--prompt", "y", "--temperature", "-1"], ["--temperature"]),
            (["run", "x", "--prompt", "y", "--top-p", "0"], ["--top-p"]),
            (["run", "x", "--prompt", "y", "--top-k", "-1"], ["--top-k"]),
            (["run", "x", "--prompt", "y", "--seed", "-1"], ["--seed"]),
        ],
    )
    def test_usage_errors(self, arguments: list[str], words: list[str]) -> None:
        refused(CliRunner().invoke(main, arguments, prog_name="pocketmoe"), *words)


class TestCommandErrors:
    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        result = call("--debug", "inspect", tmp_path / "none")
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: ")

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOSPC])
    def test_the_system_refuses(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> None:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr("pocketmoe.analysis.inspection.inspect.inspect_path", refuse)
        refused(call("inspect", "somewhere"), f"somewhere: {os.strerror(number).lower()}")

    def test_a_mistake_of_the_program_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(_: Path) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("pocketmoe.analysis.inspection.inspect.inspect_path", wrong)
        assert isinstance(call("inspect", "somewhere").exception, ZeroDivisionError)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_output_that_cannot_be_written(self) -> None:
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*COMMAND, "targets"], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1
        assert done.stderr.startswith(b"error: no space left on device")

    def test_bytes_that_are_not_utf8(self) -> None:
        assert decode_utf8("é".encode(), "x") == "é"
        with pytest.raises(InputError, match="x is not UTF-8 text: byte 0xe9 at position 1"):
            decode_utf8(b"a\xe9", "x")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_no_traceback(closed: str) -> None:
    command = f"{sys.executable} -m pocketmoe targets {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert (done.stdout == "") == (closed == ">&-")


def test_an_interrupt_within_text_that_is_executed_ends_with_the_code() -> None:
    """CPython would end by the signal, whoever has caught it since."""
    program = (
        "import click\nfrom pocketmoe.commands.entry import CommandLine\n\n"
        "@click.group(cls=CommandLine)\n@click.option('--debug', is_flag=True)\n"
        "def main(debug): pass\n\n"
        "@main.command()\ndef go(): exec('raise KeyboardInterrupt')\n\nmain(['go'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_while_it_is_loaded(tmp_path: Path) -> None:
    """It ends by the signal, and leaves no traceback."""
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "click.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pocketmoe", "--version"], capture_output=True, text=True,
        timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        preexec_fn=_hear_interrupts,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def _hear_interrupts() -> None:
    """Whatever the tests' own parent does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_what_to_do_without_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert how_to_add("serve") == "pip install 'pocketmoe[serve]'"
    (tmp_path / "install.pyz").touch()
    assert how_to_add("serve") == "export the app again, with --extra serve besides"
