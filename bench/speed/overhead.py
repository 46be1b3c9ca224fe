"""Time per token of `Session.generate` beside the bare session, `forward` and the largest logit:
python bench/speed/overhead.py build/demo [--tokens 64] [--rounds 9]

The two take turns, with the same prompt and tokens, all experts in memory. Also, without a model:
what sampling takes from a vocabulary of 150,000, and what a grammar does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import pocketmoe
from pocketmoe.bench.memory.grammar_memory import random_tokenizer
from pocketmoe.runtime.generation.grammar import Grammar, Matcher
from pocketmoe.runtime.generation.sampling import Sampler, Sampling, log_probabilities
from pocketmoe.runtime.generation.vocabulary import Vocabulary

VOCABULARY = 150_000
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "temperature, top-k 40": {"temperature": 0.8, "top_k": 40},
    "temperature, top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature 5, top-p 0.95": {"temperature": 5.0, "top_p": 0.95},
    "temperature, min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "penalties, greedy": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
}


def bare(session: pocketmoe.Session, prompt: list[int], tokens: int) -> list[float]:
    """Seconds of each step after the first token."""
    session.reset()
    token = int(session.forward(prompt, last_only=True)[0].argmax())
    seconds = []
    for _ in range(tokens):
        begun = time.perf_counter()
        token = int(session.forward([token], last_only=True)[0].argmax())
        seconds.append(time.perf_counter() - begun)
    return seconds


def generated(session: pocketmoe.Session, prompt: list[int], tokens: int) -> list[float]:
    """The same, from piece to piece; pieces that hold several tokens share their time."""
    session.reset()
    seconds = []
    with session.generate(prompt, max_new_tokens=tokens + 1) as pieces:
        next(pieces)
        done, begun = pieces.new_tokens, time.perf_counter()
        for _ in pieces:
            now = time.perf_counter()
            count = pieces.new_tokens - done
            seconds += [(now - begun) / count] * count
            done, begun = pieces.new_tokens, now
    return seconds


def microseconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def print_grammar() -> None:
    """Of a JSON schema."""
    random, tokenizer = np.random.default_rng(0), random_tokenizer(VOCABULARY)
    grammar = Grammar.json_schema({"properties": {"name": {"type": "string"}}, "type": "object"})
    begun = time.perf_counter()
    matcher = Matcher(grammar, Vocabulary(tokenizer, VOCABULARY, (0,)))
    seconds = time.perf_counter() - begun
    times = []
    while not matcher.complete and len(times) < 300:
        begun = time.perf_counter()
        allowed = matcher.allowed()
        times.append((time.perf_counter() - begun) * 1e6)
        matcher.add(int(random.choice(allowed)))
    print(
        f"{statistics.median(times):8.0f} µs  a grammar's mask, at most {max(times):.0f} µs; "
        f"the first grammar takes {seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--prompt", default="import os\n\n\ndef main(")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with pocketmoe.open(args.bundle, context=1024) as session:
        prompt = session.encode(args.prompt)
        bare(session, prompt, args.tokens)  # warms up
        alone, by_api, more = [], [], []
        for _ in range(args.rounds):
            alone.append(statistics.median(bare(session, prompt, args.tokens)))
            by_api.append(statistics.median(generated(session, prompt, args.tokens)))
            more.append((by_api[-1] - alone[-1]) * 1e6)
    token, extra = statistics.median(alone) * 1e6, statistics.median(more)
    print(f"bare session     {token:8.0f} µs per token, {1e6 / token:.1f} tokens per second")
    print(f"generate         {statistics.median(by_api) * 1e6:8.0f} µs per token")
    print(
        f"more             {extra:8.0f} µs (from {min(more):.0f} to {max(more):.0f} in "
        f"{args.rounds} rounds), {extra / 50_000:.2%} of a token at 20 tokens per second"
    )
    logits = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32) * 3
    logits[:20] += 15  # as a model has it: a few tokens take most of it
    for name, how in WAYS.items():
        sampler = Sampler(Sampling(seed=0, **how), VOCABULARY, range(1000))
        for made in range(500):
            sampler.add(made * 7)
        print(f"{microseconds(partial(sampler.sample, logits)):8.0f} µs  {name}")
    print(f"{microseconds(lambda: log_probabilities(logits)):8.0f} µs  log probabilities")
    sampler, allowed = (
        Sampler(Sampling(temperature=0.8, seed=0), VOCABULARY),
        np.arange(0, 150_000, 3),
    )
    print(f"{microseconds(lambda: sampler.sample(logits, allowed)):8.0f} µs  50,000 allowed tokens")
    print_grammar()


if __name__ == "__main__":
    main()
