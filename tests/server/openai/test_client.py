"""OpenAI's own client against a server process."""

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.session import Session
from pocketmoe.tests.support.serving import MODEL, server_process
from pocketmoe.tests.support.waiting import PATIENCE

MESSAGES: list[Any] = [{"role": "user", "content": "def main("}]
PLAIN = {"temperature": 0, "logit_bias": {"0": -100}}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["size"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("grow", "shrink")
]
SCHEMA = TOOLS[0]["function"]["parameters"]


class Point(pydantic.BaseModel):
    x: Literal[0, 1]
    y: Literal[0, 1]


class Move(pydantic.BaseModel):
    target: Point
    mode: Literal["slow", "fast"]


class Stop(pydantic.BaseModel):
    at: Point


@pytest.fixture(scope="module")
def port(served_bundle: Path) -> Iterator[int]:
    with server_process(served_bundle) as (_, port):
        yield port


@pytest.fixture(scope="module")
def session(served_bundle: Path) -> Iterator[Session]:
    with open_bundle(served_bundle) as session:
        yield session


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", timeout=PATIENCE) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another")
    assert caught.value.code == "model_not_found"


def test_completion_is_that_of_a_session(client: openai.OpenAI, session: Session) -> None:
    made = client.completions.create(
        model=MODEL, prompt="def main(", max_tokens=12, extra_body=PLAIN
    )
    (choice,) = made.choices
    alone = session.generate("def main(", max_new_tokens=12, logit_bias={0: -100.0})
    assert choice.text == alone.text()
    assert choice.finish_reason == "length"
    assert made.usage is not None
    assert made.usage.prompt_tokens == len(session.encode("def main("))
    assert made.usage.completion_tokens == 12


def test_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, extra_body=PLAIN
    )
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=PLAIN,
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_longer_conversation_reuses_the_shorter(client: openai.OpenAI) -> None:
    said: list[Any] = [{"role": "user", "content": "a longer text, so that it pays " * 4}]
    first = client.chat.completions.create(model=MODEL, messages=said, max_tokens=4)
    said += [
        {"role": "assistant", "content": first.choices[0].message.content or ""},
        {"role": "user", "content": "more"},
    ]
    second = client.chat.completions.create(model=MODEL, messages=said, max_tokens=4)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert first.usage.prompt_tokens - 8 <= cached < second.usage.prompt_tokens


@pytest.mark.parametrize(("length", "made"), [(500, 12), (511, 1), (512, 1)])
def test_answers_end_with_the_context(client: openai.OpenAI, length: int, made: int) -> None:
    """A prompt that fills it is followed by one token all the same."""
    bias = {"0": -100}
    answer = client.completions.create(
        model=MODEL, prompt=[5] * length, max_tokens=100, logit_bias=bias, temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == made


def test_several_choices_with_seeds(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[str]:
        made = client.completions.create(
            model=MODEL, prompt="def", max_tokens=8, seed=seed, n=n, temperature=1
        )
        assert made.usage is not None
        assert made.usage.prompt_tokens == 1
        assert [choice.index for choice in made.choices] == list(range(n))
        return [choice.text for choice in made.choices]

    three = texts(5, 3)
    assert three == texts(5, 3)
    assert three[1:] == [*texts(6, 1), *texts(7, 1)]
    assert len(set(three)) == 3


def test_several_prompts(client: openai.OpenAI, session: Session) -> None:
    def texts(prompt: Any) -> list[str]:
        made = client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, extra_body=PLAIN)
        return [choice.text for choice in made.choices]

    together = texts(["def", "return"])
    assert together == [*texts("def"), *texts(["return"])]
    ids = [session.encode("def"), session.encode("return")]
    assert texts(ids) == together
    assert texts(ids[0]) == together[:1]


def test_echo(client: openai.OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt="def", max_tokens=6, extra_body=PLAIN)
    echoed = client.completions.create(
        model=MODEL, prompt="def", max_tokens=6, echo=True, extra_body=PLAIN
    )
    assert echoed.choices[0].text == "def" + made.choices[0].text


def test_stop(client: openai.OpenAI) -> None:
    text = client.completions.create(
        model=MODEL, prompt="def", max_tokens=20, extra_body=PLAIN
    ).choices[0].text  # fmt: skip
    stop = text[5:8]
    made = client.completions.create(
        model=MODEL, prompt="def", max_tokens=20, stop=["never", stop], extra_body=PLAIN
    )
    assert made.choices[0].text == text[: text.index(stop)]
    assert made.choices[0].finish_reason == "stop"


def test_log_probabilities(client: openai.OpenAI, session: Session) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=3,
        extra_body=PLAIN,
    )  # fmt: skip
    (choice,) = made.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 6
    for item in choice.logprobs.content:
        assert len(item.top_logprobs) == 3
        assert item.logprob <= item.top_logprobs[0].logprob <= 0
    chunks = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=3, stream=True,
        extra_body=PLAIN,
    )  # fmt: skip
    streamed = [
        item
        for chunk in chunks
        if (told := chunk.choices[0].logprobs) is not None
        for item in told.content or []
    ]
    assert streamed == choice.logprobs.content

    text = client.completions.create(
        model=MODEL, prompt="def", max_tokens=6, logprobs=2, extra_body=PLAIN
    ).choices[0]  # fmt: skip
    assert text.logprobs is not None
    assert text.logprobs.text_offset is not None
    assert len(text.logprobs.text_offset) == 6
    alone = session.generate("def", max_new_tokens=6, logit_bias={0: -100.0}, logprobs=2)
    expected = [item.logprob for piece in alone for item in piece.logprobs]
    assert text.logprobs.token_logprobs is not None
    assert all(
        math.isclose(one, other, rel_tol=1e-9)
        for one, other in zip(text.logprobs.token_logprobs, expected, strict=True)
    )


