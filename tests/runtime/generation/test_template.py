"""Chat templates are rendered as transformers renders them, in a sandbox."""

import copy
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.errors import InputError
from pocketmoe.runtime.generation import sandbox
from pocketmoe.runtime.generation.template import ChatTemplate, find_fault
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.templates import CHATML, LLAMA_2, STYLES, TOKENS

USER = {"role": "user", "content": "Hello"}
CONTENTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " \n", "<b>&\"'", "{{ 1 }}", "<think>x</think>y", "<|im_end|>", "naïve 🙂"]
    ),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]),
            "content": CONTENTS | st.none(),
        },
        optional={"tool_calls": st.none() | st.just([])},
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def alternating(draw: st.DrawFn) -> list[dict[str, str]]:
    """What every template accepts: perhaps a system message, then turns."""
    messages = [{"role": "system", "content": draw(CONTENTS)}] if draw(st.booleans()) else []
    roles = ["user", "assistant"] * 3
    for role in roles[: draw(st.integers(1, 5))]:
        messages.append({"role": role, "content": draw(CONTENTS)})
    return messages


@pytest.fixture(scope="module", autouse=True)
def one_day() -> Iterator[None]:
    """One moment for both implementations, lest midnight falls between them."""
    from transformers.utils import chat_template_utils

    clock = SimpleNamespace(now=lambda: datetime(2026, 2, 28, 23, 59, tzinfo=timezone.utc))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "datetime", clock)
        patch.setattr(chat_template_utils, "datetime", clock)
        yield


def rendered_by_transformers(
    template: str, messages: list[dict[str, Any]], **variables: Any
) -> str | None:
    """None where the template fails."""
    from transformers.utils.chat_template_utils import (
        _normalize_chat_messages,
        render_jinja_template,
    )

    try:
        texts, _ = render_jinja_template(
            conversations=[_normalize_chat_messages(messages)],
            chat_template=template,
            **{**TOKENS, **variables},
        )
    except Exception:  # noqa: BLE001 - whatever a template can raise
        return None
    return str(texts[0])


class TestRender:
    @pytest.mark.parametrize("style", STYLES)
    @settings(max_examples=examples(60), deadline=None)
    @given(messages=MESSAGES | alternating(), prompt=st.booleans(), more=st.booleans())
    def test_as_transformers(
        self, style: str, messages: list[dict[str, Any]], prompt: bool, more: bool
    ) -> None:
        variables = {"enable_thinking": False, "reasoning_effort": "high"} if more else {}
        template = ChatTemplate(STYLES[style], TOKENS)
        before = copy.deepcopy(messages)
        try:
            text = template.render(messages, add_generation_prompt=prompt, **variables)
        except InputError:
            text = None
        assert text == rendered_by_transformers(
            STYLES[style], messages, add_generation_prompt=prompt, **variables
        )
        assert messages == before

    @pytest.mark.parametrize("style", STYLES)
    @settings(max_examples=examples(30), deadline=None)
    @given(messages=alternating())
    def test_what_every_template_accepts(self, style: str, messages: list[dict[str, Any]]) -> None:
        assert ChatTemplate(STYLES[style], TOKENS).render(messages)

    def test_a_known_text(self) -> None:
        messages = [{"role": "system", "content": "Be brief."}, USER]
        assert ChatTemplate(CHATML, {}).render(messages) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_the_words_of_a_refusal(self) -> None:
        with pytest.raises(InputError, match=r"refuses .*: Conversation roles must alternate"):
            ChatTemplate(LLAMA_2, TOKENS).render([USER, USER])

    @pytest.mark.parametrize(
        "messages",
        [[], None, {}, "Hello", [{}], ["Hello"], [{"role": 1}], [{"content": "x"}], [USER, None]],
    )
    def test_messages_of_another_form(self, messages: Any) -> None:
        with pytest.raises(InputError, match=r"message"):
            ChatTemplate(CHATML, {}).render(messages)

    @pytest.mark.parametrize("content", [b"x", {1}, object(), Path()])
    def test_content_that_json_cannot_hold(self, content: object) -> None:
        with pytest.raises(InputError, match="JSON"):
            ChatTemplate(CHATML, {}).render([{"role": "user", "content": content}])


class TestSandbox:
    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ messages[0].update({'content': 'x'}) }}",
            "{{ messages[0].pop('content') }}",
            "{{ dict.update(messages[0], {'content': 'x'}) }}",
            "{{ dict.__init__.__globals__ }}",
            "{{ raise_exception.__globals__['json'] }}",
            "{{ self.__init__.__globals__.os.system('true') }}",
            "{{ cycler.__init__.__globals__ }}",
            "{% set ns = namespace(__html__=1) %}",
            "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
            "{{ range(10 ** 9) | list }}",
            "{% include 'chat.json' %}",
            "{% import 'os' as os %}",
            "{{ missing.attribute }}",
            "{{ missing() }}",
            "{{ messages[0].content + 1 }}",
            "{{ 1 / 0 }}",
            "{{ strftime_now }}{{ strftime_now(1) }}",
            "{{ messages | tojson(indent=messages) }}",
            "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
            "{{ 'a' * 10 ** 15 }}",
        ],
    )
    def test_what_a_template_must_not_do(self, source: str) -> None:
        messages = [dict(USER)]
        with pytest.raises(InputError) as caught:
            ChatTemplate(source, {}).render(messages)
        line = str(caught.value)
        assert line.startswith("the chat template fails on the conversation (")
        assert "\n" not in line
        assert messages == [USER]

    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''|attr('__class__') }}",
            "{{ '{0.__class__}'.format('') }}",
            "{{ ('{0.__class__}'|attr('format'))('') }}",
            "{{ ''|attr('__class__')|attr('__mro__') }}",
            "{{ messages|map(attribute='__class__')|join }}",
            "{{ ['']|map('attr', '__class__')|join }}",
        ],
    )
    def test_what_is_undefined_in_it(self, source: str) -> None:
        assert ChatTemplate(source, {}).render([USER]) == ""

    def test_nothing_of_the_environment_is_left_for_the_next(self) -> None:
        ChatTemplate("{% set bos_token = 'x' %}{% macro f() %}{% endmacro %}", {}).render([USER])
        assert ChatTemplate("{{ bos_token }}{{ f is defined }}", {}).render([USER]) == "False"


class TestFaults:
    @pytest.mark.parametrize("style", STYLES)
    def test_none(self, style: str) -> None:
        assert find_fault(STYLES[style]) is None

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("ok\n{% for x in y %}", "line 2: Unexpected end of template"),
            ("\n\n{{ a b }}", "line 3: "),
            ("{% nonsense %}", "line 1: Encountered unknown tag 'nonsense'"),
            ("{{ x | nonsense }}", "line 1: No filter named 'nonsense'"),
            ("{% generation %}", "line 1: "),
            ("{{ " + "(" * 5000 + " }}", "RecursionError: "),
            ("{% for a in b %}" * 40 + "{% endfor %}" * 40, "SyntaxError: "),
        ],
    )
    def test_found(self, source: str, words: str) -> None:
        assert (find_fault(source) or "").startswith(words)


def test_a_variable_of_any_name_is_the_template_s() -> None:
    template = ChatTemplate("{{ self_ }}{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": "a"}], **{"self": 1}) == "a"
