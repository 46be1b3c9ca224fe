"""The programs in examples/, run as a reader would run them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pocketmoe.cli import main
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.tests.support.serving import server_process
from pocketmoe.tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate(tiny_bundle: Path) -> None:
    assert "page hits" in run("generate.py", tiny_bundle, "def main(", "1GiB")


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    """What it claims is so, and what it says to type next runs."""
    told = run("demo.py", "-o", tmp_path / "demo")
    assert "Both texts are the same to the byte." in told
    assert all(len(line) <= 80 or str(tmp_path) in line for line in told.splitlines())
    rows = re.findall(r"(?m)^(none|\d+MiB) +([\d.]+) MiB +(\d+) of (\d+) +(\d+)% +\d+$", told)
    (_, memory, held, experts, hits), (budget, less, some, same, fewer) = rows
    assert (held, hits, same) == (experts, "100", experts)
    assert float(less) < float(memory)
    assert float(less) <= int(budget.removesuffix("MiB"))
    assert int(experts) / 4 < int(some) < int(experts) / 2
    assert 0 < int(fewer) < 100
    commands = re.findall(r"(?m)^  (\S+/pocketmoe (?:run|plan) .*)$", told)
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_make_demo_runs_it() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines()[-1] == ".venv/bin/python examples/demo.py"


@pytest.mark.parametrize("bundle", ["tiny_bundle", "served_bundle"])
def test_summarize(bundle: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A text of several contexts; the model is random, so its summary is only compared."""
    path = request.getfixturevalue(bundle)
    text = tmp_path / "text.txt"
    text.write_text("def main():\n    return 0\n" * 40 + "import " * 300 + "x" * 3000)
    out = run("summarize.py", path, text, "--context", "256", "--tokens", "8")
    assert int(re.match(r"(\d+) parts\n", out)[1]) > 4  # type: ignore[index]
    text.write_text("def main():\n    return 0\n")
    told = run("summarize.py", path, text, "--tokens", "8")
    with open_bundle(path) as session:
        task = f"Summarise this text in a few sentences:\n\n{text.read_text()}"
        prompt = (
            f"{task}\n\nSummary:"
            if session.chat_template is None
            else [{"role": "user", "content": task}]
        )
        assert told == session.generate(prompt, max_new_tokens=8).text().strip() + "\n"


@pytest.mark.parametrize(
    ("text", "arguments", "word"),
    [
        (b"x " * 99, ["--context", "100", "--tokens", "90"], "larger --context or fewer"),
        (b" \n", [], "the text is empty"),
        (b"\xff\xfe", [], "can't decode"),
        (b"x", ["--memory-budget", "1MiB"], "smallest that works"),
    ],
)
def test_summarize_refuses(
    tiny_bundle: Path, tmp_path: Path, text: bytes, arguments: list[str], word: str
) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    command = [sys.executable, EXAMPLES / "summarize.py", tiny_bundle, tmp_path / "text.txt"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert word in line


def test_summarize_without_a_text(tiny_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "summarize.py", tiny_bundle, tmp_path / "none.txt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == f"error: {tmp_path / 'none.txt'}: No such file or directory\n"


def test_async_app(tiny_bundle: Path) -> None:
    prompts = ["def main(", "import os", "class Stack:"]
    lines = run("async_app.py", tiny_bundle, *prompts, "--tokens", "8").splitlines()
    with open_bundle(tiny_bundle, context=512) as session:
        for prompt, line in zip(prompts, lines, strict=False):
            text = session.generate(prompt, max_new_tokens=8).text()
            assert line == f"{prompt!r} -> {text!r}"
    assert re.match(r"3 answers in .*given up; the loop went round [1-9]", lines[-1])


@pytest.mark.slow
def test_langchain_client(served_bundle: Path) -> None:
    with server_process(served_bundle, "--parallel", "2") as (_, port):
        url = f"http://127.0.0.1:{port}/v1"
        told = run("langchain_client.py", url, "a router", "a pager", "--tokens", "8")
    assert "a router: '" in told
    assert "a pager: '" in told
    assert re.search(r"(?m)^\d+ tokens$", told)


@pytest.mark.slow
def test_langchain_client_says_in_a_line_what_is_wrong(tiny_bundle: Path) -> None:
    command = [sys.executable, EXAMPLES / "langchain_client.py"]
    with server_process(tiny_bundle) as (_, port):
        url = f"http://127.0.0.1:{port}/v1"
        done = subprocess.run(
            [*command, url, "x"], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 1
        assert re.fullmatch(r"error: .*chat template.*\n", done.stderr)
    done = subprocess.run([*command, url, "x"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr == "error: Connection error.\n"


def test_dockerfile() -> None:
    """No Docker here: its steps name files, extras and options that are there."""
    text = (EXAMPLES / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    assert {word for word, _ in steps} <= {
        "FROM", "RUN", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    (extras,) = re.findall(r"'/source\[(.*?)\]'", text)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"(?m)^{extra} = \[", project) for extra in extras.split(","))
    assert (ROOT / "model/demo").is_dir()
    (command,) = (json.loads(rest) for word, rest in steps if word == "CMD")
    serve = main.get_command(click.Context(main), command[0])
    assert serve is not None
    parsed = serve.make_context("serve", command[1:], resilient_parsing=False)
    assert (parsed.params["host"], parsed.params["memory_budget"]) == ("0.0.0.0", "auto")
    ignored = (EXAMPLES / "Dockerfile.dockerignore").read_text().split()
    assert {"build", ".venv", "**/*.so"} <= set(ignored)
