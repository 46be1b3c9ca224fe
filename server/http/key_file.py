"""The keys that clients must show."""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

from ...errors import InputError

_SHORTEST = 16  # characters


class Keys:
    """Only hashes are kept, and comparing takes the same time whatever is shown."""

    def __init__(self, keys: list[str]):
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def accept(self, key: str) -> bool:
        shown = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, shown)
        return found


def read_keys(path: Path) -> Keys:
    """One key per line; empty lines and lines that begin with # do not count.

    Raises:
        InputError: there are no keys, short or odd ones, or others may read the file.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a directory; name a file in it, with one key per line")
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(f"others may read {path}; run: chmod 600 {path}")
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} holds other characters than ASCII; write new keys") from error
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"{path} holds no key; run: openssl rand -hex 32 > {path}")
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST or not key.isprintable() or " " in key:
            raise InputError(
                f"key {number} of {path} must have {_SHORTEST} characters or more, and no spaces"
            )
    return Keys(keys)
