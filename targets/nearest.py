"""The names that a wrong name of a device may stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_WORD = re.compile(r"[a-z]+|[0-9]+")
_MAKERS = {"nvidia", "geforce"}  # which no name here begins with
_COMMON = {"jetson", "rtx", "gb"}  # which do not tell one from another
_MOST_SHOWN = 5
_ALIKE = 0.65


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """The names that `name` may stand for, whatever its case, spaces and punctuation; at most 5.

    The same letters and digits are best; then names that have all of its words (`4090`, `orin
    nano`), or of which it has all (`rtx 4090 24gb`); then those with the most of its words; then
    those that are spelled alike.
    """
    words = {word for word in _WORD.findall(name.lower()) if word not in _MAKERS}
    letters = "".join(word for word in _WORD.findall(name.lower()) if word in words)
    if not words:
        return []
    by_letters = {"".join(_WORD.findall(other)): other for other in known}
    if letters in by_letters:
        return [by_letters[letters]]
    held = {other: set(_WORD.findall(other)) for other in by_letters.values()}
    near = [other for other, parts in held.items() if parts >= words]
    near = near or [other for other, parts in held.items() if parts <= words]
    telling = {word for word in words - _COMMON if len(word) > (3 if word.isdigit() else 2)}
    shared = {other: len(parts & telling) for other, parts in held.items()}
    most = max(shared.values(), default=0)
    near = near or [other for other, count in shared.items() if 0 < count == most]
    near = near or [by_letters[key] for key in get_close_matches(letters, by_letters, 3, _ALIKE)]
    return near[:_MOST_SHOWN]
