"""Parts of the server that need no server: calls in text, templates that make them, the pool."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pocketmoe.runtime.generation.template import ChatTemplate
from pocketmoe.server.http.key_file import Keys
from pocketmoe.server.pool import Pool
from pocketmoe.server.refusals import RequestError
from pocketmoe.server.tool_calls.forms import ToolForm, find_tool_form
from pocketmoe.server.tool_calls.reader import CallReader, ToolCall, forced_call
from pocketmoe.tests.conftest import TOOL_TEMPLATE

TAGGED = ToolForm("tagged", "arguments")
LLAMA = ToolForm("json", "parameters")
LISTED = ToolForm("listed", "arguments")
HEADED = ToolForm("headed", "arguments")
F, G = ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")
LOOP = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
# How published templates write calls, cut to what matters.
QWEN = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    + LOOP
    + "{% for call in message.tool_calls or [] %}"
    '{{ \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{% endfor %}"
)
LLAMA_3 = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{% endif %}"
    + LOOP
    + "{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + call.name + '\", ' }}{{ '\"parameters\": ' }}"
    "{{ call.arguments | tojson }}{{ '}' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    + LOOP
    + "{% if message.tool_calls %}[TOOL_CALLS] [{% for call in message.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    "{{ call.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"
    "{% endfor %}"
)
MISTRAL_2025 = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    + LOOP
    + "{% for call in message.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
    "{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (TOOL_TEMPLATE, TAGGED),
        (QWEN, TAGGED),
        (LLAMA_3, LLAMA),
        (MISTRAL, LISTED),
        (MISTRAL_2025, HEADED),
        (LOOP + "{% endfor %}", None),
        ("{% if tools %}{{ raise_exception('none here') }}{% endif %}", None),
        ("{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}", None),
    ],
)
def test_forms_of_templates(source: str, form: ToolForm | None) -> None:
    found, why = find_tool_form(ChatTemplate(source, {}))
    assert found == form
    assert (form is None) == bool(why)


def divide(form: ToolForm, text: str, size: int, **more: Any) -> list[Any]:
    """What a reader makes of a text that comes in pieces of `size`; texts joined."""
    reader = CallReader(form, ("f", "g"), **more)
    parts: list[Any] = []
    for start in range(0, len(text), size):
        parts += reader.push(text[start : start + size])
    parts += reader.finish()
    joined: list[Any] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


CALL_F = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CALL_G = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "text", "parts"),
    [
        (TAGGED, "just text <tool", ["just text <tool"]),
        (TAGGED, "a < b\n\n", ["a < b\n\n"]),
        (TAGGED, CALL_F, [F]),
        (TAGGED, f"I will.\n{CALL_F}\n{CALL_G}\n", ["I will.", F, G]),
        (TAGGED, CALL_F[:-3], [CALL_F[:-3]]),
        (TAGGED, CALL_F.replace('"f"', '"h"'), [CALL_F.replace('"f"', '"h"')]),
        (TAGGED, "y\n<tool_call>{</tool_call>x", ["y\n<tool_call>{</tool_call>x"]),
        (TAGGED, CALL_F.replace('{"a": 1}', "[1]"), [CALL_F.replace('{"a": 1}', "[1]")]),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', [F]),
        (LLAMA, '\n{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [F, G]),
        (LLAMA, '{"a": 1} is JSON', ['{"a": 1} is JSON']),
        (LLAMA, 'no {"name": "f", "parameters": {}}', ['no {"name": "f", "parameters": {}}']),
        (LISTED, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', [F]),
        (LISTED, 'ok[TOOL_CALLS][{"name": "g", "arguments": {}}]', ["ok", G]),
        (LISTED, "x [TOOL_CALLS] nothing", ["x [TOOL_CALLS] nothing"]),
        (HEADED, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', [F, G]),
        (HEADED, "[TOOL_CALLS]h[ARGS]{}", ["[TOOL_CALLS]h[ARGS]{}"]),
    ],
)  # fmt: skip
def test_calls_in_text(form: ToolForm, text: str, parts: list[Any], size: int) -> None:
    assert divide(form, text, size) == parts


@pytest.mark.parametrize(
    ("inner", "call"),
    [
        ('{"name": ["f"], "arguments": {}}', None),
        ('{"name": {"f": 1}, "arguments": {}}', None),
        ('{"name": "f", "arguments": {"a": NaN}}', None),
        ('{"name": "f", "arguments": {"a": 1e999}}', None),
        ('{"name": "f", "arguments": {"a": "\\ud83d"}}', ToolCall("f", '{"a": "\\ud83d"}')),
        ('{"name": "f", "arguments": "\\ud83d"}', ToolCall("f", "?")),
    ],
)
def test_calls_that_python_reads_and_json_has_not(inner: str, call: ToolCall | None) -> None:
    text = f"<tool_call>{inner}</tool_call>"
    reader = CallReader(TAGGED, {"f": {}})
    assert [*reader.push(text), *reader.finish()] == [text if call is None else call]
    listed = CallReader(LISTED, {"f": {}})
    text = f"[TOOL_CALLS][{inner}]"
    assert [*listed.push(text), *listed.finish()] == [text if call is None else call]
    if call is not None and call.arguments.startswith("{"):
        assert forced_call(TAGGED, ("f",), inner) == call


def test_a_variable_of_any_name_is_the_template_s() -> None:
    template = ChatTemplate("{{ self_ }}{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": "a"}], **{"self": 1}) == "a"


def test_a_mark_that_is_a_special_token() -> None:
    reader = CallReader(LISTED, ("f",), mark_token=7)
    assert reader.push("Well. ", (1, 2)) == ["Well."]
    assert reader.push('[{"name": "f", ', (7, 3)) == []
    assert reader.push('"arguments": {"a": 1}}]', (4,)) == []
    assert reader.finish() == [F]


@pytest.mark.parametrize(
    ("form", "text", "call"),
    [
        (TAGGED, '{"name": "f", "arguments": {"a": 1}}', F),
        (LISTED, '[{"name": "f", "arguments": {"a": 1}}]', F),
        (HEADED, '{"a": 1}', F),
        (TAGGED, '{"name": "f", "arguments": {"a"', ToolCall("f", '{"a"')),
        (TAGGED, '{"name": "', None),
        (TAGGED, '{"name": "f", "arguments": {"a": 1e999}}', ToolCall("f", '{"a": 1e999}')),
        (LISTED, '[{"name": "f", "arguments": {"a": -1e999} } ]', ToolCall("f", '{"a": -1e999}')),
    ],
)
def test_forced_calls(form: ToolForm, text: str, call: ToolCall | None) -> None:
    assert forced_call(form, ("f",), text) == call


@pytest.mark.parametrize("form", [TAGGED, LLAMA])
@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("any text { at all", True),
        ("", True),
        (" {", None),
    ],
)
def test_grammars_of_answers(
    form: ToolForm, text: str, fits: bool | None, tiny_bundle: Path
) -> None:
    from pocketmoe.runtime.generation.grammar import Grammar, Matcher
    from pocketmoe.runtime.generation.text import load_tokenizer
    from pocketmoe.runtime.generation.vocabulary import Vocabulary

    schemas = {"f": {"type": "object", "properties": {"a": {"type": "integer"}},
                     "required": ["a"], "additionalProperties": False}}  # fmt: skip
    source = form.answer_grammar(schemas)
    assert source is not None
    tokenizer = load_tokenizer(tiny_bundle / "tokenizer.json")
    vocabulary = Vocabulary(tokenizer, tokenizer.get_vocab_size(), (0,))

    def accepts(text: str) -> bool:
        matcher = Matcher(Grammar.lark(source), vocabulary)
        for token in tokenizer.encode(text).ids:
            if token not in matcher.allowed():
                return False
            matcher.add(token)
        return 0 in matcher.allowed()

    if fits is None:
        fits = form == TAGGED
    assert accepts(text) == fits
    call = '{"name": "f", "arguments": {"a": 1}}'
    if form == LLAMA:
        call = call.replace("arguments", "parameters")
        assert accepts(call)
        assert not accepts(call.replace("1", '"x"'))
    else:
        assert accepts(f"ok <tool_call>\n{call}\n</tool_call> and more")
        assert not accepts(f"<tool_call>\n{call.replace('1', 'null')}\n</tool_call>")


def session(*seen: int) -> Any:
    return SimpleNamespace(seen=tuple(seen))


def test_a_prompt_goes_where_its_beginning_is() -> None:
    async def run() -> None:
        first, second, third = session(1, 2, 3), session(1, 2, 3, 4, 5), session()
        pool = Pool([first, second, third], queue=1)
        end = asyncio.get_running_loop().time() + 5
        assert await pool.acquire([1, 2, 3, 4, 9], end) is second
        assert await pool.acquire([1, 2, 3, 4, 9], end) is first
        assert await pool.acquire([7], end) is third
        assert pool.running == 3
        waiting = [asyncio.ensure_future(pool.acquire([number], end)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        pool.release(second)
        pool.release(first)
        assert await waiting[0] is second
        assert await waiting[2] is first
        pool.close()
        with pytest.raises(RequestError, match="stopping"):
            await pool.acquire([1], end)

    asyncio.run(run())


def test_a_place_that_came_with_the_cancelling_goes_back() -> None:
    async def run() -> None:
        only = session()
        pool = Pool([only], queue=2)
        end = asyncio.get_running_loop().time() + 5
        await pool.acquire([1], end)
        waiting = asyncio.ensure_future(pool.acquire([1], end))
        await asyncio.sleep(0)
        pool.release(only)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.running == 0
        assert await pool.acquire([1], end) is only

    asyncio.run(run())


def test_keys() -> None:
    keys = Keys(["a" * 16, "b" * 16])
    assert keys.accept("a" * 16)
    assert keys.accept("b" * 16)
    assert not keys.accept("")
    assert not keys.accept("a" * 15 + "\udcff")


def test_the_description_is_whole() -> None:
    from pocketmoe.server.pages import description

    document = description()
    text = json.dumps(document)
    for reference in set(json.loads(f"[{text}]")[0]["components"]["schemas"]):
        assert f"#/components/schemas/{reference}" in text, reference
