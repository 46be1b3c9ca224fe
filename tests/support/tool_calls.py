"""Answers divided into text and calls, and grammars of answers, for the tests of each form."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pocketmoe.runtime.generation.grammar import Grammar, Matcher
from pocketmoe.runtime.generation.text import load_tokenizer
from pocketmoe.runtime.generation.vocabulary import Vocabulary
from pocketmoe.server.tool_calls.call import ToolCall
from pocketmoe.server.tool_calls.forms import CallStyle
from pocketmoe.server.tool_calls.reader import CallReader

F, G = ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")
SCHEMAS: Mapping[str, Any] = {
    "f": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
}
SIZES = (1, 3, 1000)


def divide(style: CallStyle, text: str, size: int) -> list[Any]:
    """What a reader makes of a text that comes in pieces of `size`; texts joined."""
    reader = CallReader(style, ("f", "g"))
    parts: list[Any] = []
    for start in range(0, len(text), size):
        parts += reader.push(text[start : start + size])
    parts += reader.finish()
    joined: list[Any] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def acceptance(style: CallStyle, bundle: Path) -> Callable[[str], bool]:
    """Whether a text fits the grammar of answers that may call SCHEMAS."""
    source = style.form.answer_grammar(SCHEMAS, style.key)
    assert source is not None
    tokenizer = load_tokenizer(bundle / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, tokenizer.get_vocab_size(), (0,))

    def accepts(text: str) -> bool:
        matcher = Matcher(Grammar.lark(source), vocabulary)
        for token in tokenizer.encode(text).ids:
            if token not in matcher.allowed():
                return False
            matcher.add(token)
        return 0 in matcher.allowed()

    return accepts
