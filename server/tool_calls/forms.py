"""The forms of tool calls, and the one in which a chat template has its model write them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import PocketMoEError
from ...runtime.generation.template import ChatTemplate
from . import hermes, llama_json, mistral_args, mistral_array
from .call import ToolCall

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


class ToolForm(Protocol):
    """A form: each is a module with these names.

    schemas: of the arguments of tools, by the tools' names. key: of the arguments in a call that is
    an object, "arguments" or "parameters".
    """

    START: str
    """The mark that begins a call; empty where an answer is a call from its first character on."""
    END: str
    """The mark that ends it, after which text may follow; empty where the rest of the answer is
    calls."""

    def detect(self, text: str, name: str) -> bool:
        """Whether a conversation with a call of the tool `name`, or the source of a chat template,
        has calls in this form."""
        ...

    def beginning(self, names: Sequence[str]) -> str | None:
        """Text that begins an answer which must be a call of one of these tools; None where no
        single text does."""
        ...

    def call_grammar(self, schemas: Mapping[str, Any], key: str) -> str:
        """A grammar in Lark's form of what follows `beginning`: a call of one of these tools."""
        ...

    def answer_grammar(self, schemas: Mapping[str, Any], key: str) -> str | None:
        """A grammar of any answer whose calls are valid; None where there is none."""
        ...

    def read_calls(self, text: str, names: Collection[str], key: str) -> list[ToolCall]:
        """The calls in what stands between START and END, or after START where there is no END.
        Empty where it is anything but calls of `names`."""
        ...

    def read_forced(self, text: str, names: Sequence[str], key: str) -> ToolCall | None:
        """The call in a text that fits `call_grammar`, as far as it came; None where not even its
        name did."""
        ...


# The first one that detects itself is taken.
FORMS: tuple[ToolForm, ...] = (mistral_args, mistral_array, hermes, llama_json)


@dataclass(frozen=True)
class CallStyle:
    """How a template has calls written: in which form. key: see ToolForm."""

    form: ToolForm
    key: str


def find_call_style(template: ChatTemplate | None) -> tuple[CallStyle | None, str]:
    """The style, found by having the template render a call; or None and why there is none."""
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


def recognize(text: str) -> CallStyle | None:
    """The style of the calls in a rendered conversation, or in a template's source."""
    key = "parameters" if re.search(r'"parameters"\s*:\s*\{\s*"' + _KEY, text) else "arguments"
    form = next((form for form in FORMS if form.detect(text, _NAME)), None)
    return None if form is None else CallStyle(form, key)
