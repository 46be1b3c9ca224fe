"""The chat template of a checkpoint, taken into its bundle.

Where transformers looks, and in that order of rank (`tokenization_utils_base.py`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..bundle.manifest import CHAT_TEMPLATE
from ..errors import CheckpointError
from ..model.checkpoint.checkpoint import read_json
from ..runtime.generation.template import find_fault

_JINJA = "chat_template.jinja"
_JSON = "chat_template.json"
_CONFIG = "tokenizer_config.json"
_TOKENS = "special_tokens_map.json"
_KEY = "chat_template"
_log = logging.getLogger(__name__)


def write_chat_template(root: Path, checkpoint: Path) -> None:
    """Writes the chat template and its special tokens into a bundle; nothing where there is none.

    Raises:
        CheckpointError: the template cannot be read or does not parse.
    """
    found = find_template(checkpoint)
    if found is None:
        return
    path, template = found
    fault = find_fault(template)
    if fault is not None:
        raise CheckpointError(
            f"{path}: the chat template is not valid, {fault}; correct it, or remove it"
        )
    content = {"template": template, "special_tokens": special_tokens(checkpoint)}
    (root / CHAT_TEMPLATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def find_template(checkpoint: Path) -> tuple[Path, str] | None:
    """The template, and the file that it is from."""
    path = checkpoint / _JINJA
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    for name in (_JSON, _CONFIG):
        path = checkpoint / name
        if path.is_file() and (template := _default(path, read_json(path).get(_KEY))):
            return path, template
    return None


def _default(path: Path, value: Any) -> str | None:
    """A template, or the one named "default" of a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    try:
        named = {item["name"]: item["template"] for item in value}
        default = named.get("default")
    except (KeyError, TypeError):
        default = value
    if default is not None and not isinstance(default, str):
        raise CheckpointError(
            f"{path}: {_KEY} is neither text nor a list of names and texts; "
            "correct it, or remove it"
        )
    if default is None:
        _log.warning("%s: no chat template is named default, so none is taken", path)
    return default


def special_tokens(checkpoint: Path) -> dict[str, str]:
    """Special tokens by name, such as `bos_token`.

    special_tokens_map.json counts where tokenizer_config.json is of the older form, which does not
    list the added tokens.
    """
    config = checkpoint / _CONFIG
    entries = read_json(config) if config.is_file() else {}
    older = checkpoint / _TOKENS
    if "added_tokens_decoder" not in entries and older.is_file():
        entries = {**entries, **read_json(older)}
    tokens = {}
    for name, value in entries.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            tokens[name] = token
    return tokens
