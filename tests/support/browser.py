"""A browser for tests: the machine's own Chromium, driven by Playwright."""

import contextlib
import mimetypes
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import pocketmoe
from pocketmoe.tests.support.waiting import PATIENCE

PAGE = Path(pocketmoe.__file__).parent / "server" / "page"
FILES = "http://page.test/"  # where `serve_files` puts the page's files
BLANK = f"{FILES}blank"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Skips the test where there is no Playwright or no Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip(f"no Chromium here: none of {', '.join(_NAMES)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that is open, and what went wrong on it. foreign: requests to another origin."""

    def __init__(self, page: Any, url: str):
        self.page, self.url = page, url
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._see_request)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._see_console)

    def _see_request(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.foreign.append(request.url)

    def _see_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self) -> Any:
        self.page.goto(self.url)
        self.page.wait_for_selector("#link[data-state=live]")
        return self.page


@contextlib.contextmanager
def visit(
    browser: Any, url: str, *, expected: tuple[str, ...] = (), **context: Any
) -> Iterator[Any]:
    """A page that is live. At the end nothing has gone wrong, and nothing was asked of elsewhere.

    expected: parts of messages in the console that the test brings about. context: of the browser.
    """
    with contextlib.closing(browser.new_context(**context)) as held:
        held.set_default_timeout(1000 * PATIENCE)
        seen = Visit(held.new_page(), url)
        yield seen
        wrong = [text for text in seen.errors if not any(part in text for part in expected)]
        assert (wrong, seen.foreign) == ([], [])


def serve_files(page: Any) -> None:
    """Answers requests to FILES from the page's folder, without a server."""

    def answer(route: Any) -> None:
        if route.request.url == BLANK:
            styles = "".join(
                f'<link rel="stylesheet" href="/{path.relative_to(PAGE).as_posix()}">'
                for path in sorted(PAGE.rglob("*.css"))
            )
            body = f"<!doctype html><title>blank</title>{styles}<body><main id=place></main>"
            route.fulfill(body=body, content_type="text/html")
            return
        path = PAGE / (urlsplit(route.request.url).path.lstrip("/") or "index.html")
        if not path.is_file():
            route.fulfill(status=404)
            return
        kind = mimetypes.guess_type(path.name)[0] or "text/plain"
        route.fulfill(body=path.read_bytes(), content_type=kind)

    page.route(f"{FILES}**", answer)


def send(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def await_end(page: Any) -> None:
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector(".foot")


def wait_until(page: Any, script: str, arg: object = None, seconds: float = PATIENCE) -> None:
    """Until a script returns what is true. Playwright's own way is against the page's policy."""
    end = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        assert time.monotonic() < end, script
        page.wait_for_timeout(30)


def set_tokens(page: Any, most: int) -> None:
    page.click("#open-settings")
    page.fill("[name=max_tokens]", str(most))
    page.fill("[name=seed]", "7")
    page.click("#settings button.primary")
