"""How the page looks and is reached: sizes of grids, widths, keyboard, contrast, motion."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.tests.support.browser import (
    await_end,
    open_browser,
    send,
    set_tokens,
    visit,
    wait_until,
)
from pocketmoe.tests.support.serving import server_process

pytestmark = pytest.mark.slow
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def chat_url(browser: Any, served_bundle: Path) -> Iterator[str]:
    with server_process(served_bundle) as (_, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize(("layers", "experts"), [(7, 16), (16, 64), (61, 256), (1, 1)])
def test_grids_of_all_sizes_fit(browser: Any, chat_url: str, layers: int, experts: int) -> None:
    total = layers * experts
    model = {
        "name": "large", "chat": True, "num_pages": total, "page_bytes": 1 << 20, "parallel": 1,
        "layers": [{"layer": layer, "experts": experts} for layer in range(layers)],
        "memory_budget": None, "smallest_budget": 1 << 30, "largest_budget": 3 << 30,
        "context": 4096,
    }  # fmt: skip
    told = {
        "seconds": 0.25, "resident": "/////////////w==", "resident_pages": 96, "hit_rate": 0.5,
        "recent_hit_rate": 0.5, "tokens_per_second": 9.5, "bytes_read": 3 << 30,
        "memory_budget": None, "slots": total, "running": 1, "queued": 2,
        "resident_memory": 3 << 30,
    }  # fmt: skip
    events = [
        {**told, "first": True, "used": [0, 1]},
        {**told, "first": False, "used": [0, 2, total - 1, 3]},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    for size in (PHONE, {"width": 1280, "height": 800}):
        with visit(browser, chat_url, viewport=size) as seen:
            page = seen.page
            page.route("**/live/model", lambda route: route.fulfill(json=model))
            page.route(
                "**/live/events",
                lambda route: route.fulfill(body=body, content_type="text/event-stream"),
            )
            page.goto(seen.url)
            wait_until(page, "/[1-9] were used/.test(document.getElementById('grid').ariaLabel)")
            box = page.locator("#grid").bounding_box()
            assert 1 <= box["height"] <= (130 if size == PHONE else 460)
            assert box["x"] + box["width"] <= size["width"]
            assert page.inner_text("#figure-pages").startswith("96")
            if size == PHONE:
                page.click("#more")
            page.click("#table-details summary")
            assert page.locator("#table-rows tr").count() == layers
            row = "document.querySelector('#table-rows tr:last-child').innerText"
            last = f"{row}.includes({experts - 1})"
            wait_until(page, last)
            page.focus("#grid")
            page.keyboard.press("ArrowRight")
            assert "Layer 0, expert 0" in page.inner_text("#grid-note")


@pytest.mark.parametrize("width", [320, 360, 800, 1280])
def test_nothing_sticks_out(browser: Any, chat_url: str, width: int) -> None:
    with visit(browser, chat_url, viewport={"width": width, "height": 740}) as seen:
        page = seen.open()
        set_tokens(page, 8)
        send(page, "x" * 300)
        await_end(page)
        if width < 860:
            page.click("#more")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("#prompt", "#send", "#new", "#theme", "#budget-range"):
            page.locator(name).scroll_into_view_if_needed()
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= width, name


def test_keyboard_alone_reaches_everything_in_order(browser: Any, chat_url: str) -> None:
    with visit(browser, chat_url) as seen:
        page = seen.open()
        assert page.evaluate("document.activeElement.id") == "prompt"
        page.evaluate("document.querySelector('.skip').focus()")
        order = []
        for _ in range(9):
            page.keyboard.press("Tab")
            order.append(
                page.evaluate("document.activeElement.id || document.activeElement.className")
            )
            style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none" or order[-1] == "prompt", order  # whose frame is its box's
        assert order[:6] == ["new", "open-settings", "theme", "grid", "budget-range", ""]
        assert order[-3:] == ["log", "prompt", "send"]


CONTRAST = """() => {
    const style = getComputedStyle(document.body);
    const probe = document.createElement('i');
    document.body.append(probe);
    const light = (name) => {
        probe.style.color = `var(--${name})`;
        const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
            const value = part / 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const ratio = (a, b) => {
        const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    const text = ['ink', 'soft', 'accent', 'wrong'];
    const grounds = ['page', 'card'];
    return [
        light('page'),
        Math.min(...text.flatMap((a) => grounds.map((b) => ratio(a, b))), ratio('ink', 'mine'),
            ratio('soft', 'code'), ratio('on-accent', 'accent')),
        Math.min(ratio('on-disk', 'in-memory'), ratio('edge', 'card'), ratio('edge', 'page'),
            ratio('in-use', 'on-disk')),
    ];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_are_readable(browser: Any, chat_url: str, scheme: Any) -> None:
    """Contrasts as WCAG 2 asks for: 4.5 for text, 3 for what is drawn."""
    other = {"light": "dark", "dark": "light"}[scheme]
    with visit(browser, chat_url, color_scheme=scheme) as seen:
        page = seen.open()
        ground, text, drawn = page.evaluate(CONTRAST)
        assert (ground > 0.5) == (scheme == "light")
        assert text >= 4.5
        assert drawn >= 3
        while page.inner_text("#theme-name").lower() != other:
            page.click("#theme")
        assert (page.evaluate(CONTRAST)[0] > 0.5) == (other == "light")
        page.reload()
        assert (page.evaluate(CONTRAST)[0] > 0.5) == (other == "light")


def test_without_motion_nothing_fades(browser: Any, chat_url: str) -> None:
    with visit(browser, chat_url, reduced_motion="reduce") as seen:
        page = seen.open()
        set_tokens(page, 30)
        send(page, "def f(")
        await_end(page)
        animated = "document.getAnimations().filter((one) => one.playState === 'running').length"
        assert page.evaluate(animated) == 0
