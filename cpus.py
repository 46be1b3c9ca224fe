"""The CPUs that this process may use."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """As many as the process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0))
