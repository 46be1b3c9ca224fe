"""The page in a browser, on servers of their own: the conversation, the grid, the budget."""

import json
import re
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
from pocketmoe.tests.support.paths import DEMO
from pocketmoe.tests.support.serving import ask, server_process, until
from pocketmoe.tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow
BUDGET = "pocketmoe_memory_budget_bytes"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def demo_bundle(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pocketmoe.compiler.compile import compile_bundle
    from pocketmoe.compiler.precision import parse_precision
    from pocketmoe.targets import find_target

    path = tmp_path_factory.mktemp("bundle") / "demo"
    target = find_target("cpu")
    compile_bundle(DEMO, path, target=target, precision=parse_precision(["fp32"], 64, target))
    return path


@pytest.fixture(scope="module")
def url(demo_bundle: Path) -> Iterator[str]:
    """Of a server of the demo model, which has no chat template."""
    with server_process(demo_bundle, "--context", "512") as (_, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def chat_url(browser: Any, served_bundle: Path) -> Iterator[str]:
    """Of a server of a tiny random model, which has one."""
    with server_process(served_bundle) as (_, port):
        yield f"http://127.0.0.1:{port}/"


def metric(url: str, name: str) -> float | None:
    _, text, _ = ask(int(url.rsplit(":", 1)[1].strip("/")), "/metrics")
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def set_budget(page: Any, key: str) -> None:
    """key: Home for the smallest, End for all experts."""
    page.focus("#budget-range")
    page.keyboard.press(key)


def shown(url: str) -> Any:
    return ask(int(url.rsplit(":", 1)[1].strip("/")), "/live/model")[1]


def test_a_text_streams_while_the_grid_moves_and_the_budget_changes(browser: Any, url: str) -> None:
    with visit(browser, url) as seen:
        page = seen.open()
        assert "no chat template" in page.inner_text("#mode")
        set_tokens(page, 400)
        picture = page.evaluate("document.getElementById('grid').toDataURL()")
        send(page, "def main(")
        wait_until(page, "document.querySelector('.made')?.textContent.length > 20")
        assert page.is_visible("#stop")  # it is not whole yet
        moved = "before => document.getElementById('grid').toDataURL() !== before"
        wait_until(page, moved, arg=picture)

        facts = shown(url)
        set_budget(page, "Home")
        until(lambda: metric(url, BUDGET) == facts["smallest_budget"])
        assert shown(url)["memory_budget"] == facts["smallest_budget"]

        await_end(page)
        assert "400 tokens" in page.inner_text(".foot")
        assert re.search(r"[\d.]+ tokens/s · first after", page.inner_text(".foot"))
        for name in ("speed", "hits", "pages", "first", "read", "process"):
            assert re.match(r"[\d.]+", page.inner_text(f"#figure-{name}")), name
        wait_until(page, "/[1-9]\\d* were used/.test(document.getElementById('grid').ariaLabel)")
        set_budget(page, "End")
        until(lambda: metric(url, BUDGET) == facts["largest_budget"])


def test_escape_stops_at_once_and_keeps_what_came(browser: Any, url: str) -> None:
    with visit(browser, url) as seen:
        page = seen.open()
        set_tokens(page, 500)
        send(page, "import os\n")
        wait_until(page, "document.querySelector('.made')?.textContent.length > 5")
        page.keyboard.press("Escape")
        await_end(page)
        assert "stopped" in page.inner_text(".foot")
        assert len(page.inner_text(".written")) > 12
        wait_until(page, "document.getElementById('figure-requests').textContent[0] === '0'")
        until(lambda: metric(url, "pocketmoe_running_requests") == 0)


def test_a_full_context_has_a_way_out(browser: Any, demo_bundle: Path) -> None:
    with server_process(demo_bundle, "--context", "64") as (_, port):
        url = f"http://127.0.0.1:{port}/"
        with visit(browser, url, expected=("400 (Bad Request)",)) as seen:
            page = seen.open()
            set_tokens(page, 100)
            send(page, "import os\n" * 18)
            await_end(page)
            assert "the context of 64 tokens is full" in page.inner_text(".foot")
            whole = page.inner_text(".written")
            for text in (" and more than fits", ""):  # another text, and going on
                send(page, text)
                page.wait_for_selector("#messages .problem")
                assert "is full: shorten" in page.inner_text("#messages .problem")
                assert page.input_value("#prompt") == text
                assert page.inner_text(".written") == whole
                assert page.locator(".foot >> text=Continue").count() == 0
                assert page.inner_text("#announce") == ""
            page.click("#new")
            long = "import os\n" * 99
            send(page, long)
            page.wait_for_selector("#messages .problem")
            assert "larger --context" in page.inner_text("#messages .problem")
            assert page.input_value("#prompt") == long
            assert page.locator(".foot >> text=Try again").count() == 0
            send(page, "import")
            await_end(page)
            assert page.inner_text(".written").startswith("import")
            assert page.locator("#messages .problem").count() == 0


def test_a_conversation_is_kept_over_a_reload_until_a_new_one(browser: Any, url: str) -> None:
    with visit(browser, url) as seen:
        page = seen.open()
        set_tokens(page, 8)
        send(page, "class Stack:\n")
        await_end(page)
        first = page.inner_text(".written")
        page.click(".foot >> text=Regenerate")  # the same seed
        page.wait_for_selector(".under-way", state="detached")
        await_end(page)
        assert page.inner_text(".written") == first
        page.click(".foot >> text=Continue")
        wait_until(
            page,
            "before => document.querySelector('.written').innerText.length > before",
            arg=len(first),
        )
        await_end(page)
        longer = page.inner_text(".written")
        assert longer.startswith(first.rstrip("\n"))
        page.reload()
        page.wait_for_selector("#link[data-state=live]")
        assert page.inner_text(".written") == longer
        assert page.input_value("[name=max_tokens]") == "8"
        page.click("#new")
        assert page.locator(".written").count() == 0
        page.reload()
        page.wait_for_selector("#link[data-state=live]")
        assert page.locator(".written").count() == 0
        assert page.is_visible("#welcome")


def test_a_reload_stops_an_answer_and_breaks_nothing(browser: Any, url: str) -> None:
    with visit(browser, url) as seen:
        page = seen.open()
        set_tokens(page, 100_000)
        send(page, "class Stack:\n")
        wait_until(page, "() => document.querySelector('.written')?.innerText.length > 40")
        page.reload()
        page.wait_for_selector("#link[data-state=live]")
        assert page.inner_text(".written").startswith("class Stack")
        assert page.locator("#messages .problem").count() == 0
        assert page.is_visible(".foot >> text=Continue")


def test_a_chat_asks_with_its_settings_and_draws_markdown(browser: Any, chat_url: str) -> None:
    asked = []
    parts = ["# Ti", "tle\n\n- **a", "**\n\n```py\nx = ", "1\n```\n<script>alert(1)</script>"]

    def answer(route: Any) -> None:
        asked.append(route.request.post_data_json)
        chunks = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in parts]
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        route.fulfill(body=f"{events}data: [DONE]\n\n", content_type="text/event-stream")

    with visit(browser, chat_url) as seen:
        page = seen.open()
        assert page.is_hidden("#mode")
        page.click("#open-settings")
        page.fill("[name=system]", "Be brief.")
        page.fill("[name=temperature]", "0")
        page.fill("[name=stop]", "END\n###")
        page.fill("[name=top_p]", "7")  # not taken
        page.keyboard.press("Escape")
        send(page, "Hello")  # the model itself, whose answer is of no use to anyone
        await_end(page)
        assert page.locator(".problem:visible").count() == 0
        page.route("**/v1/chat/completions", answer)
        page.click(".foot >> text=Regenerate")
        page.wait_for_selector(".rich h3")
        send(page, "And now?")
        wait_until(page, "document.querySelectorAll('.rich h3').length === 2")
        await_end(page)
        assert page.inner_text(".code code >> nth=0") == "x = 1"
        assert "<script>alert(1)</script>" in page.inner_text(".rich >> nth=0")
        first, second = asked
        assert first["temperature"] == 0
        assert first["stop"] == ["END", "###"]
        assert first["top_p"] == 0.95
        assert [item["role"] for item in first["messages"]] == ["system", "user"]
        assert second["messages"][2:] == [
            {"role": "assistant", "content": "".join(parts)},
            {"role": "user", "content": "And now?"},
        ]


def test_problems_are_one_line_with_a_remedy(browser: Any, chat_url: str) -> None:
    full = {"error": {"message": "the queue is full: 9 requests are here; try again later"}}
    small = {"error": {"message": "memory budget 1.0 MiB is too small; give 2MiB"}}
    expected = ("429", "400", "ERR_FAILED")
    with visit(browser, chat_url, expected=expected) as seen:
        page = seen.open()
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=full))
        send(page, "Hello")
        page.wait_for_selector(".problem.line")
        assert page.inner_text(".problem.line") == (
            "The queue is full: 9 requests are here; try again later."
        )
        page.unroute("**/v1/chat/completions")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.click(".foot >> text=Try again")
        wait_until(
            page, "document.querySelector('.problem.line')?.textContent.includes('pocketmoe serve')"
        )
        page.route("**/live/budget", lambda route: route.fulfill(status=400, json=small))
        before = page.input_value("#budget-range")
        set_budget(page, "Home")
        page.wait_for_selector("#budget-error:visible")
        assert page.inner_text("#budget-error") == "Memory budget 1.0 MiB is too small; give 2MiB."
        assert page.input_value("#budget-range") == before


