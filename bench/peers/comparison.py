"""Results of bench/peers/compare_llama_cpp.py, as tables for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pocketmoe.bench.peers.limit_model import Bandwidths
from pocketmoe.bench.peers.side_runs import SideRun, median
from pocketmoe.sizes import format_size

MIB = 1 << 20
# BigMoeOnEdge 0.19 (expert streaming on llama.cpp), decode in tokens per second by limit in MiB, as
# published on this shape by others; nothing of it is run here. With other random weights, whose
# tokens shared more experts: at 2000 MiB 57 % hits and 145 MiB per token.
PUBLISHED = {3000: 8.4, 2400: 4.6, 2000: 4.2, 1500: 3.0}
PUBLISHED_MACHINE = "2 cores, memory 17–23 GB/s, disk 1.2–1.5 GB/s"
PUBLISHED_READS = "at 2000 MiB 57 % hits and 145 MiB read per token"


@dataclass(frozen=True)
class ComparedRun:
    """Runs of both sides under the same conditions. limit: MiB, None for all in memory. decodes:
    it measures decoding, and not only a prompt. bandwidths: as measured just before and after;
    None for those of the whole comparison. Where the run's own reads were faster, since a disk may
    give more for a while, they count. resident_prompt: seconds of the long prompt of
    pocketmoe with all pages in memory. predicted: decode as the plan
    foretells it, in tokens per second."""

    name: str
    limit: int | None
    ours: tuple[SideRun, ...]
    theirs: tuple[SideRun, ...]
    decodes: bool = True
    bandwidths: Bandwidths | None = None
    resident_prompt: float | None = None
    predicted: float | None = None


@dataclass(frozen=True)
class Agreement:
    """Of both sides' logits on the same tokens: Pearson's r, and the share with the same top-1."""

    correlation: float
    top1: float
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """pages: of the bundle. resident: bytes of weights that one token reads."""

    bundle: str
    manifest_sha256: str
    bundle_bytes: int
    gguf_bytes: int
    pages: int
    threads: int
    context: int
    seed: int
    agreement: Agreement | None
    before: Bandwidths
    after: Bandwidths
    resident: int
    rows: tuple[ComparedRun, ...]

    @property
    def bandwidths(self) -> Bandwidths:
        return self.before.mean(self.after)

    @property
    def drift(self) -> float:
        """The larger change of a bandwidth from before to after, as a share of their mean."""
        mean = self.bandwidths
        memory = abs(self.after.memory - self.before.memory) / mean.memory
        return max(memory, abs(self.after.storage - self.before.storage) / mean.storage)


def figures(comparison: Comparison, row: ComparedRun) -> dict[str, Any]:
    """The row in numbers; None where a side did not get that far. Speeds in tokens per second,
    sizes in bytes. Shares are of the limit model; a prompt's limit is its reads, or what it takes
    with all pages in memory, whichever is longer."""
    ours, theirs = row.ours, row.theirs
    bandwidths = row.bandwidths or comparison.bandwidths
    step = "decode" if row.decodes else "long_prompt" if row.resident_prompt else "prompt"
    bandwidths = bandwidths.at_least([run.read_bandwidth(step) for run in ours])
    decode = median([run.decode_speed for run in ours])
    their_decode = median([run.decode_speed for run in theirs])
    prompt = median([run.long_prompt_speed for run in ours])
    their_prompt = median([run.long_prompt_speed for run in theirs])
    missed = median([run.missed_bytes for run in ours if run.decode_speed]) or 0.0
    limit = 1 / bandwidths.token_seconds(comparison.resident, missed)
    read = median([run.result.get("long_prompt_bytes") for run in ours])
    prompt_seconds = median([run.result.get("long_prompt_seconds") for run in ours])
    parts = (_over(read, bandwidths.storage), row.resident_prompt)
    prompt_limit = max((part for part in parts if part), default=None)
    first_bytes = median([run.result.get("prompt_bytes") for run in ours])
    first_seconds = median([run.result.get("prompt_seconds") for run in ours])
    measured = row.bandwidths or comparison.bandwidths
    first_storage = max([measured.storage, *(run.read_bandwidth("prompt") for run in ours)])
    return {
        "name": row.name,
        "decode": decode,
        "llama_cpp_decode": their_decode,
        "decode_ratio": _ratio(decode, their_decode),
        "limit": limit if decode else None,
        "share_of_limit": _ratio(decode, limit),
        "predicted": row.predicted,
        "predicted_over_measured": _ratio(row.predicted, decode),
        "memory_bandwidth": bandwidths.memory,
        "storage_bandwidth": bandwidths.storage,
        "missed_bytes_per_token": missed if decode else None,
        "hit_rate": median([run.hit_rate for run in ours]),
        "read_bandwidth": median([run.result.get("read_bandwidth") for run in ours]),
        "pages_touched": median([run.result.get("pages_touched") for run in ours]),
        "direct_reads": all(run.result.get("direct_reads", False) for run in ours),
        "long_prompt": prompt,
        "llama_cpp_long_prompt": their_prompt,
        "long_prompt_ratio": _ratio(prompt, their_prompt),
        "long_prompt_bytes": read,
        "long_prompt_share": _ratio(prompt_limit, prompt_seconds),
        "first_seconds": first_seconds,
        "first_bytes": first_bytes,
        "first_over_reading": _ratio(first_seconds, _over(first_bytes, first_storage)),
        "open_seconds": median([run.result.get("open_seconds") for run in ours]),
        "llama_cpp_open_seconds": median([run.result.get("open_seconds") for run in theirs]),
        "peak": max((run.peak for run in ours if run.peak), default=None),
        "llama_cpp_peak": max((run.peak for run in theirs if run.peak), default=None),
        "ended": _end(ours),
        "llama_cpp_ended": _end(theirs),
    }


def _over(number: float | None, divisor: float) -> float | None:
    return number / divisor if number else None


def _ratio(number: float | None, divisor: float | None) -> float | None:
    return number / divisor if number is not None and divisor else None


def _end(runs: tuple[SideRun, ...]) -> str:
    """ "well", "killed" or the first error; "not run"."""
    for run in runs:
        if run.killed:
            return "killed"
        if run.exit_code:
            return run.error or f"exit code {run.exit_code}"
    return "well" if runs else "not run"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, each single run included."""
    return {
        **asdict(comparison),
        "bandwidths": asdict(comparison.bandwidths),
        "drift": comparison.drift,
        "figures": [figures(comparison, row) for row in comparison.rows],
        "published_elsewhere": {
            "decode": PUBLISHED,
            "machine": PUBLISHED_MACHINE,
            "reads": PUBLISHED_READS,
        },
    }


