"""Text in, sequences of token ids out: what a model is calibrated with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

_log = logging.getLogger(__name__)
_JSON_LINES = (".jsonl", ".ndjson")
_TEXT_KEYS = ("text", "content")
_BATCH = 64  # texts that are tokenized together


class NotUtf8Error(InputError):
    """A file is no text."""


@dataclass(frozen=True)
class CalibrationText:
    """ids: int64 `[sequences, seq_len]`. sha256: of the ids. source: where the text is from.
    available: sequences that the text would have given."""

    ids: np.ndarray
    sha256: str
    source: str
    available: int


def read_sequences(
    path: Path, tokenizer: Any, *, tokens: int, seq_len: int, seed: int
) -> CalibrationText:
    """Draws about `tokens` tokens, in sequences of seq_len, from a text file, a JSON-lines file
    with a "text" in each line, or all such files below a directory.

    Texts follow one another, and sequences are pieces of that, chosen by `seed`; where the text is
    shorter, all of it is used, which is logged.

    Raises:
        InputError: there is no text, or not one sequence of it, or it is not UTF-8.
    """
    count = max(1, tokens // seq_len)
    if tokens < seq_len:
        _log.warning(
            "one sequence of %d tokens is used, more than the %d asked for", seq_len, tokens
        )
    stream = _tokenize(read_texts(path), tokenizer, path)
    available = len(stream) // seq_len
    if not available:
        raise InputError(
            f"{path} holds {len(stream)} tokens, too few for one sequence of {seq_len}; give more "
            "text, or a smaller --seq-len"
        )
    if available < count:
        _log.warning(
            "%s holds %d tokens (%d sequences of %d), fewer than the %d asked for: all are used",
            path, available * seq_len, available, seq_len, tokens,
        )  # fmt: skip
    pieces = stream[: available * seq_len].reshape(available, seq_len)
    chosen = np.sort(np.random.default_rng(seed).permutation(available)[:count])
    ids = np.ascontiguousarray(pieces[chosen])
    return CalibrationText(ids, hashlib.sha256(ids.tobytes()).hexdigest(), str(path), available)


def _tokenize(texts: Iterator[str], tokenizer: Any, path: Path) -> np.ndarray:
    parts: list[np.ndarray] = []
    batch: list[str] = []

    def flush() -> None:
        for encoding in tokenizer.encode_batch(batch):
            parts.append(np.array(encoding.ids, np.int64))
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            flush()
    flush()
    if not sum(map(len, parts)):
        raise InputError(f"{path} has no text in it; give a file with text")
    return np.concatenate(parts)


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, or of all UTF-8 files below a directory in the order of their names;
    hidden ones are left out, and what is not UTF-8 there with a warning.

    Raises (from the iterator):
        InputError: a file cannot be read, is not UTF-8, or a line is no JSON with a text.
    """
    if path.is_dir():
        files = [item for item in sorted(path.rglob("*")) if item.is_file()]
        files = [item for item in files if not _hidden(item.relative_to(path))]
        if not files:
            raise InputError(f"{path} has no files in it; give a file or directory with text")
        skipped = 0
        for file in files:
            try:
                yield from _read_file(file)
            except NotUtf8Error as error:
                _log.info("%s", error)
                skipped += 1
        if skipped:
            _log.warning(
                "%s: what is not UTF-8 text is left out: %d of %d files", path, skipped, len(files)
            )
        return
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file or directory with text")
    yield from _read_file(path)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_file(path: Path) -> Iterator[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(
            f"{path} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it to UTF-8"
        ) from error
    if path.suffix not in _JSON_LINES:
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _text_of(line, f"{path}:{number}")


def _text_of(line: str, where: str) -> str:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); mend or remove the line") from error
    found = [item[key] for key in _TEXT_KEYS if key in item] if isinstance(item, dict) else []
    if not found:
        raise InputError(f'{where} has no "text": each line is to be an object with one')
    text = next((one for one in found if isinstance(one, str)), None)
    if text is None:
        raise InputError(f'{where}: its "text" is no string; mend or remove the line')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: its text has half of a surrogate pair, \\u{ord(text[error.start]):04x}, "
            "which is no character; mend or remove the line"
        ) from error
    return text
