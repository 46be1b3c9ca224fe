"""Licence files, known by their names."""

from __future__ import annotations

import re

_TEXT = re.compile(
    r"(licen[cs]es?|copying|notice|copyright|authors|use.?policy|"
    r"third.?party.?(notices?|licen[cs]es?))([._-][^/]*)?", re.IGNORECASE,
)  # fmt: skip


def is_licence(name: str) -> bool:
    """name: without folders, such as LICENSE.txt or NOTICE."""
    return _TEXT.fullmatch(name) is not None
