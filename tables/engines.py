"""A bundle's TensorRT engines as rows of text for a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bundle.gpu_graphs import TensorInfo, capability_name
from ..sizes import format_size

if TYPE_CHECKING:
    from ..analysis.inspection.engine_facts import EngineFacts, EngineSetFacts

SET_COLUMNS = ["for", "made by", "built on", "this machine", "engines", "size"]
ENGINE_COLUMNS = ["engine", "size", "inputs", "outputs", "weights"]
_HERE = {True: "runs them", False: "is another", None: "has no GPU"}


def engine_set_rows(sets: tuple[EngineSetFacts, ...]) -> list[tuple[str, ...]]:
    """A row for each folder of files, which sets may share."""
    rows: list[tuple[str, ...]] = []
    for item in {item.engines: item for item in sets}.values():
        here = [other.here for other in sets if other.engines == item.engines]
        rows.append((
            names_of(item, sets), f"{item.toolchain} {item.version}", item.device or "no GPU",
            _HERE[None if None in here else any(here)], str(len(item.engines)),
            format_size(item.bytes),
        ))  # fmt: skip
    return rows


def engine_rows(item: EngineSetFacts) -> list[tuple[str, ...]]:
    """A row for each engine of a set."""
    return [
        (engine.file.rpartition("/")[2], format_size(engine.bytes), _tensors(engine.inputs),
         _tensors(engine.outputs), _weights(engine))
        for engine in item.engines
    ]  # fmt: skip


def names_of(item: EngineSetFacts, sets: tuple[EngineSetFacts, ...]) -> str:
    """The architectures that share a set's files."""
    return ", ".join(
        capability_name(other.compute_capability) for other in sets if other.engines == item.engines
    )


def _weights(engine: EngineFacts) -> str:
    if engine.pages is not None:
        return engine.pages
    return f"{', '.join(engine.constants)} inside" if engine.constants else "none"


def _tensors(tensors: tuple[TensorInfo, ...]) -> str:
    """How many, and of which types."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in counts.items())
    return f"{len(tensors)}: {kinds}"
