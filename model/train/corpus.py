"""The demo model's text: the sources of the Python standard library, and a tokenizer for them."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 0
HELD_OUT_SHARE = 20
# Tables of numbers and generated text, not programs.
LEFT_OUT = {"site-packages", "encodings", "pydoc_data", "__pycache__", "data", "cjkencodings"}


@dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order; a file is held out by the hash of its path, one in twenty."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    sha256: str


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def read_corpus(root: Path) -> Corpus:
    """Every UTF-8 `*.py` below root, in the order of their relative paths."""
    training: list[str] = []
    held_out: list[str] = []
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda item: item.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if LEFT_OUT & set(name.split("/")):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
        chosen = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        (training if chosen % HELD_OUT_SHARE else held_out).append(text)
    return Corpus(tuple(training), tuple(held_out), digest.hexdigest())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; id 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """One stream of ids, int32 `[N]`, each text ended by id 0."""
    return np.concatenate(
        [np.array([*part.ids, END_OF_TEXT_ID], np.int32) for part in _encode(tokenizer, texts)]
    )


def _encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Encoding]:
    texts = list(texts)
    for start in range(0, len(texts), 64):
        yield from tokenizer.encode_batch(texts[start : start + 64])
