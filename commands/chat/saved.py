"""Conversations as files: what /save writes and /load reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import PRIVATE, write_atomically

FORMAT, VERSION = "pocketmoe chat", 1
_ROLES = ("system", "user", "assistant")
_LARGEST = 64 << 20  # bytes


def save_messages(path: Path, model: str, messages: Sequence[Mapping[str, Any]]) -> None:
    """Writes a conversation, for its owner alone. model: the bundle's name.

    Raises:
        InputError: the file cannot be written, or is there and no conversation.
    """
    if "\0" in str(path):
        raise InputError(f"a file's name has no NUL in it: {str(path)!r}")
    if os.path.lexists(path):
        try:
            load_messages(path)
        except InputError as error:
            raise InputError(
                f"{path} exists and is no conversation; choose another name"
            ) from error
    data = {"format": FORMAT, "version": VERSION, "model": model, "messages": list(messages)}
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomically(path, text, mode=PRIVATE)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); choose another name") from error


def load_messages(path: Path) -> list[Mapping[str, Any]]:
    """Raises InputError where the file is no conversation."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError("another format")
        messages: list[Mapping[str, Any]] = [
            {"role": message["role"], "content": message["content"]} for message in data["messages"]
        ]
        for message in messages:
            if message["role"] not in _ROLES or not isinstance(message["content"], str):
                raise ValueError("a message of another form")
            message["content"].encode("utf-8")  # JSON's escapes can make what is no text
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no conversation that /save has written ({error})") from error
    return messages
