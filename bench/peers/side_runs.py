"""Runs of one side of a comparison, each in a process of its own, under a limit or without."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketmoe.bench.memory.memory_limit import drop_from_page_cache, run_limited

BENCH = Path(__file__).resolve().parent


@dataclass(frozen=True)
class SideRequest:
    """What bench/peers/llama_cpp_run.py and bench/peers/pocketmoe_run.py are asked for, as JSON.

    prompt, new, long_prompt: numbers of tokens, the same ids on both sides for one seed; 0 leaves a
    step out. warm: run the same tokens once before. most_seconds: of decoding. repack: llama.cpp
    may turn the weights into copies that its kernels read faster. memory_budget: bytes, for
    pocketmoe. logits: a file for all logits of the prompt; then nothing is timed.
    """

    model: str
    threads: int
    context: int
    seed: int = 0
    prompt: int = 32
    new: int = 0
    long_prompt: int = 0
    warm: bool = False
    most_seconds: float = 120.0
    repack: bool = False
    memory_budget: int | None = None
    logits: str | None = None


@dataclass(frozen=True)
class SideRun:
    """How a run ended. result: what it printed, empty if it did not get that far. peak: bytes
    charged under a limit, page cache included."""

    request: SideRequest
    result: dict[str, Any]
    limit: int | None
    killed: bool
    peak: int | None
    exit_code: int
    error: str

    @property
    def decode_speed(self) -> float | None:
        """Tokens per second; None if none were decoded."""
        steps, seconds = self.result.get("steps", 0), self.result.get("decode_seconds", 0.0)
        return steps / seconds if steps and seconds else None

    @property
    def missed_bytes(self) -> float:
        """Of pages, per decoded token."""
        return self.result.get("decode_bytes", 0) / max(1, self.result.get("steps", 0))

    def read_bandwidth(self, step: str) -> float:
        """Bytes per second while at least one read was under way; 0 where nothing was read. step:
        "decode", "prompt" or "long_prompt"."""
        seconds = self.result.get(f"{step}_read_seconds", 0.0)
        return float(self.result.get(f"{step}_bytes", 0) / seconds) if seconds else 0.0

    @property
    def hit_rate(self) -> float | None:
        hits, misses = self.result.get("decode_hits", 0), self.result.get("decode_misses", 0)
        return hits / (hits + misses) if hits + misses else None

    @property
    def long_prompt_speed(self) -> float | None:
        seconds = self.result.get("long_prompt_seconds")
        return self.request.long_prompt / seconds if seconds else None


def median(numbers: Sequence[float | None]) -> float | None:
    """Of those that there are; None if there are none."""
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None


def parse_result(text: str) -> dict[str, Any]:
    """The last line that is a JSON object; empty if there is none."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def run_side(python: str, script: str, request: SideRequest, limit: int | None) -> SideRun:
    """Runs a script of bench/; under a limit, with nothing of the model in the page cache."""
    command = [python, str(BENCH / script), json.dumps(asdict(request))]
    if limit is None:
        done = subprocess.run(command, capture_output=True, text=True)
        return SideRun(
            request=request,
            result=parse_result(done.stdout) if done.returncode == 0 else {},
            limit=None,
            killed=False,
            peak=None,
            exit_code=done.returncode,
            error=(done.stderr.strip().splitlines() or [""])[-1],
        )
    drop_from_page_cache(Path(request.model))
    with tempfile.TemporaryFile("w+") as output:
        outcome = run_limited(command, limit, quiet=True, output=output)
        output.seek(0)
        text = output.read()
    return SideRun(
        request=request,
        result=parse_result(text) if outcome.ended_well else {},
        limit=limit,
        killed=outcome.killed,
        peak=outcome.peak,
        exit_code=outcome.exit_code,
        error=outcome.error,
    )
