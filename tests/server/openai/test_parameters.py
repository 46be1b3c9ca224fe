"""Parameters that are refused, by name."""

from typing import Any

import pytest

from pocketmoe.tests.support.serving import CHAT, TEXT, chat, completion

USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": []}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": "x" * 10_000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"user": 1}, "user"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "a", "schema": {"type": "nothing"}}}},
         "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema":
                              {"name": "a", "schema": {"type": "string", "pattern": "(("}}}},
         "response_format"),
        ({"response_format": {"type": "regex", "regex": "["}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "start: nowhere"}}, "response_format"),
        ({"tokens": 5}, "tokens"),
        ({"x" * 1000: 5}, "x" * 200),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("path", "make"), [(CHAT, chat), (TEXT, completion)])
def test_parameters_of_both(refused: Any, path: str, make: Any, change: Any, param: str) -> None:
    refused(path, make(**change), param, "")


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{**USER, "content": 5}]}, "messages[0].content"),
        ({"messages": [{**USER, "mood": "good"}]}, "messages[0].mood"),
        ({"messages": [{**USER, "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{**USER, "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{**USER, "content": "forbidden"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
         "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "1"}}]},
         "messages[0].audio"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 9}, "max_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"functions": []}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters=deep(300))]}, "tools[0]"),
        ({"tools": [tool(), tool(name="g", parameters={"type": "nothing"})],
          "tool_choice": "required"}, "tools[1].function.parameters"),
        ({"tools": [tool(parameters={"x-guidance": {}})], "tool_choice": "required"},
         "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "g"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice"),
        ({"tools": [tool()], "response_format": {"type": "json_object"}}, "response_format"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "a", "schema": deep(300)}}},
         "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_parameters_of_chats(refused: Any, change: Any, param: str) -> None:
    refused(CHAT, chat(**change), param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, 2, 100_000]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": ["x"] * 200}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"messages": [USER]}, "messages"),
    ],
)
def test_parameters_of_texts(refused: Any, change: Any, param: str | None) -> None:
    refused(TEXT, completion(**change), param)


def test_another_model(refused: Any) -> None:
    error = refused(CHAT, chat(model="gpt-4o"), "model", "'gpt-4o'", "'tiny'", status=404)
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize("prompt", ["x " * 300_000, [5] * 100_000])
def test_a_prompt_longer_than_the_context(refused: Any, prompt: Any) -> None:
    error = refused(TEXT, completion(prompt=prompt), "prompt", "context of 512 tokens")
    assert error["code"] == "context_length_exceeded"
    if isinstance(prompt, str):
        messages = [{**USER, "content": prompt}]
        refused(CHAT, chat(messages=messages), "messages", "context of 512 tokens")
