"""Summarises a text of any length: parts that fit into the context, then their summaries together.

python examples/summarize.py BUNDLE notes.txt --memory-budget 2GiB --context 2048
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pocketmoe

TASK = "Summarise this text in a few sentences:"
SUMMARY_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise a text of any length.")
    parser.add_argument("bundle")
    parser.add_argument("text", type=Path)
    parser.add_argument("--memory-budget")
    parser.add_argument("--context", type=int)
    parser.add_argument("--tokens", type=int, default=SUMMARY_TOKENS, help="of a summary")
    given = parser.parse_args()
    try:
        text = given.text.read_text(encoding="utf-8")
        with pocketmoe.open(
            given.bundle, memory_budget=given.memory_budget, context=given.context
        ) as session:
            if not text.strip():
                raise SystemExit("error: the text is empty")
            if room(session, given.tokens) < given.tokens:
                raise SystemExit(
                    f"error: a context of {session.context} tokens leaves too little room for text "
                    f"beside a summary of {given.tokens}: use a larger --context or fewer --tokens"
                )
            print(summarize_all(session, text, given.tokens))
    except OSError as error:
        raise SystemExit(f"error: {error.filename}: {error.strerror}") from None
    except (UnicodeDecodeError, pocketmoe.PocketMoEError) as error:
        raise SystemExit(f"error: {error}") from None


def summarize_all(session: pocketmoe.Session, text: str, tokens: int) -> str:
    while len(parts := list(split(session, text, tokens))) > 1:
        print(f"{len(parts)} parts", flush=True)
        shorter = "\n".join(summarize(session, part, tokens) for part in parts)
        if len(shorter) >= len(text):
            raise SystemExit("the summaries are no shorter than the text: use a larger context")
        text = shorter
    return summarize(session, text, tokens)


def summarize(session: pocketmoe.Session, text: str, tokens: int) -> str:
    return session.generate(prompt_for(session, text), max_new_tokens=tokens).text().strip()


def prompt_for(session: pocketmoe.Session, text: str) -> str | list[dict[str, str]]:
    """As the chat template wants it; where there is none, a text that asks to be continued."""
    if session.chat_template is None:
        return f"{TASK}\n\n{text}\n\nSummary:"
    return [{"role": "user", "content": f"{TASK}\n\n{text}"}]


def room(session: pocketmoe.Session, tokens: int) -> int:
    """Tokens of text that fit beside the task and a summary."""
    return session.context - tokens - count(session, "")


def count(session: pocketmoe.Session, text: str) -> int:
    """Tokens of the prompt for a text."""
    prompt = prompt_for(session, text)
    return len(session.encode(prompt) if isinstance(prompt, str) else session.encode_chat(prompt))


def split(session: pocketmoe.Session, text: str, tokens: int) -> Iterator[str]:
    """Parts of whole lines, where they are not too long, that leave room for a summary."""

    def fits(part: str) -> bool:
        return count(session, part) + tokens <= session.context

    part = ""
    for line in text.splitlines(keepends=True):
        for piece in halved(line, fits):
            if part and not fits(part + piece):
                yield part
                part = ""
            part += piece
    yield part


def halved(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Pieces that fit, cut between words if possible."""
    if fits(text) or len(text) < 2:
        yield text
        return
    middle = len(text) // 2
    at = text.rfind(" ", 0, middle) + 1 or middle
    yield from halved(text[:at], fits)
    yield from halved(text[at:], fits)


if __name__ == "__main__":
    main()
