"""What `make demo` shows: a model that writes the same text with less memory.

python examples/demo.py [-o BUNDLE]
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pocketmoe
from pocketmoe.sizes import format_size

CHECKPOINT = Path(os.path.relpath(Path(__file__).parents[1] / "model" / "demo"))
PROMPT = 'def read_config(path):\n    """'
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """What a process found. memory: bytes at its peak. hits: the share of experts that were in
    memory when a token needed them. speed: tokens per second. third: a memory budget in bytes,
    which a third of the experts fit into beside all else."""

    text: str
    memory: int
    in_memory: int
    experts: int
    hits: float
    speed: float
    third: int


def generate(bundle: Path, budget: int | None) -> Run:
    with pocketmoe.open(bundle, memory_budget=budget) as session:
        for _ in range(2):  # the first time, all is new to the caches: the second one counts
            session.reset()
            counters, stats = session.counters, session.stats
            text = session.generate(
                PROMPT, max_new_tokens=120, stop="\n\n\n", temperature=0.5, top_p=0.9,
                repetition_penalty=1.08, seed=1,
            ).text()  # fmt: skip
        after, plan = session.stats, session.plan
        seconds = after.decode_seconds - stats.decode_seconds
        pages = after.num_pages // 3 - plan.fewest
        return Run(
            text=text,
            memory=after.peak_rss_bytes,
            in_memory=after.cache_slots,
            experts=after.num_pages,
            hits=(session.counters - counters).hit_rate,
            speed=(after.decode_steps - stats.decode_steps) / seconds,
            third=-(-(plan.least + pages * plan.page) // MIB) * MIB,
        )


def run(bundle: Path, budget: int | None) -> Run:
    """In a process of its own, as what it takes is to be its alone."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(generate, bundle, budget).result()


def compile_demo(bundle: Path) -> None:
    words = [
        "compile", str(CHECKPOINT), "--target", "cpu", "--precision", "fp32", "--force",
        "-o", str(bundle),
    ]  # fmt: skip
    show(f"{command(*words[:4])} \\\n    {shlex.join(words[4:])}")
    subprocess.run([sys.executable, "-m", "pocketmoe", *words], check=True)


def command(*words: str) -> str:
    """As it is typed."""
    return shlex.join([os.path.relpath(Path(sys.executable).with_name("pocketmoe")), *words])


def say(text: str) -> None:
    print(textwrap.fill(text, 80))


def show(text: str) -> None:
    print(f"\n{textwrap.indent(text, '  ')}\n", flush=True)


def print_row(name: str, *cells: str) -> None:
    widths = (13, 19, 8, 19)
    print(f"{name:12}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))


def print_run(name: str, found: Run) -> None:
    experts = f"{found.in_memory} of {found.experts}"
    print_row(name, format_size(found.memory), experts, f"{found.hits:.0%}", f"{found.speed:.0f}")


def main(bundle: Path) -> None:
    say("The demo model is a small Mixture of Experts, trained on Python's own library.")
    say("It is compiled to a bundle, which is what runs:")
    compile_demo(bundle)
    whole = run(bundle, None)
    within = run(bundle, whole.third)
    budget = format_size(whole.third).replace(".0 ", "")

    print("\nA prompt:")
    show(PROMPT)
    print("The text that the model makes of it:")
    show(PROMPT + whole.text)
    say(
        f"The same prompt again, in a process that has a memory budget of {budget}: a third of the "
        "experts fit into it. The others are read from disk when a token needs them. A hit is an "
        "expert that is in memory when it is needed. Memory is that of the whole process, Python "
        "included."
    )
    print()
    print_row("budget", "memory used", "experts in memory", "hits", "tokens per second")
    print_run("none", whole)
    print_run(budget, within)
    if within.text != whole.text:
        raise SystemExit("\nerror: the two texts differ; please report this")
    print("\nBoth texts are the same to the byte.\n\nNow type:")
    own = command("run", str(bundle), "--prompt", "import os", "--memory-budget", budget)
    show(f"{own}\n{command('plan', str(bundle), '--target', 'cpu')}")
    say("The first takes any prompt, the second says what other budgets would do.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show what a memory budget does.")
    parser.add_argument("-o", "--bundle", type=Path, default=Path("build/demo"))
    given = parser.parse_args()
    try:
        main(given.bundle)
    except pocketmoe.PocketMoEError as error:
        raise SystemExit(f"error: {error}") from None
    except subprocess.CalledProcessError as error:  # it has said why
        raise SystemExit(error.returncode) from None
