"""TensorRT's messages, without its own sources' whereabouts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

_CODE = re.compile(r"Error Code \d+: [^(]*\((.*)\)\s*$", re.DOTALL)
_PLACE = re.compile(r"\.?\s+In \w+ at \S+|\[\S+: \w+\] ")
_QUOTED = re.compile(r'&& "(.*)"', re.DOTALL)
# Said on top of an error wherever there is no GPU, which building for another does not need.
_NOISE = ("catchCudaError", "BuildCanceled")


def parser_reason(error: trt.ParserError) -> str:
    """Which node of a graph TensorRT cannot take, and why."""
    desc = error.desc()
    quoted = _QUOTED.search(desc)
    lines = [quoted.group(1)] if quoted else desc.splitlines()
    said = [line for line in lines if not line.startswith("Invalid Node - ")]
    text = first_reason(said) or desc
    if text == "false" or "Plugin not found" in text:
        text = "TensorRT has no such operator, or not for these types"
    if error.node() < 0:
        return text
    name = error.node_name() or f"number {error.node()}"
    return f"node {name} ({error.node_operator()}): {text}"


def first_reason(messages: Iterable[str]) -> str | None:
    """The first message that says more than where it was written; None where there is none."""
    for message in messages:
        if any(word in message for word in _NOISE) or not message.strip():
            continue
        inner = _CODE.search(message)
        text = _PLACE.sub("", inner.group(1) if inner else message)
        return " ".join(text.split()).rstrip(".")
    return None
