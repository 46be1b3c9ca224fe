"""Memory of the first grammar, beside what a plan reckons:
python bench/memory/grammar_memory.py [--tokens 150000] [--json]
With --largest: what those grammars take that are just not refused.

Of a byte-level BPE tokenizer with random merges, in a process of its own; a few JSON schemas are
followed to their end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import pocketmoe  # noqa: F401  what a program has loaded before
from pocketmoe.errors import InputError
from pocketmoe.runtime.generation.grammar import Grammar, Matcher
from pocketmoe.runtime.generation.grammar_memory import GRAMMAR, bytes_kept, bytes_while_made
from pocketmoe.runtime.generation.vocabulary import Vocabulary
from pocketmoe.runtime.memory.host_memory import give_back_freed, process_memory

LONGEST = 12  # letters of a token
KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "texts to choose from": lambda n: {"enum": [f"{k * 7919:012x}" for k in range(n)]},
    "properties": lambda n: {"properties": {f"name{k}": {"type": "string"} for k in range(n)}},
    "properties with bounds": lambda n: {
        "properties": {f"n{k}": {"type": "integer", "maximum": 10 * k + 7} for k in range(n)}
    },
}


def random_tokenizer(tokens: int) -> Tokenizer:
    """Every token but the bytes is a merge of another one and a letter. The first is "!", which
    JSON does not need: it may stand for the end of a text."""
    random = np.random.default_rng(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # which come in any order
    words = {word: place for place, word in enumerate(letters)}
    names, merges = list(words), []
    while len(words) < tokens:
        word, letter = names[random.integers(len(names))], chr(97 + random.integers(26))
        if word + letter not in words and len(word) < LONGEST:
            words[word + letter] = len(words)
            names.append(word + letter)
            merges.append((word, letter))
    tokenizer = Tokenizer(models.BPE(words, merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def follow(vocabulary: Vocabulary, fields: int, seed: int) -> Matcher:
    """A random text that fits a schema of so many fields."""
    random = np.random.default_rng(seed)
    parts = {f"name{place}": {"type": "string", "maxLength": 20} for place in range(fields)}
    schema = {"type": "object", "properties": parts, "required": list(parts)}
    matcher = Matcher(Grammar.json_schema(schema), vocabulary)
    for _ in range(400):
        if matcher.complete:
            break
        matcher.add(int(random.choice(matcher.allowed())))
    return matcher


def largest(vocabulary: Vocabulary, schema: Callable[[int], dict[str, Any]]) -> tuple[int, int]:
    """How many parts of a kind a schema may have, and the bytes that the largest one takes."""
    least, most = 1, 100_000
    while most - least > max(1, least // 50):
        middle = (least + most) // 2
        try:
            Matcher(Grammar.json_schema(schema(middle)), vocabulary)
            least = middle
        except InputError:
            most = middle
    give_back_freed()
    before = process_memory("VmRSS")
    matcher = Matcher(Grammar.json_schema(schema(least)), vocabulary)
    taken = process_memory("VmRSS") - before
    del matcher
    return least, taken


def print_largest() -> None:
    """Of each kind, with a small vocabulary, which hardly counts."""
    vocabulary = Vocabulary(random_tokenizer(4096), 4096, (0,))
    follow(vocabulary, 8, 0)  # what the first takes is not counted
    for kind, schema in KINDS.items():
        parts, taken = largest(vocabulary, schema)
        print(f"{parts:8} {kind}: {taken / 2**20:.1f} MiB of {GRAMMAR / 2**20:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--largest", action="store_true", help="the largest grammars instead")
    args = parser.parse_args()
    if args.largest:
        print_largest()
        return
    tokenizer = random_tokenizer(args.tokens)
    give_back_freed()
    before = process_memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # the peak begins anew
    vocabulary = Vocabulary(tokenizer, args.tokens, (0,))
    made = process_memory("VmHWM") - before
    followed = [follow(vocabulary, fields, fields) for fields in (1, 8, 40)]
    kept = process_memory("VmRSS") - before
    planned = {
        "made": bytes_while_made(args.tokens),
        "kept": bytes_kept(args.tokens) + len(followed) * GRAMMAR,
    }
    if args.json:
        print(json.dumps({"made": made, "kept": kept, "planned": planned}))
        return
    print(f"{args.tokens} tokens, {len(followed)} grammars; MiB, and what a plan reckons")
    print(f"while it is made  {made / 2**20:6.1f}  {planned['made'] / 2**20:6.1f}")
    print(f"afterwards        {kept / 2**20:6.1f}  {planned['kept'] / 2**20:6.1f}")


if __name__ == "__main__":
    main()
