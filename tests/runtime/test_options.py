"""OpenOptions: stated once, checked at once, and what sessions that share a model have alike."""

import inspect
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import click
import pytest

import pocketmoe
from pocketmoe.cli import main
from pocketmoe.cpus import cpu_count
from pocketmoe.errors import InputError
from pocketmoe.runtime.options import BACKENDS, OpenOptions

# The commands that open a bundle, and what they need besides it.
OPENING: dict[str, list[str]] = {
    "run": [], "chat": [], "serve": [], "eval": ["--data", "text"], "bench": [],
}  # fmt: skip
NOT_ON_THE_COMMAND_LINE = {"verify_pages", "kernels"}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"verify_pages": 1}, "verify_pages must be True or False, not 1"),
        ({"memory_budget": "2 apples"}, "apples"),
        ({"memory_budget": 0}, "memory budget must be more than 0 bytes"),
        ({"memory_budget": True}, "memory budget must be a number of bytes"),
        ({"gpu_memory": -1}, "GPU memory must be more than 0 bytes"),
        ({"host_memory": 1.5}, "host memory must be a number of bytes"),
        ({"threads": 0}, "threads must be a whole number, 1 or more, not 0"),
        ({"threads": True}, "threads must be a whole number"),
        ({"threads": 1.5}, "threads must be a whole number"),
        ({"backend": "vulkan"}, "backend must be one of auto, tensorrt"),
        ({"backend": "cuda", "kernels": "native"}, "use backend 'cpu'"),
    ],
)
def test_what_is_wrong_whatever_the_bundle(option: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        OpenOptions(**option)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_takes_them_by_name_and_no_other(tiny_bundle: Path) -> None:
    signature = inspect.signature(pocketmoe.open)
    assert list(signature.parameters)[1:] == [field.name for field in fields(OpenOptions)]
    assert {parameter.kind for name, parameter in signature.parameters.items() if name != "path"} \
        == {inspect.Parameter.KEYWORD_ONLY}  # fmt: skip
    with pytest.raises(TypeError, match=r"^got an unexpected keyword argument 'memory_buget'$"):
        pocketmoe.open(tiny_bundle, memory_buget="1GiB")  # type: ignore[call-arg]
    with pocketmoe.open(tiny_bundle, context=32, threads=1) as session:
        assert (session.context, session.stats.threads) == (32, 1)


def test_they_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        OpenOptions().threads = 2  # type: ignore[misc]


def test_sessions_share_a_model_whatever_their_budget_and_context() -> None:
    asked = OpenOptions(memory_budget="1GiB", context=64, gpu_memory="auto", threads=cpu_count())
    assert asked.of_model == OpenOptions().of_model
    for other in (
        {"kernels": "native"},
        {"skip_cold": 0.5},
        {"host_memory": 1},
        {"backend": "cpu"},
    ):
        assert OpenOptions(**other).of_model != OpenOptions().of_model  # type: ignore[arg-type]


def test_commands_have_the_same_names_and_defaults() -> None:
    known, named = {field.name for field in fields(OpenOptions)}, set()
    for name, words in OPENING.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        given = command.make_context(name, ["bundle", *words]).params
        if "budgets" in given:  # `bench --plot` takes several
            given["memory_budget"] = next(iter(given["budgets"]), None)
        options = {key: value for key, value in given.items() if key in known}
        assert OpenOptions(**options) == OpenOptions()
        named |= options.keys()
        choices = next(option.type for option in command.params if option.name == "backend")
        assert isinstance(choices, click.Choice)
        assert tuple(choices.choices) == BACKENDS
    assert named == known - NOT_ON_THE_COMMAND_LINE
