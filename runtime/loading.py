"""The request to load a bundle, and what comes of it: the same for CPUs and GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..bundle.manifest import Manifest
from .expert_choice import ExpertChoice
from .memory.budget import MemoryPlan
from .options import OpenOptions
from .recording.files import Recording
from .runner import Runner


@dataclass(frozen=True)
class LoadRequest:
    """A bundle, read and checked, and how it is to be opened. reason: why this engine loads it."""

    root: Path
    manifest: Manifest
    options: OpenOptions
    choice: ExpertChoice
    recording: Recording
    reason: str = ""


@dataclass(frozen=True, eq=False)
class LoadedRunner:
    """plan: where the host's memory goes. context: tokens that the first session sees; longest:
    that any can see."""

    runner: Runner
    plan: MemoryPlan
    context: int
    longest: int
    threads: int
