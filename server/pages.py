"""Responses that are no answers of a model: errors, models, health, the description, the page."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from .refusals import RequestError

PAGE = Path(__file__).parent / "page"


def refusal_response(error: RequestError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def page_paths() -> frozenset[str]:
    """Where the files of the page are: nothing else of the server is for all to see."""
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    paths = {"/" + path.relative_to(PAGE).as_posix() for path in files}
    return frozenset(paths | {"/"} if paths else ())


@cache
def description() -> dict[str, Any]:
    """The server's OpenAPI description; kept by hand."""
    text = (resources.files(__package__) / "openapi.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
