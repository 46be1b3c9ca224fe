"""Text that comes in as bytes."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        InputError: it is empty or not UTF-8.
    """
    text = decode_utf8(path.read_bytes(), str(path))
    if not text:
        raise InputError(f"{path} is empty; give a file with text")
    return text


def decode_utf8(data: bytes, source: str) -> str:
    """`data` as text; `source` names it in the error."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8 text: byte 0x{data[error.start]:02x} at position "
            f"{error.start}; convert it to UTF-8"
        ) from error
