"""The measurements of `eval`. Imports no torch, unless there is a checkpoint to compare with."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ...bundle.manifest import read_manifest
from ...errors import InputError
from ...progress import Progress, Silent
from ...runtime.memory.budget import AUTO, read_budget
from ...runtime.opening import open_with
from ...runtime.options import OpenOptions
from ...runtime.session import Session
from ...text_input import read_text
from .scores import Evaluation, evaluate
from .windows import Windows, cut_windows

_SILENT = Silent()
_OPENING = OpenOptions()
_WINDOW = 512  # tokens that share one context


def run_evaluation(
    bundle: Path,
    data: Path,
    against: Path | None = None,
    progress: Progress = _SILENT,
    *,
    tokens: int | None = None,
    seed: int = 0,
    work: Path | None = None,
    opening: OpenOptions = _OPENING,
) -> Evaluation:
    """Scores the text in the file `data`, or about `tokens` of it. against: a checkpoint, which
    runs in float32, layer by layer; work: where its hidden states go if they are too many for
    memory. What it takes is not in the memory budget, unless that is "auto".
    opening: how the bundle is opened, but for its context, which is a window's.

    With skip_cold the text runs token by token, as in decoding: a whole chunk reads nearly every
    expert for one of its tokens, and would show no loss.

    Raises:
        InputError: the text is too short, or not UTF-8, or `work` has no room.
        BundleError: the bundle was compiled from another checkpoint, or has another tokenizer, or
            its numbers are not finite.
        CheckpointError: the checkpoint cannot be read, or its numbers are not finite.
    """
    text = read_text(data)
    # Opened first, so that what is wrong with it is said before the checkpoint runs for long. Until
    # the bundle runs, it has no pages in memory.
    with open_with(bundle, replace(opening, context=_context(bundle))) as session:
        token_ids = session.encode(text)
        if len(token_ids) < 2:
            raise InputError(f"{data} holds {len(token_ids)} token; give a longer text")
        windows = cut_windows(token_ids, min(session.context, _WINDOW), tokens, seed)
        _check_ids(bundle, session, windows)
        step = 1 if opening.skip_cold else None
        if against is None:
            return evaluate(session, windows, progress=progress, step=step, seed=seed)
        return _compare(
            session, bundle, against, windows, progress, work, step=step, seed=seed,
            auto=opening.memory_budget == AUTO,
        )  # fmt: skip


def _compare(
    session: Session,
    bundle: Path,
    against: Path,
    windows: Windows,
    progress: Progress,
    work: Path | None,
    *,
    step: int | None,
    seed: int,
    auto: bool,
) -> Evaluation:
    from ...model.checkpoint.checkpoint import Checkpoint
    from .deviation import Deviations
    from .reference import reference_bytes, run_reference
    from .verify import check_same_model, check_same_tokenizer

    spec = check_same_model(bundle, session.manifest, against)
    check_same_tokenizer(bundle, session.manifest, against)
    if auto:
        free = read_budget(AUTO) or 0
        session.set_memory_budget(max(1, free - reference_bytes(spec, windows)))
    if work is not None and not work.is_dir():
        raise InputError(f"{work} is not a directory; give --work one")
    with tempfile.TemporaryDirectory(prefix="pocketmoe-", dir=work) as folder:
        reference = run_reference(Checkpoint(against), windows, Path(folder), progress, seed)
        deviations = Deviations(session.manifest, reference.layers, windows)
        return evaluate(
            session, windows, reference.logits, deviations, progress, step=step, seed=seed
        )


def _context(bundle: Path) -> int | None:
    """A window, so that keys and values take no more memory than they need; None, what the session
    chooses, where the bundle's graphs for GPUs are made for less."""
    manifest = read_manifest(bundle)
    context = min(_WINDOW, manifest.spec.max_context)
    fits = manifest.graphs is None or context <= manifest.graphs.context
    return context if fits else None


def _check_ids(bundle: Path, session: Session, windows: Windows) -> None:
    largest, known = int(windows.ids.max()), session.manifest.spec.vocab_size
    if largest >= known:
        raise InputError(
            f"the tokenizer of {bundle} makes ids up to {largest}, and the model knows {known}; it "
            "belongs to another model"
        )
