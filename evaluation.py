"""What `eval` measures. Imports no torch, unless there is a checkpoint to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .arguments import read_text
from .errors import InputError
from .progress import Progress, Silent
from .runtime.evaluate import Evaluation, evaluate
from .runtime.opening import open_bundle

_SILENT = Silent()
_WINDOW = 512  # tokens that share one context


def run_evaluation(
    bundle: Path,
    data: Path,
    against: Path | None = None,
    progress: Progress = _SILENT,
    *,
    memory_budget: int | str | None = None,
    active_experts: int | None = None,
    skip_cold: float = 0.0,
    device: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Scores the text in the file `data`; `against` is a checkpoint, which runs in float32. device:
    the arguments of open_bundle about GPUs.

    With skip_cold the text runs token by token, as in decoding: a whole chunk reads nearly every
    expert for one of its tokens, and would show no loss.

    Raises:
        InputError: the text is too short, or not UTF-8.
        BundleError: the bundle was compiled from another checkpoint.
    """
    text = read_text(data)
    with open_bundle(
        bundle, memory_budget=memory_budget, active_experts=active_experts, skip_cold=skip_cold,
        **(device or {}),
    ) as session:  # fmt: skip
        token_ids = session.encode(text)
        if len(token_ids) < 2:
            raise InputError(f"{data} holds {len(token_ids)} token; give a longer text")
        reference = None
        if against is not None:
            from .compiler.verify import check_same_model, reference_logits

            check_same_model(bundle, session.manifest, against)
            reference = reference_logits(against)
        window = min(session.context, _WINDOW)
        step = 1 if skip_cold else None
        return evaluate(session, token_ids, window, reference, progress, step)
