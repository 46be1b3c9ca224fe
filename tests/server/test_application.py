"""Paths and methods that there are not."""

from typing import Any

import pytest

from pocketmoe.tests.support.serving import CHAT


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/a/b/%00%ff", 404),
        ("PUT", "/", 405),
        ("PUT", "/nothing", 404),
        ("PUT", "/%00", 404),
        ("PUT", "/" + "a" * 300, 404),
    ],
)
def test_paths(refused: Any, method: str, path: str, status: int) -> None:
    refused(path, None, "model" if "models/" in path else None, method=method, status=status)
