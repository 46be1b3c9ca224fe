"""What a device is: a table of them, those that were measured, and how to find one by name."""

from .devices import TARGETS, Precision, Target
from .find import all_targets, find_target
from .measured import LOCAL, check_name, check_writable, measured_target, write_target

__all__ = [
    "LOCAL", "TARGETS", "Precision", "Target", "all_targets", "check_name", "check_writable",
    "find_target", "measured_target", "write_target",
]  # fmt: skip
