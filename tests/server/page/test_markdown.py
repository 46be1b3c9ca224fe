"""The page's Markdown, in a browser: what it makes of it, and what it must not."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pocketmoe.tests.support.browser import BLANK, open_browser, serve_files

RENDER = """async ([texts, whole]) => {
    const { renderMarkdown } = await import('/chat/markdown.js');
    const place = document.createElement('div');
    document.body.replaceChildren(place);
    for (const text of texts) renderMarkdown(place, text);
    return whole ? place.innerHTML : place.offsetHeight; // laid out, too
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with open_browser() as browser:
        page = browser.new_page()
        serve_files(page)
        page.goto(BLANK)
        yield page


def render(page: Any, *texts: str) -> str:
    """The HTML after each text was drawn into the same place."""
    html: str = page.evaluate(RENDER, [texts, True])
    return html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", "<p>plain</p>"),
        ("# One\n### Three #", "<h3>One</h3><h5>Three</h5>"),
        ("#none", "<p>#none</p>"),
        ("a *b* **c** ***d*** ~~e~~", "<p>a <em>b</em> <strong>c</strong> "
         "<strong><em>d</em></strong> <del>e</del></p>"),
        ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
        ("**bold *and* more**", "<p><strong>bold <em>and</em> more</strong></p>"),
        ("`a*b*` and ``x`y``", "<p><code>a*b*</code> and <code>x`y</code></p>"),
        (r"\*not\* \`this\`", "<p>*not* `this`</p>"),
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("- a\n- b\n  - c\n\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- [ ] a\n- [x] b\n- [y] c", "<ul><li>☐ a</li><li>☑ b</li><li>[y] c</li></ul>"),
        ("&lt;b&gt; &amp;&#228;&#x1F642; &mdash; AT&T &lt;img src=x&gt; `&lt;`",
         "<p>&lt;b&gt; &amp;ä🙂 — AT&amp;T &lt;img src=x&gt; <code>&amp;lt;</code></p>"),
        ("* a\n1. b", "<ul><li>a</li></ul><ol><li>b</li></ol>"),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("[a](https://x.org/b_(c) \"title\")", '<p><a href="https://x.org/b_(c)" target="_blank" '
         'rel="noopener noreferrer">a</a></p>'),
        ("see https://x.org/a_b.", '<p>see <a href="https://x.org/a_b" target="_blank" '
         'rel="noopener noreferrer">https://x.org/a_b</a>.</p>'),
        ("|a|b|\n|-|-:|\n|1|`2|`|", '<div class="wide" tabindex="0"><table><thead><tr><th>a</th>'
         '<th class="right">b</th></tr></thead><tbody><tr><td>1</td><td class="right">`2</td></tr>'
         "</tbody></table></div>"),
        ("", ""),
    ],
)  # fmt: skip
def test_markdown_becomes_html(page: Any, text: str, html: str) -> None:
    assert render(page, text) == html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "# <b onclick=x>h</b>",
        "- <svg/onload=alert(1)>",
        "|<i>|b|\n|-|-|\n|<script>x</script>|c|",
        "```<script>\n</code><script>alert(1)</script>\n```",
        "`<script>`",
        "[a](javascript:alert(1))",
        "[a]( JaVaScRiPt:alert(1) )",
        "[a](java\nscript:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>)",
        "[a](vbscript:x) [b](file:///etc/passwd) [c](//x.org) [d](/live/budget)",
        "![a](javascript:alert(1)) ![b](x.png)",
        "[<img src=x onerror=alert(1)>](https://x.org)",
        '[a](https://x.org/"onmouseover="alert(1))',
        "https://x.org/<script>alert(1)</script>",
        "&lt;script&gt;",
    ],
)
def test_hostile_text_stays_text(page: Any, text: str) -> None:
    html = render(page, text)
    found = page.evaluate(
        """() => {
            const all = [...document.body.querySelectorAll('*')];
            return [
                all.map((node) => node.tagName.toLowerCase()),
                all.flatMap((node) => [...node.attributes].map((one) => one.name)),
                all.filter((node) => node.href).map((node) => new URL(node.href).protocol),
            ];
        }"""
    )
    names, attributes, protocols = found
    assert not {"script", "img", "svg", "iframe", "i", "b", "style"} & set(names), html
    assert not [name for name in attributes if name.startswith("on")], html
    assert set(protocols) <= {"http:", "https:"}


def test_pictures_are_links(page: Any) -> None:
    """A picture would be a request to elsewhere."""
    assert render(page, "![a cat](https://x.org/cat.png)") == (
        '<p><a href="https://x.org/cat.png" target="_blank" rel="noopener noreferrer">a cat</a></p>'
    )


@pytest.mark.parametrize("text", ["```py\nx = 1\n# y", "~~~~\n```\n~~~", "**open", "[a](b", "`c"])
def test_what_is_not_closed_yet_is_shown(page: Any, text: str) -> None:
    render(page, text)
    told = page.evaluate("document.body.textContent")
    for word in text.replace("```py", "").strip("~*[`").split():
        assert word in told


def test_code_keeps_its_element_while_it_grows(page: Any) -> None:
    """So that its button and what is selected in it stay."""
    script = """async () => {
        const { renderMarkdown } = await import('/chat/markdown.js');
        const place = document.createElement('div');
        renderMarkdown(place, 'a\\n\\n```py\\nx');
        const [first, code] = place.children;
        renderMarkdown(place, 'a\\n\\n```py\\nx = 1\\ny');
        const grown = place.children[1] === code && place.children[0] === first;
        const text = code.querySelector('code').textContent;
        renderMarkdown(place, 'b');
        return [grown, text, place.innerHTML];
    }"""
    assert page.evaluate(script) == [True, "x = 1\ny", "<p>b</p>"]


def test_every_beginning_of_a_text_can_be_drawn(page: Any) -> None:
    """A stream may stop anywhere; at the end it is as if it had come at once."""
    text = (
        "# A\n\n1. x **y**\n   - z `q`\n\n|a|b|\n|-|-|\n|1|2|\n\n```c\nint x;\n```\n> q\n\n"
        "[l](https://x.org) *e* ~~s~~ 😀\n"
    )
    beginnings = [text[:end] for end in range(len(text) + 1)]
    assert render(page, *beginnings) == render(page, text)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 500_000,
        "*a " * 50_000,
        "**a" * 50_000,
        "_" * 100_000,
        "[" * 100_000,
        "[a](" * 30_000,
        "[a](b" * 30_000,
        "`" * 99_999 + "a",
        "".join("`" * count + " " for count in range(300)),
        "> " * 20_000 + "deep",
        "".join(" " * 2 * level + "- x\n" for level in range(400)),
        "|" * 50_000 + "\n" + "|-" * 50_000,
        "# " + " " * 100_000 + "x",
        "``` " + " " * 100_000 + "`",
        "- " * 30_000,
        "https://" * 20_000,
        "h" * 200_000,
        "\n" * 200_000,
        "![" * 50_000,
        "~~a" * 50_000,
        "\\" * 200_000,
    ],
    ids=range(21),
)
def test_large_and_nested_texts_take_no_time(page: Any, text: str) -> None:
    begun = time.monotonic()
    page.evaluate(RENDER, [[text], False])
    assert time.monotonic() - begun < 30  # what is quadratic takes minutes
