"""The sizes that an engine must take: for each dimension that a graph leaves open, by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..bundle.gpu_graphs import FLOAT, POSITION_BLOCK, GpuGraphs, plain_file, row_step
from ..errors import EngineError


@dataclass(frozen=True)
class SizeRange:
    """An open dimension: the least and the most that it can be, and what it mostly is."""

    least: int
    best: int
    most: int

    def __add__(self, other: SizeRange) -> SizeRange:
        return SizeRange(self.least + other.least, self.best + other.best, self.most + other.most)


@dataclass(frozen=True)
class OpenInput:
    """An input, and the name of each of its open dimensions; None where the size is fixed."""

    name: str
    shape: tuple[int, ...]
    dimensions: tuple[str | None, ...]


@dataclass(frozen=True)
class Profile:
    """One set of sizes. context: positions that attention sees; chunk: tokens at once, with which
    a windowed layer's positions are kept."""

    spans: Mapping[str, SizeRange]
    context: int = 0
    chunk: int = 0

    def span(self, dimension: str) -> SizeRange:
        """Raises KeyError where the profile knows no such dimension.

        `past` are the positions before the tokens, and `keys` those with the tokens; a windowed
        layer's are `past.w128` and `keys.w128`.
        """
        name, _, kind = dimension.partition(".")
        if name == "past" and self.context:
            most = min(self.context, window_positions(kind, self.chunk) or self.context)
            most = _whole_blocks(most)
            return SizeRange(POSITION_BLOCK, _whole_blocks(most // 4), most)
        if name == "keys" and self.context:
            return self.span(dimension.replace("keys", "past", 1)) + self.spans["tokens"]
        return self.spans[dimension]

    def shapes(self, item: OpenInput) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The least, the best and the largest shape of an input.

        Raises:
            EngineError: it has a dimension that the profile does not know.
        """
        spans = []
        for size, dimension in zip(item.shape, item.dimensions, strict=True):
            if size >= 0:
                spans.append(SizeRange(size, size, size))
                continue
            try:
                spans.append(self.span(dimension or ""))
            except KeyError:
                name = repr(dimension) if dimension else "without a name"
                raise EngineError(
                    f"input {item.name} has an open dimension {name}; known ones are "
                    f"{', '.join(self.spans)}{', past, keys' if self.context else ''}"
                ) from None
        return (
            tuple(span.least for span in spans),
            tuple(span.best for span in spans),
            tuple(span.most for span in spans),
        )


def window_positions(kind: str, chunk: int) -> int | None:
    """Positions that a cache of a kind such as "w128" keeps; None where it keeps all."""
    if not kind.startswith("w") or not kind[1:].isdecimal():
        return None
    return _whole_blocks(int(kind[1:]) - 1 + max(chunk, POSITION_BLOCK))


def profiles_of(graphs: GpuGraphs, file: str, inputs: Sequence[OpenInput]) -> list[Profile]:
    """What an engine of a graph is made for, in the order in which the runtime selects it.

    A segment has two: one token, and a chunk of a prompt. Whatever else is open has one.
    """
    if not any(size < 0 for item in inputs for size in item.shape):
        return []
    if file in {*graphs.segments, *map(plain_file, graphs.segments)}:
        one = {"tokens": SizeRange(1, 1, 1), "rows": SizeRange(1, 1, 1)}
        chunk = {
            "tokens": SizeRange(1, graphs.chunk, graphs.chunk),
            "rows": SizeRange(
                1, 1, graphs.chunk
            ),  # mostly the last token's, all of them to score text
        }
        return [Profile(spans, graphs.context, graphs.chunk) for spans in (one, chunk)]
    batch = graphs.batch
    per_token = max((item.shape[1] for item in inputs if item.name == "places"), default=1)
    # The terms of an expert begin where a tensor may, so there are rows between them.
    widths = (item.shape[1] for item in inputs if item.name == "terms")
    step = max((row_step(width * FLOAT) for width in widths), default=1)
    spans = {
        "batch": SizeRange(1, min(batch, graphs.chunk), batch),
        "tokens": SizeRange(1, max(1, graphs.chunk // 8), batch),  # of a chunk, those of one expert
        "terms": SizeRange(1, min(batch, graphs.chunk) * per_token, batch * per_token * step),
    }
    return [Profile(spans)]


def _whole_blocks(positions: int) -> int:
    return max(1, -(-positions // POSITION_BLOCK)) * POSITION_BLOCK
