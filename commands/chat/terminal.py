"""The loop of `chat`: texts are answered, lines that begin with / are commands."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ...errors import ContextError, InputError, PocketMoEError
from ...runtime.conversation import Conversation
from ...sizes import format_size
from ..console import end_cue, print_error, print_facts, print_note, print_pieces
from .line_editor import LineEditor, terminal_kept
from .saved import load_messages, save_messages

if TYPE_CHECKING:
    from ...runtime.session import Session

COMMANDS = {
    "/help": "show this",
    "/stats": "speed, page hits and memory so far",
    "/budget": "SIZE: change the memory budget, such as 2GiB; auto; none for no limit",
    "/save": "FILE: write the conversation",
    "/load": "FILE: go on with a conversation that was written",
    "/system": "TEXT: what to tell the model first, from the next answer on; without TEXT nothing",
    "/reset": "begin anew; the system message stays",
    "/retry": "answer the last text again",
    "/quit": "leave, as Ctrl-D does",
}


class TerminalChat:
    """session: what answers. name: of the model, for files. seed: of the sampling, if one was
    chosen; /retry takes the next ones."""

    def __init__(
        self,
        session: Session,
        conversation: Conversation,
        editor: LineEditor,
        name: str,
        seed: int | None,
    ):
        self._session = session
        self._conversation = conversation
        self._editor = editor
        self._name = name
        self._seed, self._tries = seed, 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/stats": self._stats, "/budget": self._budget,
            "/save": self._save, "/load": self._load, "/system": self._system,
            "/reset": self._reset, "/retry": self._retry,
        }  # fmt: skip

    def run(self) -> None:
        """Until the input ends, or /quit. On a terminal an error ends a turn; over a pipe, all.

        Raises:
            PocketMoEError, KeyboardInterrupt: over a pipe alone.
        """
        if not self._editor.terminal:
            self._loop(terminal=False)
            return
        with terminal_kept():
            self._greet()
            self._loop(terminal=True)

    def _loop(self, *, terminal: bool) -> None:
        while True:
            try:
                text = self._editor.read()
                if text.split()[0] == "/quit":
                    return
                self._turn(text)
            except EOFError:
                if terminal:
                    end_cue()
                return
            except KeyboardInterrupt:
                if not terminal:
                    raise
                end_cue()
                print_note("(/quit or Ctrl-D leaves)")
            except PocketMoEError as error:
                if not terminal:
                    raise
                print_error(str(error))

    def _greet(self) -> None:
        how = (
            "" if self._session.chat_template is not None
            else " It has no chat template, so it goes on with what you type."
        )  # fmt: skip
        print_note(
            f"{self._name}, a context of {self._session.context} tokens.{how} /help shows "
            "commands, Ctrl-C stops an answer, Ctrl-D leaves; a line that ends in \\ goes on in "
            "the next."
        )

    def _turn(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if not word.startswith("/"):
            self._answer(text)
        elif word.startswith("//"):
            self._answer(text[1:])  # a text that begins with a slash
        elif (command := self._commands.get(word.strip())) is not None:
            command(rest.strip())
        else:
            raise InputError(
                f"there is no {word}; /help shows what there is, and // begins a text with /"
            )

    def _answer(self, text: str, **sampling: int) -> None:
        conversation = self._conversation
        try:
            with _stopped_by_interrupt() as stop:
                with closing(conversation.answer(text, cancel=stop, **sampling)) as pieces:
                    print_pieces(pieces)
                if stop.is_set():
                    print_note("(stopped)")
        except ContextError as error:
            raise ContextError(self._does_not_fit()) from error
        last = conversation.last
        if last is not None and last.finish_reason == "length":
            session = self._session
            if session.position == session.context:
                print_note(
                    f"(the context of {session.context} tokens is full: /reset begins anew"
                    f"{self._longer()})"
                )
            else:
                print_note(f"(ended after {last.new_tokens} tokens, by --max-tokens)")

    def _does_not_fit(self) -> str:
        context = self._session.context
        if len(self._conversation.messages) < 2:
            return (
                f"the text does not fit into the context of {context} tokens: shorten it"
                f"{self._longer()}"
            )
        return (
            f"the conversation does not fit into the context of {context} tokens any more: /reset "
            f"begins anew{self._longer()}"
        )

    def _longer(self) -> str:
        longest = self._session.manifest.spec.max_context
        return f", or start with --context {longest}" if self._session.context < longest else ""

    def _help(self, rest: str) -> None:
        print_facts("commands", list(COMMANDS.items()))

    def _stats(self, rest: str) -> None:
        from ...tables.model import stat_rows

        rows = stat_rows(self._session.stats)
        last = self._conversation.last
        if last is not None:
            known = f"{last.reused_tokens} of {last.prompt_tokens} tokens"
            rows.insert(0, ("last answer", f"{last.new_tokens} tokens; {known} before it reused"))
        print_facts("stats", rows)

    def _budget(self, rest: str) -> None:
        session = self._session
        if rest:
            budget = None if rest.lower() == "none" else rest
            session.set_memory_budget(budget)
        stats = session.stats
        limit = "no limit" if stats.budget_bytes is None else format_size(stats.budget_bytes)
        print_note(f"{limit}; {stats.cache_slots} of {stats.num_pages} experts fit")

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        save_messages(path, self._name, self._conversation.messages)
        print_note(f"{len(self._conversation.messages)} messages are in {path}")

    def _load(self, rest: str) -> None:
        messages = load_messages(_path(rest, "/load"))
        self._conversation.messages = messages
        print_note(f"{len(messages)} messages; the next answer goes on from there")

    def _system(self, rest: str) -> None:
        if self._session.chat_template is None:
            raise InputError("the bundle has no chat template, so nothing to tell the model first")
        others = [message for message in self._conversation.messages if message["role"] != "system"]
        first = [{"role": "system", "content": rest}] if rest else []
        self._conversation.messages = [*first, *others]
        print_note("from the next answer on" if rest else "no system message any more")

    def _reset(self, rest: str) -> None:
        kept = [message for message in self._conversation.messages if message["role"] == "system"]
        self._conversation.messages = kept[:1]
        print_note("begun anew" + ("; the system message stays" if kept else ""))

    def _retry(self, rest: str) -> None:
        messages = self._conversation.messages
        at = next(
            (
                index
                for index in reversed(range(len(messages)))
                if messages[index]["role"] == "user"
            ),
            None,
        )
        if at is None:
            raise InputError("nothing was said yet that could be answered again")
        self._conversation.messages = messages[:at]
        sampling = {}
        if self._seed is not None:
            self._tries += 1
            sampling["seed"] = self._seed + self._tries
        try:
            self._answer(messages[at]["content"], **sampling)
        finally:
            if len(self._conversation.messages) <= at:  # nothing came: as it was
                self._conversation.messages = messages


def _path(text: str, command: str) -> Path:
    if not text:
        raise InputError(f"which file? {command} FILE")
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":  # as in a shell
        text = text[1:-1]
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~name, of whom there is none
        raise InputError(f"{text.split('/')[0]} is no user of this machine") from error


@contextlib.contextmanager
def _stopped_by_interrupt() -> Iterator[threading.Event]:
    """The event is set by Ctrl-C, which ends the answer between two tokens; a second Ctrl-C
    interrupts at once."""
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if stop.is_set() or not sys.stdin.isatty():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
