"""Chat templates: rendered as transformers renders them, in a sandbox, and read as it reads them.

The templates are written for these tests, in the styles of published models.
"""

import copy
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.compiler.chat import find_template, special_tokens, write_chat_template
from pocketmoe.errors import CheckpointError, InputError
from pocketmoe.runtime.generation import sandbox
from pocketmoe.runtime.generation.template import ChatTemplate, find_fault

CHATML = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# Whitespace of blocks matters here: trim_blocks and lstrip_blocks take it away.
LLAMA_2 = """{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}
    {% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set rest = messages %}
    {% set system_message = '' %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {% set first = system_message if loop.first else '' %}
        {% set content = first + message['content'] %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""
LLAMA_3 = """{{- bos_token }}
{%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
        + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {%- generation %}{{- " " + message["content"]|trim + eos_token }}{% endgeneration %}
    {%- else %}
        {{- raise_exception("Only user, system and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""
DEEPSEEK = """{% if not add_generation_prompt is defined %}\
{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}\
{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}{%- if message['role'] == 'user' %}\
{{'<\uff5cUser\uff5c>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<\uff5cAssistant\uff5c>' + content + '<\uff5cend\u2581of\u2581sentence\uff5c>'}}{%- endif %}\
{%- endfor -%}\
{% if add_generation_prompt %}{{'<\uff5cAssistant\uff5c><think>\\n'}}{% endif %}
"""
HARMONY = """{#- In the style of gpt-oss: macros, namespaces, loop controls, the date. #}
{%- macro render_system() -%}
    {{- "Knowledge cutoff: 2024-06\\nCurrent date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
    {%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
    {{- "Reasoning: " + reasoning_effort }}
{%- endmacro -%}
{%- macro block(role, text, channel=none) -%}
    {{- "<|start|>" + role }}{{ "<|channel|>" + channel if channel }}{{ "<|message|>" + text }}
{%- endmacro -%}
{{- block("system", render_system()) + "<|end|>" }}
{%- set found = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" %}
        {%- set found.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is not string %}{%- continue %}{%- endif %}
    {%- if message.role == "system" %}
        {{- block("developer", "# Instructions\\n\\n" + message.content) + "<|end|>" }}
    {%- elif message.role == "assistant" %}
        {%- generation %}
        {{- block("assistant", message.content, "final") }}
        {{- "<|end|>" if loop.index0 < found.last else "<|return|>" }}
        {%- endgeneration %}
    {%- else %}
        {{- block(message.role, message.content) + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
PHI = (
    "{% for message in messages %}{% if message['role'] in ['system', 'user'] %}"
    "{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}\n"
)
AS_JSON = """{% set seen = dict(count=messages | length) %}
{% for role, group in messages | groupby('role') %}
{{ role }}: {{ group | map(attribute='content') | list | tojson }}
{% endfor %}
{{ messages | tojson(indent=2, ensure_ascii=true, sort_keys=true) }}{{ seen.count }}{{ unk_token }}
{% generation %}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}
"""
STYLES = {
    "ChatML": CHATML,
    "Llama 2": LLAMA_2,
    "Llama 3": LLAMA_3,
    "Mistral": MISTRAL,
    "DeepSeek": DEEPSEEK,
    "Harmony": HARMONY,
    "Phi": PHI,
    "as JSON": AS_JSON,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

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
    @settings(max_examples=60, deadline=None)
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
    @settings(max_examples=30, deadline=None)
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


def write_files(root: Path, files: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
PAD = {"__type": "AddedToken", "content": "<pad>", "lstrip": False}
NEWER = {"added_tokens_decoder": {}, "bos_token": None, "eos_token": "<|im_end|>"}


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("files", "source"),
        [
            ({"chat_template.jinja": CHATML}, "chat_template.jinja"),
            ({"tokenizer_config.json": {"chat_template": CHATML}}, "tokenizer_config.json"),
            ({"tokenizer_config.json": {"chat_template": NAMED}}, "tokenizer_config.json"),
            (
                {"tokenizer_config.json": {"chat_template": "x"}, "chat_template.jinja": CHATML},
                "chat_template.jinja",
            ),
            (
                {"chat_template.json": {"chat_template": "x"}, "chat_template.jinja": CHATML},
                "chat_template.jinja",
            ),
            ({"chat_template.json": {"chat_template": CHATML}}, "chat_template.json"),
            (
                {
                    "chat_template.json": {"chat_template": CHATML},
                    "tokenizer_config.json": {"chat_template": "x"},
                },
                "chat_template.json",
            ),
            (
                {
                    "additional_chat_templates/tool_use.jinja": "x",
                    "tokenizer_config.json": {"chat_template": CHATML},
                },
                "tokenizer_config.json",
            ),
            ({}, None),
            ({"tokenizer_config.json": {"chat_template": None}}, None),
            ({"tokenizer_config.json": {"chat_template": ""}}, None),
            ({"tokenizer_config.json": {"chat_template": NAMED[:1]}}, None),
            ({"additional_chat_templates/tool_use.jinja": CHATML}, None),
        ],
    )
    def test_where_the_template_is_from(
        self, files: dict[str, Any], source: str | None, tmp_path: Path
    ) -> None:
        checkpoint = write_files(tmp_path / "checkpoint", files)
        expected = (checkpoint / source, CHATML) if source else None
        assert find_template(checkpoint) == expected
        bundle = write_files(tmp_path / "bundle", {})
        write_chat_template(bundle, checkpoint)
        written = [path.name for path in bundle.iterdir()]
        assert written == (["chat.json"] if source else [])

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"chat_template.jinja": "a\n{% if %}"}, ["chat_template.jinja", "line 2"]),
            ({"chat_template.json": {"chat_template": "{{"}}, ["chat_template.json", "line 1"]),
            ({"tokenizer_config.json": {"chat_template": "{{"}}, ["tokenizer_config.json", "line"]),
            ({"tokenizer_config.json": {"chat_template": 5}}, ["neither text nor a list"]),
            ({"tokenizer_config.json": {"chat_template": [5]}}, ["neither text nor a list"]),
            (
                {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": 5}]}},
                ["neither text nor a list"],
            ),
            ({"tokenizer_config.json": "{"}, ["tokenizer_config.json cannot be read"]),
            ({"tokenizer_config.json": "[]"}, ["tokenizer_config.json is not a JSON object"]),
        ],
    )
    def test_refusals(self, files: dict[str, Any], words: list[str], tmp_path: Path) -> None:
        checkpoint = write_files(tmp_path / "checkpoint", files)
        with pytest.raises(CheckpointError) as caught:
            write_chat_template(tmp_path, checkpoint)
        for word in words:
            assert word in str(caught.value)
        assert not (tmp_path / "chat.json").exists()

    def test_a_template_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
            find_template(tmp_path)

    @pytest.mark.parametrize(
        "files",
        [
            {"tokenizer_config.json": {**NEWER, "pad_token": PAD}},
            {"tokenizer_config.json": NEWER, "special_tokens_map.json": {"bos_token": "<s>"}},
            {
                "tokenizer_config.json": {"bos_token": "<x>", "eos_token": "</s>"},
                "special_tokens_map.json": {
                    "bos_token": {"content": "<s>", "lstrip": False, "single_word": False},
                    "unk_token": "<unk>",
                },
            },
            {"tokenizer_config.json": {"add_bos_token": True, "image_token": "<image>"}},
            {"special_tokens_map.json": {"eos_token": "</s>"}},
            {},
        ],
    )
    def test_special_tokens_as_transformers(self, files: dict[str, Any], tmp_path: Path) -> None:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        checkpoint = write_files(tmp_path / "checkpoint", files)
        Tokenizer(models.BPE()).save(str(checkpoint / "tokenizer.json"))
        if not (checkpoint / "tokenizer_config.json").exists():
            write_files(checkpoint, {"tokenizer_config.json": {}})
        theirs = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        assert special_tokens(checkpoint) == theirs.special_tokens_map


def test_a_variable_of_any_name_is_the_template_s() -> None:
    template = ChatTemplate("{{ self_ }}{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": "a"}], **{"self": 1}) == "a"
