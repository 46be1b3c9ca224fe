"""The chat template of a bundle: it makes the text of a prompt from a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle.manifest import CHAT_TEMPLATE, Manifest, check_file
from ...errors import BundleError, InputError

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the special tokens that it may write, such as `bos_token`.

    The first use of one imports jinja2 and compiles the template: 5 MiB and 60 ms.
    """

    source: str
    special_tokens: Mapping[str, str]

    def prepare(self) -> None:
        """Compiles it now. Raises BundleError where that is not possible."""
        fault = find_fault(self.source)
        if fault is not None:
            raise BundleError(f"the bundle's chat template is not valid, {fault}; compile it again")

    def render(
        self, messages: Sequence[Message], /, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for a conversation, special tokens included, as transformers renders it.

        messages: `{"role": ..., "content": ...}` each; they and the variables hold what JSON can.
        add_generation_prompt: end with the start of an answer.

        Raises:
            InputError: no messages, messages of another form, or the template refuses them or
                fails on them.
            BundleError: the template does not compile.
        """
        given = {"messages": _checked(messages), "tools": None, "documents": None, **variables}
        try:
            # A copy of plain types: a template can change nothing of the caller's, and calls none
            # of its methods.
            given = json.loads(json.dumps(given))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"messages and variables must be what JSON can hold: {error}"
            ) from error
        self.prepare()
        from .sandbox import TemplateRefusal, compile_template

        try:
            return compile_template(self.source).render(
                {
                    **self.special_tokens,
                    **given,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except TemplateRefusal as error:
            raise InputError(
                f"the chat template refuses the conversation: {_one_line(error)}"
            ) from error
        except Exception as error:  # foreign code, which fails in any way that Python can
            raise InputError(
                f"the chat template fails on the conversation ({_one_line(error)}); "
                "change the messages, or give a prompt without the template"
            ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, without the keys whose value is None, which templates would write as text."""
    if isinstance(messages, (str, Mapping)) or not messages:
        raise InputError("a conversation is a list of messages; give at least one")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(
                f'message {number} is not of the form {{"role": "user", "content": "text"}}'
            )
    return [
        {key: value for key, value in message.items() if value is not None} for message in messages
    ]


def find_fault(source: str) -> str | None:
    """Why a template does not compile, with the line where it is known; None where it does."""
    from jinja2 import TemplateSyntaxError

    from .sandbox import compile_template

    try:
        compile_template(source)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"  # Python refuses the code made of it
    return None


def load_chat_template(root: Path, manifest: Manifest) -> ChatTemplate | None:
    """The chat template of a bundle, or None where it has none.

    Raises:
        BundleError: the file is not what the compiler wrote.
    """
    if CHAT_TEMPLATE not in manifest.files:
        return None
    check_file(root, manifest, CHAT_TEMPLATE)
    path = root / CHAT_TEMPLATE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return ChatTemplate(str(data["template"]), dict(data["special_tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error!r}); compile the bundle again") from error
