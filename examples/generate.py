"""Generates text from a bundle within a memory budget, and says what the page cache did.

python examples/generate.py build/demo 'def main(' 128MiB
"""

from __future__ import annotations

import argparse

import pocketmoe


def main(bundle: str, prompt: str, memory_budget: str) -> None:
    with pocketmoe.open(bundle, memory_budget=memory_budget) as session:
        for piece in session.generate(prompt, max_new_tokens=64, temperature=0.8, seed=0):
            print(piece.text, end="", flush=True)
        stats = session.stats
    print(
        f"\n{stats.new_tokens_per_second:.1f} tokens per second, {stats.hit_rate:.0%} page hits, "
        f"{stats.cache_slots} of {stats.num_pages} experts in memory"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generate text within a memory budget.")
    parser.add_argument("bundle")
    parser.add_argument("prompt")
    parser.add_argument("memory_budget", help="such as 128MiB, or auto")
    given = parser.parse_args()
    try:
        main(given.bundle, given.prompt, given.memory_budget)
    except pocketmoe.PocketMoEError as error:
        raise SystemExit(f"error: {error}") from None
