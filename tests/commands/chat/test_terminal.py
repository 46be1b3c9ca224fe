"""`chat` on a real pseudo-terminal, and over a pipe."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketmoe.commands.chat.saved import load_messages, save_messages
from pocketmoe.commands.chat.terminal import _path
from pocketmoe.commands.console import harmless
from pocketmoe.errors import InputError
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.tests.support.terminal import Terminal, on_terminal
from pocketmoe.tests.support.waiting import PATIENCE

COMMAND: list[str | Path] = [sys.executable, "-m", "pocketmoe", "chat"]
CUE = r"(?m)^> $"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def chat(served_bundle: Path, state: Path) -> Iterator[Terminal]:
    command = [*COMMAND, served_bundle, "--max-tokens", "12", "--context", "512"]
    with on_terminal(command, XDG_STATE_HOME=str(state)) as terminal:
        terminal.wait_for(CUE)
        yield terminal


def history(state: Path) -> list[str]:
    path = state / "pocketmoe/chat_history"
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_to(terminal: Terminal, text: str) -> str:
    terminal.type(f"{text}\r")
    told = terminal.wait_for(CUE)
    return told.split("\n", text.count("\n") + 1)[-1].removesuffix("> ")


def saved(terminal: Terminal, path: Path) -> list[dict[str, str]]:
    path.unlink(missing_ok=True)
    terminal.type(f"/save '{path}'\r")
    terminal.wait_for("messages are in")
    terminal.wait_for(CUE)
    assert path.stat().st_mode & 0o777 == 0o600
    return json.loads(path.read_text())["messages"]  # type: ignore[no-any-return]


class TestTerminal:
    def test_a_conversation(
        self, chat: Terminal, state: Path, served_bundle: Path, tmp_path: Path
    ) -> None:
        first = answer_to(chat, "def main(")
        answer_to(chat, "naïve 🙂")
        messages = saved(chat, tmp_path / "saved.json")
        with open_bundle(served_bundle, context=512) as session:
            expected = session.generate(messages[:1], max_new_tokens=12).text()
            again = session.generate(messages[:3], max_new_tokens=12).text()
        assert [message["content"] for message in messages] == [
            "def main(", expected, "naïve 🙂", again,
        ]  # fmt: skip
        assert harmless(expected) in first
        assert "(ended after 12 tokens, by --max-tokens)" in first
        assert history(state) == ["def main(", "naïve 🙂", f"/save '{tmp_path / 'saved.json'}'"]
        path = state / "pocketmoe/chat_history"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        chat.type("\x04")
        assert chat.ends() == 0

    def test_ctrl_c_stops_an_answer_and_not_the_program(
        self, served_bundle: Path, state: Path, tmp_path: Path
    ) -> None:
        command = [*COMMAND, served_bundle, "--max-tokens", "1000000"]
        with on_terminal(command, XDG_STATE_HOME=str(state)) as chat:
            chat.wait_for(CUE)
            for _ in range(2):
                answer_to(chat, "/reset")
                chat.type("def main(\r")
                chat.wait_for(r"main\(\n(.|\n){8}")
                chat.interrupt()
                chat.wait_for(r"\(stopped\)")
                chat.wait_for(CUE)
                question, answer = saved(chat, tmp_path / "saved.json")
                assert question == {"role": "user", "content": "def main("}
                assert answer["content"]
            chat.type("half a line")
            chat.wait_for("half a line")
            chat.interrupt_until("leaves")  # of a line: it is forgotten
            chat.wait_for(CUE)
            chat.type("/quit\r")
            assert chat.ends() == 0
            assert "half a line" not in history(state)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
    def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(
        self, chat: Terminal, number: int
    ) -> None:
        while chat.echoes:  # until a line is read
            time.sleep(0.01)
        assert chat.ends_by(number) == -number
        assert chat.echoes

    def test_history_is_recalled_here_and_the_next_time(
        self, chat: Terminal, served_bundle: Path, state: Path, tmp_path: Path
    ) -> None:
        answer_to(chat, "one")
        answer_to(chat, "two")
        chat.type("\x1b[A\x1b[A\x05 more\r")  # up, up, to the end
        chat.wait_for(CUE)
        chat.type(" not kept\r")
        chat.wait_for(CUE)
        chat.type("/quit\r")
        assert chat.ends() == 0
        assert history(state) == ["one", "two", "one more", "/quit"]
        command = [*COMMAND, served_bundle, "--max-tokens", "4"]
        with on_terminal(command, XDG_STATE_HOME=str(state)) as later:
            later.wait_for(CUE)
            later.type("\x1b[A\x1b[A\r")
            later.wait_for(CUE)
            messages = saved(later, tmp_path / "saved.json")
            assert messages[0]["content"] == "one more"

    @pytest.mark.parametrize("name", ["C", "POSIX"])
    def test_without_a_locale(
        self, name: str, served_bundle: Path, state: Path, tmp_path: Path
    ) -> None:
        """As over ssh to a device that has none: what was typed elsewhere is recalled."""
        (state / "pocketmoe").mkdir(parents=True)
        (state / "pocketmoe/chat_history").write_text('"héllo"\n')
        command = [*COMMAND, served_bundle, "--max-tokens", "4"]
        with on_terminal(command, XDG_STATE_HOME=str(state), LC_ALL=name) as chat:
            chat.wait_for(CUE)
            chat.type("\x1b[A\r")
            chat.wait_for(CUE)
            answer_to(chat, "naïve 日本")
            said = [one["content"] for one in saved(chat, tmp_path / "s") if one["role"] == "user"]
            assert said == ["héllo", "naïve 日本"]

    @pytest.mark.parametrize("kind", ["a file in its way", "no file"])
    def test_a_history_that_cannot_be_kept(
        self, kind: str, served_bundle: Path, state: Path, tmp_path: Path
    ) -> None:
        """It is said once, and what is typed is answered."""
        if kind == "no file":
            (state / "pocketmoe/chat_history").mkdir(parents=True)
        else:
            state.write_text("")
        command = [*COMMAND, served_bundle, "--max-tokens", "4"]
        with on_terminal(command, XDG_STATE_HOME=str(state)) as chat:
            chat.wait_for(CUE)
            chat.type("one\r")
            chat.wait_for("warning: the history .* cannot be used")
            chat.wait_for(CUE)
            assert "history" not in answer_to(chat, "two")
            said = [one["content"] for one in saved(chat, tmp_path / "s") if one["role"] == "user"]
            assert said == ["one", "two"]

    def test_lines_that_go_on_and_a_pasted_block(
        self, chat: Terminal, state: Path, tmp_path: Path
    ) -> None:
        chat.type("a \\\r")
        chat.wait_for(r"(?m)^\. $")
        chat.type("b\r")
        chat.wait_for(CUE)
        chat.type("\x1b[200~def f():\n    return 1\n\x1b[201~")
        chat.type("\r")
        chat.wait_for(CUE)
        said = [item["content"] for item in saved(chat, tmp_path / "s") if item["role"] == "user"]
        assert said == ["a \nb", "def f():\n    return 1"]
        assert history(state)[:2] == said

    def test_commands(self, chat: Terminal, tmp_path: Path) -> None:
        assert "/budget" in answer_to(chat, "/help")
        assert "nothing was said yet" in answer_to(chat, "/retry")
        answer_to(chat, "/system Be brief")
        answer_to(chat, "hello")
        answer_to(chat, "/retry")
        messages = saved(chat, tmp_path / "saved.json")
        assert [message["role"] for message in messages] == ["system", "user", "assistant"]
        stats = answer_to(chat, "/stats")
        assert "last answer" in stats
        assert "page hits" in stats
        assert "no limit; 24 of 24 experts fit" in answer_to(chat, "/budget")
        assert "no limit" in answer_to(chat, "/budget none")
        assert "experts fit" in answer_to(chat, "/budget 4GiB")
        assert "error: " in answer_to(chat, "/budget 1KiB")
        assert "error: size 'x' is not" in answer_to(chat, "/budget x")
        assert "there is no /nothing" in answer_to(chat, "/nothing")
        answer_to(chat, "/reset")
        assert len(saved(chat, tmp_path / "saved.json")) == 1
        answer_to(chat, "/system")
        answer_to(chat, "//etc/passwd")
        assert saved(chat, tmp_path / "saved.json")[0]["content"] == "/etc/passwd"
        (tmp_path / "other.txt").write_text("hello")
        assert "is no conversation" in answer_to(chat, f"/save {tmp_path}/other.txt")
        assert "is no conversation" in answer_to(chat, f"/load {tmp_path}/other.txt")
        assert "which file?" in answer_to(chat, "/load")
        assert "2 messages; the next" in answer_to(chat, f"/load {tmp_path}/saved.json")
        assert "say something else" in answer_to(chat, "forbidden")
        chat.type("/st\t\r")
        assert "page hits" in chat.wait_for(CUE)

    def test_a_full_context(self, served_bundle: Path, state: Path) -> None:
        command = [*COMMAND, served_bundle, "--context", "64"]
        with on_terminal(command, XDG_STATE_HOME=str(state)) as chat:
            chat.wait_for(CUE)
            assert "the context of 64 tokens is full: /reset begins" in answer_to(chat, "def main(")
            told = answer_to(chat, "def main(" * 8)
            assert "any more: /reset begins anew, or start with --context 512" in told
            answer_to(chat, "/reset")
            assert "is full" in answer_to(chat, "def main(")

    def test_bytes_that_are_no_text(self, chat: Terminal, tmp_path: Path) -> None:
        """readline leaves them out, or the line is refused; the next is read."""
        chat.send(b"caf\xe9 \xff\r")
        chat.wait_for(CUE)
        answer_to(chat, "/reset")
        answer_to(chat, "hello")
        assert saved(chat, tmp_path / "saved.json")[0]["content"] == "hello"

    def test_without_a_template_it_goes_on(
        self, tiny_bundle: Path, state: Path, tmp_path: Path
    ) -> None:
        command = [*COMMAND, tiny_bundle, "--max-tokens", "6"]
        with on_terminal(command, XDG_STATE_HOME=str(state)) as chat:
            chat.wait_for("it goes on with what you type")
            chat.wait_for(CUE)
            answer_to(chat, "def main(")
            answer_to(chat, "import os")
            assert "no chat template" in answer_to(chat, "/system x")
            messages = saved(chat, tmp_path / "saved.json")
        with open_bundle(tiny_bundle) as session:
            first = session.generate("def main(", max_new_tokens=6).text()
            text = f"def main({first}import os"
            assert [message["content"] for message in messages] == [
                "def main(", first, "import os", session.generate(text, max_new_tokens=6).text(),
            ]  # fmt: skip


class TestPipe:
    def test_lines_and_commands(self, served_bundle: Path, tmp_path: Path, state: Path) -> None:
        path = tmp_path / "saved.json"
        text = f"def main(\n\nreturn \\\nx\n/save {path}\n"
        done = subprocess.run(
            [*COMMAND, served_bundle, "--max-tokens", "4"], input=text.encode(), check=True,
            capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        messages = load_messages(path)
        said = [message["content"] for message in messages]
        assert said[::2] == ["def main(", "return \nx"]
        assert done.stdout.decode() == "".join(f"{answer}\n" for answer in said[1::2])
        assert not state.exists()

    def test_an_error_ends_it(self, served_bundle: Path) -> None:
        done = subprocess.run(
            [*COMMAND, served_bundle, "--max-tokens", "4"], input=b"forbidden\nx\n", check=False,
            capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.decode().splitlines()[-1].startswith("error: the chat template refuses")


class TestChatFiles:
    @pytest.mark.parametrize(
        "data",
        [
            "", "[]", "{}", '{"format": "pocketmoe chat", "version": 2, "messages": []}',
            '{"format": "pocketmoe chat", "version": 1, "messages": [{"role": "x"}]}',
            '{"format": "pocketmoe chat", "version": 1, "messages": [{"role": "root", '
            '"content": "x"}]}',
            '{"format": "pocketmoe chat", "version": 1, "messages": [{"role": "user", '
            '"content": 1}]}',
            '{"format": "pocketmoe chat", "version": 1, "messages": [{"role": "user", '
            '"content": "\\ud800"}]}',
        ],
    )  # fmt: skip
    def test_what_is_no_conversation(self, data: str, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        path.write_text(data)
        with pytest.raises(InputError, match="is no conversation"):
            load_messages(path)
        with pytest.raises(InputError, match="exists and is no conversation"):
            save_messages(path, "m", [])
        assert path.read_text() == data

    def test_places_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot write"):
            save_messages(tmp_path / "missing/x.json", "m", [])
        with pytest.raises(InputError, match="cannot read"):
            load_messages(tmp_path / "missing.json")
        with pytest.raises(InputError, match="no NUL"):
            save_messages(tmp_path / "a\0b", "m", [])
        with pytest.raises(InputError, match="is no user"):
            _path("~nobody.here/x.json", "/save")


def test_text_that_would_steer_a_terminal() -> None:
    assert (
        harmless("a\x1b[2J\tb\n\r👩\u200d💻\x9b\u202e") == "a\\x1b[2J\tb\n\\r👩\u200d💻\\x9b\\u202e"
    )
