"""Bodies that are no JSON object, or hold what JSON cannot."""

from typing import Any

import pytest

from pocketmoe.tests.support.serving import CHAT, TEXT


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b'{"model": "tiny", ', "line 1, column 19"),
        (b"{'model': 'tiny'}", "not JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "surrogate"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"a":' * 90_000, "nested too deeply"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"x": [' + b"[]," * 60_000 + b"[]]}", "more than 108192 values"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_not_json(refused: Any, path: str, body: bytes, word: str) -> None:
    refused(path, body, None, word)
