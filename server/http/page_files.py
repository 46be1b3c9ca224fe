"""The page's files, with what they are allowed to do: to load and to ask from here alone."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).parents[1] / "page"
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)


class PageFiles(StaticFiles):
    """Answers as StaticFiles does. Browsers ask anew each time, as files change with releases."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            try:
                there = self.lookup_path(path)[1] is not None
            except (OSError, ValueError):  # no name that a file can have
                there = False
            if not there:
                raise HTTPException(status_code=404)
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = POLICY
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "same-origin"
        response.headers["cache-control"] = "no-cache"
        return response


def page_paths() -> frozenset[str]:
    """Where the files of the page are: nothing else of the server is for all to see."""
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    paths = {"/" + path.relative_to(PAGE).as_posix() for path in files}
    return frozenset(paths | {"/"} if paths else ())