def test_json_schema(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=1, seed=3, max_tokens=200,
        response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}
        },
    )  # fmt: skip
    content = json.loads(made.choices[0].message.content or "")
    jsonschema.validate(content, SCHEMA)
    assert made.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"type": "regex", "regex": "[0-9]{3}"}, r"^[0-9]{3}$"),
        ({"type": "grammar", "grammar": 'start: "ab" /c+/ "d"'}, r"^abc+d$"),
    ],
)
def test_other_forms(client: openai.OpenAI, form: dict[str, Any], pattern: str) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=3, max_tokens=100, extra_body={"response_format": form}
    )
    jsonschema.validate(made.choices[0].message.content, {"type": "string", "pattern": pattern})


class TestTools:
    @pytest.mark.parametrize("stream", [False, True])
    def test_required(self, client: openai.OpenAI, stream: bool) -> None:
        about: Any = {
            "model": MODEL, "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required",
            "max_tokens": 200, "seed": 1,
        }  # fmt: skip
        if stream:
            chunks = client.chat.completions.create(**about, stream=True)
            choices = [chunk.choices[0] for chunk in chunks]
            (call,) = [call for choice in choices for call in choice.delta.tool_calls or []]
            reason = choices[-1].finish_reason
        else:
            (choice,) = client.chat.completions.create(**about).choices
            (call,) = choice.message.tool_calls or []
            reason = choice.finish_reason
        assert reason == "tool_calls"
        assert call.function is not None
        assert call.function.name in ("grow", "shrink")
        jsonschema.validate(json.loads(call.function.arguments or ""), SCHEMA)

    def test_named_and_answered(self, client: openai.OpenAI) -> None:
        choice = {"type": "function", "function": {"name": "shrink"}}
        about: Any = {"model": MODEL, "tools": TOOLS, "max_tokens": 200, "seed": 1}
        made = client.chat.completions.create(messages=MESSAGES, tool_choice=choice, **about)
        message = made.choices[0].message
        (call,) = message.tool_calls or []
        assert call.function.name == "shrink"
        assert made.choices[0].finish_reason == "stop"
        answer = {"role": "tool", "tool_call_id": call.id, "content": "done"}
        said = [*MESSAGES, message.model_dump(), answer]
        after = client.chat.completions.create(messages=said, **about)
        assert after.choices[0].finish_reason in ("stop", "length")

    @pytest.mark.parametrize("choice", ["auto", "required", "Move"])
    def test_models_within_models(self, choice: str, client: openai.OpenAI) -> None:
        """As pydantic describes them: by references to definitions."""
        tools: Any = [openai.pydantic_function_tool(model) for model in (Move, Stop)]
        named = {"type": "function", "function": {"name": choice}}
        about: Any = {"model": MODEL, "messages": MESSAGES, "tools": tools, "seed": 1}
        if choice == "auto":  # any text may come
            made = client.chat.completions.create(**about, tool_choice=choice, max_tokens=20)
            assert made.choices[0].finish_reason in ("stop", "length")
            return
        about["tool_choice"] = named if choice == "Move" else choice
        parsed = client.chat.completions.parse(**about, max_tokens=200)
        (call,) = parsed.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, (Move, Stop))

    def test_strict(self, client: openai.OpenAI) -> None:
        """Any text may come; a bias makes the model begin a call at once."""
        strict: Any = [
            {"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS
        ]
        made = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, tools=strict, max_tokens=60, seed=1,
        )  # fmt: skip
        assert made.choices[0].finish_reason in ("stop", "length")

    def test_call_in_text_of_its_own(self, client: openai.OpenAI) -> None:
        """The model is random, so a grammar writes the call that its template would have."""
        written = '<tool_call>\n{"name": "grow", "arguments": {"size": 3}}\n</tool_call>'
        reader: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200}
        made = client.chat.completions.create(
            **reader, extra_body={"response_format": {"type": "grammar", "grammar":
                                                      f"start: {json.dumps(written)}"}},
        )  # fmt: skip
        assert made.choices[0].message.content == written  # no tools were offered


def test_asyncio(port: int) -> None:
    async def run() -> list[str]:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

            async def one(prompt: str) -> str:
                stream = await client.completions.create(
                    model=MODEL, prompt=prompt, max_tokens=10, stream=True, extra_body=PLAIN
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return list(await asyncio.gather(*(one(prompt) for prompt in ("def", "(", "def"))))

    first, second, third = asyncio.run(run())
    assert first == third != second


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="def", temperature=9)
    assert caught.value.param == "temperature"
    assert "from 0 to 2" in caught.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="def")
    assert missing.value.code == "model_not_found"