@dataclass(frozen=True)
class ComparisonTable:
    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]


def tables(comparison: Comparison) -> Iterator[ComparisonTable]:
    """Only those that have rows."""
    rows = [figures(comparison, row) for row in comparison.rows]
    decoded = [numbers for row, numbers in zip(comparison.rows, rows, strict=True) if row.decodes]
    if decoded:
        columns = (
            "", "pocketmoe", "llama.cpp", "ratio", "limit", "share", "predicted", "of measured",
            "hits", "read/token", "memory", "storage", "O_DIRECT", "peak",
            "llama.cpp peak", "end", "llama.cpp end",
        )  # fmt: skip
        cells = [
            [
                row["name"], _number(row["decode"]), _number(row["llama_cpp_decode"]),
                _number(row["decode_ratio"], " ×"), _number(row["limit"]),
                _percent(row["share_of_limit"]), _number(row["predicted"]),
                _percent(row["predicted_over_measured"]), _percent(row["hit_rate"]),
                _size(row["missed_bytes_per_token"]), _speed(row["memory_bandwidth"]),
                _speed(row["storage_bandwidth"]),
                "yes" if row["direct_reads"] else "no", _size(row["peak"]),
                _size(row["llama_cpp_peak"]), row["ended"], row["llama_cpp_ended"],
            ]
            for row in decoded
        ]  # fmt: skip
        yield ComparisonTable("decode, tokens per second", columns, cells)
    prompts = [row for row in rows if row["long_prompt"] or row["llama_cpp_long_prompt"]]
    if prompts:
        cells = [
            [
                row["name"], _number(row["long_prompt"]), _number(row["llama_cpp_long_prompt"]),
                _number(row["long_prompt_ratio"], " ×"), _size(row["long_prompt_bytes"]),
                _percent(row["long_prompt_share"]),
            ]
            for row in prompts
        ]  # fmt: skip
        columns = ("", "pocketmoe", "llama.cpp", "ratio", "read", "share of limit")
        yield ComparisonTable("long prompt, tokens per second", columns, cells)
    first = [row for row in rows if row["first_bytes"]]
    if first:
        cells = [
            [
                row["name"], _number(row["first_seconds"], " s"), _size(row["first_bytes"]),
                _number(row["first_over_reading"], " ×"), _number(row["open_seconds"], " s"),
            ]
            for row in first
        ]  # fmt: skip
        columns = ("", "first token", "read", "over reading once", "opening")
        yield ComparisonTable("cold prompt of pocketmoe", columns, cells)
    by_limit = {
        row.limit: numbers["decode"]
        for row, numbers in zip(comparison.rows, rows, strict=True)
        if row.decodes
    }
    published = [limit for limit in PUBLISHED if by_limit.get(limit)]
    if published:
        cells = [
            [
                f"{limit} MiB", _number(by_limit[limit]), _number(PUBLISHED[limit]),
                _number(by_limit[limit] / PUBLISHED[limit], " ×"),
            ]
            for limit in published
        ]  # fmt: skip
        title = (
            "decode beside BigMoeOnEdge 0.19 as published on this shape by others: another run of "
            f"another day on another machine ({PUBLISHED_MACHINE}) and other weights "
            f"({PUBLISHED_READS}): the ratio compares those too"
        )
        columns = ("", "pocketmoe, this run", "BigMoeOnEdge, published", "ratio")
        yield ComparisonTable(title, columns, cells)


def _number(number: float | None, unit: str = "") -> str:
    return "–" if number is None else f"{number:.2f}{unit}"


def _percent(number: float | None) -> str:
    return "–" if number is None else f"{number:.0%}"


def _size(number: float | None) -> str:
    return "–" if number is None else format_size(int(number))


def _speed(number: float | None) -> str:
    return "–" if not number else f"{number / 1e9:.2f} GB/s"
