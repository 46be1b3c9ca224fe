"""Arguments of the command line: types, options of several commands, the text that comes in."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, TargetError
from ..sizes import parse_size
from ..targets import LOCAL, Target, all_targets, find_target
from ..text_input import decode_utf8

_log = logging.getLogger(__name__)


class SizeType(click.ParamType):  # type: ignore[type-arg]
    """A size such as `512MiB`, converted to bytes."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class BudgetType(SizeType):
    """A size, or "auto"."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        return super().convert(value, param, ctx)


class TargetType(click.ParamType):  # type: ignore[type-arg]
    """The name of a device: of the table, or of the user's file of measured ones."""

    name = "target"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        if isinstance(value, Target):
            return value
        try:
            return find_target(value, targets_file(ctx))
        except TargetError as error:
            self.fail(str(error), param, ctx)


def targets_file(ctx: click.Context | None) -> Path | None:
    """The file of measured targets, which the command line's root has chosen."""
    found = ctx.find_root().obj if ctx is not None else None
    return found if isinstance(found, Path) else None


class FiniteRange(click.FloatRange):
    """A range of numbers, to which NaN and infinity do not belong."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


SIZE = SizeType()
BUDGET_SIZE = BudgetType()
TARGET = TargetType()
POSITIVE = click.IntRange(min=1)

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
AGAINST = click.option(
    "--against",
    metavar="CHECKPOINT",
    type=click.Path(path_type=Path),
    help="Compare with the checkpoint in float32.",
)
BUDGET = click.option(
    "--memory-budget",
    metavar="SIZE",
    type=BUDGET_SIZE,
    help="Memory for the whole process, such as 512MiB; auto takes what is free.  "
    "[default: no limit]",
)
_GPU = (
    click.option(
        "--backend",
        type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu"]),
        default="auto",
        help="What runs the layers; auto takes the best that works.",
    ),
    click.option(
        "--gpu-memory",
        metavar="SIZE",
        type=BUDGET_SIZE,
        help="Memory of a GPU for all that it holds.  [default: auto, what is free]",
    ),
    click.option(
        "--host-memory",
        metavar="SIZE",
        type=BUDGET_SIZE,
        help="With a GPU, memory for the process on the host.  [default: auto]",
    ),
)


def gpu_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options about GPUs."""
    for option in reversed(_GPU):
        command = option(command)
    return command


def with_opening(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets its options that say how a bundle is opened as one: `opening`, an
    OpenOptions. Stands below the options."""

    @wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        from ..runtime.options import OpenOptions  # with numpy

        names = kwargs.keys() & {field.name for field in fields(OpenOptions)}
        opening = OpenOptions(**{name: kwargs.pop(name) for name in names})
        return command(*args, opening=opening, **kwargs)

    return gathered


_SAMPLING = (
    click.option("--temperature", type=FiniteRange(min=0), default=0.0, help="0 is greedy."),
    click.option(
        "--top-k",
        type=click.IntRange(min=0),
        default=0,
        help="Sample from the K likeliest tokens; 0 for all.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(0, 1, min_open=True),
        default=1.0,
        help="Sample from the likeliest tokens that make up this probability.",
    ),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Makes sampling repeatable."),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options about sampling, which the command gets as one: `sampling`, the arguments
    of Session.generate that they are."""

    @wraps(command)
    def collected(
        *args: Any, temperature: float, top_k: int, top_p: float, seed: int | None, **kwargs: Any
    ) -> Any:
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return command(*args, sampling=sampling, **kwargs)

    for option in reversed(_SAMPLING):
        collected = option(collected)
    return collected


PREDICT = click.option(
    "--target",
    metavar="NAME",
    type=TARGET,
    help="Whose figures the predicted speed is made of.  [default: local, if it was measured]",
)


def predicted_by(ctx: click.Context, target: Target | None) -> Target | None:
    """The target that was named, or else this machine as it was measured, if it was."""
    if target is not None:
        return target
    try:
        known = all_targets(targets_file(ctx))
    except TargetError as error:
        _log.warning("%s", error)
        return None
    return next((target for target in known if target.name == LOCAL), None)


PRECISION = click.option(
    "--precision",
    metavar="PRECISION",
    multiple=True,
    help="int4, int8, fp16 or fp32, or by part; experts alone fp8 too.  "
    "[default: experts=int4,backbone=int8,head=int8]",
)
BUDGETS = click.option(
    "--memory-budget",
    "budgets",
    metavar="SIZE",
    type=BUDGET_SIZE,
    multiple=True,
    help="Memory for the whole process, such as 512MiB; auto takes what is free; with --plot, "
    "several times.  [default: no limit]",
)
PLOT = click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw speed against memory budget, from a run for each.  [default budgets: 5, from the "
    "smallest to all in memory]",
)
CONTEXT = click.option(
    "--context",
    metavar="N",
    type=POSITIVE,
    help="Tokens that it can see.  [default: the model's, at most 4096]",
)

PREFETCH = click.option(
    "--prefetch",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="Read pages early that the next layer may want.",
)
ACTIVE_EXPERTS = click.option(
    "--active-experts",
    metavar="K",
    type=POSITIVE,
    help="Use only the K strongest experts of each token (lossy).  [default: all that it has]",
)
SKIP_COLD = click.option(
    "--skip-cold",
    metavar="SHARE",
    type=FiniteRange(0, 1),
    default=0.0,
    help="Leave out experts that are not in the cache and whose weight is below this share of an "
    "even split (lossy).",
)
RECORD_ROUTES = click.option(
    "--record-routes",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write which experts each token went to, for replay; gzipped if FILE ends in .gz.",
)
TRACE = click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write what happened when, as JSON for chrome://tracing or ui.perfetto.dev.",
)


def read_prompt(prompt: str) -> str:
    """The text of `--prompt`; `-` stands for standard input.

    Raises:
        InputError: the text is empty or not UTF-8.
    """
    if prompt == "-":
        text = decode_utf8(sys.stdin.buffer.read(), "standard input")
    else:
        text = decode_argument(prompt, "--prompt")
    if not text:
        raise InputError("the prompt is empty; give at least one character")
    return text


def read_turns(cue: Callable[[], None]) -> Iterator[str]:
    """The lines of standard input that are not blank; on a terminal, `cue` asks for each.

    Raises:
        InputError: a line is not UTF-8.
    """
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            cue()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        text = decode_utf8(line, "standard input").rstrip("\r\n")
        if text.strip():
            yield text


def decode_argument(text: str, option: str) -> str:
    """The text of an option; raises InputError where it was not UTF-8."""
    # Python hides the bytes of an argument that it could not decode in lone surrogates.
    return decode_utf8(text.encode("utf-8", "surrogateescape"), option)