def test_a_key_is_asked_for_where_the_server_wants_one(
    browser: Any, served_bundle: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("correct-horse-battery-staple\n")
    keys.chmod(0o600)
    with server_process(served_bundle, "--api-key-file", str(keys)) as (_, port):
        address = f"http://127.0.0.1:{port}/"
        with visit(browser, address, expected=("401",)) as seen:
            page = seen.page
            page.goto(address)
            page.wait_for_selector("#key[open]")
            page.fill("#key-field", "wrong-horse-battery-staple")
            page.keyboard.press("Enter")
            page.wait_for_selector("#key-error:visible")
            assert "ncorrect API key" in page.inner_text("#key-error")
            page.fill("#key-field", "correct-horse-battery-staple")
            page.keyboard.press("Enter")
            page.wait_for_selector("#link[data-state=live]")
            send(page, "Hello")
            await_end(page)
            assert page.locator(".problem:visible").count() == 0
            page.reload()
            page.wait_for_selector("#link[data-state=live]")  # kept for this tab


def test_it_says_when_the_server_is_gone_and_comes_back(browser: Any, served_bundle: Path) -> None:
    with server_process(served_bundle) as (process, port):
        address = f"http://127.0.0.1:{port}/"
        with visit(browser, address, expected=("ERR_",)) as seen:
            page = seen.open()
            process.terminate()
            process.wait(PATIENCE)
            page.wait_for_selector("#link[data-state=lost]")
            with server_process(served_bundle, "--port", str(port)):
                page.wait_for_selector("#link[data-state=live]", timeout=30_000)
