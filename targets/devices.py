"""The devices that a model can be compiled for. A new one is an entry in one of these files."""

from __future__ import annotations

from .cpus import CPU, CPUS
from .geforce import GEFORCE
from .jetson import JETSON
from .servers import SERVERS
from .target import Precision, Target

__all__ = ["CPU", "TARGETS", "Precision", "Target"]

TARGETS: tuple[Target, ...] = (*CPUS, *JETSON, *GEFORCE, *SERVERS)
