"""Quality beside llama.cpp at its best, from one checkpoint and one calibration text.

bench/quality/quality.py --peer llama.cpp runs this. Both sides see the same calibration tokens in
the same windows, which is checked. llama.cpp makes Q4_0 and Q4_K_M with its own tools and an
importance matrix; pocketmoe compiles with GPTQ and with `--bits` such that the whole file is no
larger than Q4_K_M. Then both run the same held-out windows, and their logits are held against those
of the checkpoint in float32. llama.cpp keeps keys and values in float32 here too, as pocketmoe
does.

Bits per weight are those of the file: all bytes of weights and scales, embedding and head included,
over the number of parameters; of pages with what fills them up, and of both sides without tokenizer
and metadata.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from tokenizers import Tokenizer

from pocketmoe.analysis.evaluation.scores import Evaluation
from pocketmoe.bench.peers.llama_cpp_files import LlamaCpp
from pocketmoe.bench.peers.peer_model import peer_checkpoint
from pocketmoe.bench.quality.quality_reference import Yardstick, figure, read_tokens
from pocketmoe.bundle.manifest import EMBEDDING, Manifest
from pocketmoe.bundle.weight_index import weights_file
from pocketmoe.calibration.calibrate import calibrate
from pocketmoe.calibration.candidates import candidates_named
from pocketmoe.calibration.record import CalibrationRecord, is_record, read_record
from pocketmoe.compiler.calibrated.bits import plan_bits
from pocketmoe.compiler.calibrated.layers import Calibration
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import InputError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.parameters import count_parameters
from pocketmoe.model.train import corpus
from pocketmoe.targets import find_target

CPU = find_target("cpu")
SEQUENCE = 512  # tokens of a window of calibration
PRECISIONS = ("backbone=int8,head=int8",)
YARDSTICK = "llama.cpp Q4_K_M + imatrix"  # whose size and KL are those to be held against
_PIECE = 2048  # characters of the training text that lie together
_SPARE = SEQUENCE // 2  # tokens more than are used, so that a few less do no harm


@dataclass(frozen=True)
class Settings:
    """precisions: of backbone and head, a row for each. block: of what is int8 or int4 there."""

    llama: LlamaCpp
    cache: Path
    tokens: int
    window: int
    calibration_tokens: int
    precisions: tuple[str, ...]
    block: int


@dataclass(frozen=True)
class Row:
    """bits: per weight of the file."""

    name: str
    bits: float
    result: Evaluation


def calibration_text(texts: Sequence[str], tokenizer: Tokenizer, tokens: int) -> str:
    """A text of about that many tokens, and hardly more: pieces from evenly spread places."""
    whole = "\n".join(texts)
    count = max(1, tokens * 6 // _PIECE)
    pieces = []
    for start in np.linspace(0, max(0, len(whole) - 2 * _PIECE), count).astype(int).tolist():
        line = whole.find("\n", start) + 1
        pieces.append(whole[line : whole.find("\n", line + _PIECE) + 1])
    text = "".join(pieces)
    encoding = tokenizer.encode(text)
    last = tokens + _SPARE
    return text[: encoding.offsets[last][0]] if last < len(encoding.ids) else text


def make_record(settings: Settings, checkpoint: Path, text: Path) -> Path:
    """Calibrates, once."""
    record = settings.cache / f"calibration-{settings.calibration_tokens}"
    if not is_record(record):
        tokenizer = Tokenizer.from_file(str(Checkpoint(checkpoint).tokenizer_path))
        training = corpus.read_corpus(corpus.standard_library()).training
        count = settings.calibration_tokens
        text.write_text(calibration_text(training, tokenizer, count), encoding="utf-8")
        calibrate(checkpoint, text, record, tokens=count, seq_len=SEQUENCE, resume=record.exists())
    return record


def check_tokens(ours: CalibrationRecord, theirs: np.ndarray) -> None:
    """Raises InputError where llama.cpp does not see the same tokens in the same windows."""
    ids = ours.ids.ravel()
    same = len(theirs) // SEQUENCE * SEQUENCE == len(ids) and (theirs[: len(ids)] == ids).all()
    if not same:
        raise InputError(
            f"llama.cpp makes other tokens of the calibration text ({len(theirs)}, here "
            f"{len(ids)}); remove the calibration record in --cache, or see its tokenizer"
        )


def weight_bits(manifest: Manifest) -> float:
    """Per weight, of pages, embedding and segments."""
    nbytes = manifest.expert_bytes + manifest.files[EMBEDDING].size
    nbytes += sum(manifest.files[weights_file(segment)].size for segment in manifest.segments)
    return 8 * nbytes / count_parameters(manifest.spec).total


def bits_that_fit(record: CalibrationRecord, path: Path, manifest: Manifest, most: float) -> float:
    """What `--bits` may be, in hundredths, so that the file has at most `most` per weight; the
    least that there is where nothing fits.

    manifest: of a bundle with the same backbone.
    """
    counted = count_parameters(manifest.spec)
    pages = (most - weight_bits(manifest)) * counted.total / 8 + manifest.expert_bytes
    possible = [item.bits for item in candidates_named(record.candidates)]
    first = min(8 * pages / counted.experts, max(possible))
    for hundredths in range(int(100 * first), int(100 * min(possible)), -1):
        bits = hundredths / 100
        plan = plan_bits(record, manifest.spec, CPU, bits, path)
        if sum(item.nbytes for layer in plan.formats.values() for item in layer) <= pages:
            return bits
    return min(possible)


def llama_rows(settings: Settings, checkpoint: Path, yardstick: Yardstick) -> list[Row]:
    """The checkpoint as F32, which shows that the file is the same model; Q4_0 and Q4_K_M; and
    what Q4_K_M would be with the attention in as many bits as pocketmoe gives it."""
    llama, cache = settings.llama, settings.cache
    plain, importance = cache / "f32.gguf", cache / f"imatrix-{settings.calibration_tokens}.gguf"
    text = cache / f"calibration-{settings.calibration_tokens}.txt"
    record = make_record(settings, checkpoint, text)
    llama.write_f32(checkpoint, plain)
    rows = []
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        check_tokens(read_record(record), llama.tokenize(plain, text, folder))
        if not importance.is_file():
            made = folder / importance.name
            llama.write_importance(plain, text, SEQUENCE, made)
            made.rename(importance)
        for label, kind, matrix, overrides in (
            ("llama.cpp F32", None, None, ()),
            ("llama.cpp Q4_0 + imatrix", "Q4_0", importance, ()),
            ("llama.cpp Q4_K_M", "Q4_K_M", None, ()),
            (YARDSTICK, "Q4_K_M", importance, ()),
            (f"{YARDSTICK}, attention in Q8_0", "Q4_K_M", importance, ("attn=q8_0",)),
        ):
            file = plain
            if kind is not None:
                file = folder / f"{kind}.gguf"
                llama.quantize(plain, kind, file, matrix, overrides)
            found = llama.logits(file, yardstick.windows, folder)
            result = yardstick.score(lambda window, found=found: found.logits[window])
            rows.append(Row(label, found.bits, result))
    return rows


def own_rows(settings: Settings, checkpoint: Path, yardstick: Yardstick, most: float) -> list[Row]:
    """For each precision of the backbone: experts rounded in blocks of 64, and with GPTQ and the
    `--bits` that fit."""
    path = settings.cache / f"calibration-{settings.calibration_tokens}"
    calibration = Calibration(path, read_record(path), "gptq", signed=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=settings.cache) as name:
        bundle = Path(name) / "bundle"
        for text in settings.precisions:
            precision = parse_precision(["experts=int4", text], settings.block, CPU)
            bits = None
            for made in (None, calibration):
                manifest = compile_bundle(
                    checkpoint, bundle, target=CPU, precision=precision, calibration=made,
                    bits=bits, force=True,
                )  # fmt: skip
                label = f"pocketmoe, rounded, {text}"
                if made is not None:
                    label = f"pocketmoe, gptq, --bits {bits:g}, {text}"
                result = yardstick.measure(bundle)
                rows.append(Row(label, weight_bits(manifest), result))
                if made is None:
                    bits = bits_that_fit(calibration.record, path, manifest, most)
    return rows


def print_peer_table(settings: Settings) -> None:
    """Raises InputError where llama.cpp is missing, or is another model than it should be."""
    settings.llama.check()
    checkpoint = peer_checkpoint(settings.cache)
    token_ids = read_tokens(Checkpoint(checkpoint), None, settings.tokens)
    with tempfile.TemporaryDirectory() as folder:
        yardstick = Yardstick(checkpoint, token_ids, settings.window, Path(folder))
        rows = llama_rows(settings, checkpoint, yardstick)
        peer = next(row for row in rows if row.name == YARDSTICK)
        rows += own_rows(settings, checkpoint, yardstick, peer.bits)
    click.echo(table(rows, peer))


def table(rows: Sequence[Row], peer: Row) -> str:
    """Markdown; KLs beside the peer's."""
    first = rows[0].result
    lines = [
        f"{first.tokens} tokens in windows of {first.window}; the checkpoint in float32 has "
        f"perplexity {first.reference_perplexity:.3f}. In brackets: 95 % intervals.",
        "",
        f"| Model | bits | Perplexity | Change | KL, mean | of {peer.name} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        result = row.result
        cells = (
            row.name,
            f"{row.bits:.3f}",
            f"{result.perplexity:.3f}",
            figure(result, "perplexity_ratio", lambda value: f"{value - 1:+.2%}"),
            figure(result, "kl_mean", lambda value: f"{value:.2e}"),
            f"{float(result.kl_mean or 0) / float(peer.result.kl_mean or 1):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
