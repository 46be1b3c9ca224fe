"""The form of a template's calls, found by having the template render one."""

import importlib
import pkgutil

import pytest

from pocketmoe.runtime.generation.template import ChatTemplate
from pocketmoe.server import tool_calls
from pocketmoe.server.tool_calls import hermes, llama_json, mistral_args, mistral_array
from pocketmoe.server.tool_calls.forms import FORMS, CallStyle, find_call_style
from pocketmoe.tests.conftest import TOOL_TEMPLATE

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
    ("source", "style"),
    [
        (TOOL_TEMPLATE, CallStyle(hermes, "arguments")),
        (QWEN, CallStyle(hermes, "arguments")),
        (LLAMA_3, CallStyle(llama_json, "parameters")),
        (MISTRAL, CallStyle(mistral_array, "arguments")),
        (MISTRAL_2025, CallStyle(mistral_args, "arguments")),
        (LOOP + "{% endfor %}", None),
        ("{% if tools %}{{ raise_exception('none here') }}{% endif %}", None),
        ("{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}", None),
    ],
)
def test_forms_of_templates(source: str, style: CallStyle | None) -> None:
    found, why = find_call_style(ChatTemplate(source, {}))
    assert found == style
    assert (style is None) == bool(why)


def test_every_form_is_in_the_list() -> None:
    modules = [
        importlib.import_module(f"{tool_calls.__name__}.{found.name}")
        for found in pkgutil.iter_modules(tool_calls.__path__)
    ]
    assert {module for module in modules if hasattr(module, "START")} == set(FORMS)
