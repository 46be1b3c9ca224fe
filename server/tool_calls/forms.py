"""How a chat template has the model write its calls: found by having it render one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import PocketMoEError
from ...runtime.generation.template import ChatTemplate

_log = logging.getLogger(__name__)
_NAME, _KEY = "probe_of_tools", "probe_of_arguments"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Does nothing.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
    },
}
_USER = {"role": "user", "content": "Hello"}
_CALL = {
    "id": "a1b2c3d4e",  # nine letters and digits, as Mistral's templates want it
    "type": "function",
    "function": {"name": _NAME, "arguments": {_KEY: "x"}},
}
_ANSWER = {"role": "tool", "name": _NAME, "tool_call_id": "a1b2c3d4e", "content": "x"}

Kind = Literal["tagged", "json", "listed", "headed"]


@dataclass(frozen=True)
class ToolForm:
    """kind: "tagged", <tool_call>{…}</tool_call> around each call (Hermes, Qwen); "json", calls and
    nothing else (Llama 3); "listed", a mark and then an array of calls (Mistral until 2024);
    "headed", the mark, a name, [ARGS] and the arguments, for each call (Mistral since).
    arguments: the key of the arguments in a call.
    """

    kind: Kind
    arguments: str

    @property
    def mark(self) -> str:
        return {"tagged": "<tool_call>", "json": "", "listed": "[TOOL_CALLS]",
                "headed": "[TOOL_CALLS]"}[self.kind]  # fmt: skip

    def beginning(self, names: Sequence[str]) -> str | None:
        """Text that begins an answer which must be a call of one of these tools; None where no
        single text does."""
        if self.kind == "tagged":
            return "<tool_call>\n"
        if self.kind == "listed":
            return "[TOOL_CALLS] "
        if self.kind == "headed":
            return f"[TOOL_CALLS]{names[0]}[ARGS]" if len(names) == 1 else None
        return ""

    def call_grammar(self, schemas: Mapping[str, Any]) -> str:
        """A grammar in Lark's form of what follows `beginning`: a call of one of these tools."""
        if self.kind == "headed":
            (only,) = schemas.values()
            return f"start: {_json(only)}"
        start = 'start: "[" call "]"' if self.kind == "listed" else "start: call"
        return f"{start}\n{self._call_rules(schemas)}"

    def answer_grammar(self, schemas: Mapping[str, Any]) -> str | None:
        """A grammar of any answer whose calls are valid; None where marks are special tokens, which
        grammars of text do not know."""
        call = self._call_rules(schemas)
        if self.kind == "json":
            return f"start: call | TEXT\nTEXT: /([^{{\\[\\s](.|\\n)*)?/\n{call}"
        if self.kind != "tagged":
            return None
        return (
            "start: marked* TEXT\n"
            "TEXT: /(.|\\n)*/\n"
            'mark[lazy]: TEXT "<tool_call>"\n'
            'marked: mark "\\n" call "\\n</tool_call>"\n' + call
        )

    def _call_rules(self, schemas: Mapping[str, Any]) -> str:
        """The rule `call`: any one of the tools. Each schema is a document of its own, to which its
        references lead."""
        rules = []
        for name, schema in schemas.items():
            begun = f'{{"name": {json.dumps(name)}, "{self.arguments}": '
            rules.append(f'{json.dumps(begun)} ({_json(schema)}) "}}"')
        return "call: " + "\n    | ".join(rules)


def _json(schema: Mapping[str, Any]) -> str:
    """JSON of a schema, in Lark's form, with the spaces that models write."""
    form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**schema, 'x-guidance': form})}"


def find_tool_form(template: ChatTemplate | None) -> tuple[ToolForm | None, str]:
    """The form, or None and why there is none."""
    if template is None:
        return None, "the bundle has no chat template"
    try:
        if _NAME not in template.render([_USER], tools=[_TOOL]):
            return None, "the model's chat template knows no tools"
    except PocketMoEError as error:
        _log.info("a tool cannot be offered: %s", error)
        return None, "the model's chat template fails on tools"
    said = {"role": "assistant", "tool_calls": [_CALL]}
    for content in ({}, {"content": ""}):
        try:
            text = template.render([_USER, {**said, **content}, _ANSWER, _USER], tools=[_TOOL])
        except PocketMoEError as error:
            _log.info("a call cannot be rendered: %s", error)
            continue
        if found := recognize(text):
            return found, ""
    if found := recognize(template.source):
        return found, ""
    return None, "calls in the form of the model's chat template cannot be read here"


def recognize(text: str) -> ToolForm | None:
    """The form of the calls in a rendered conversation, or in a template's source."""
    key = "parameters" if re.search(r'"parameters"\s*:\s*\{\s*"' + _KEY, text) else "arguments"
    if re.search(r"\[TOOL_CALLS\]\s*" + _NAME, text) or "[ARGS]" in text:
        return ToolForm("headed", key)
    if "[TOOL_CALLS]" in text:
        return ToolForm("listed", key)
    if re.search(r"<tool_call>\s*\{", text) or ("<tool_call>" in text and "<function=" not in text):
        return ToolForm("tagged", key)
    if re.search(r'\{\s*"name"\s*:\s*"' + _NAME + r'"\s*,\s*"(parameters|arguments)"', text):
        return ToolForm("json", key)
    return None
