"""What a device is: a table of them, and how to find one by name."""

from .devices import TARGETS, Precision, Target, find_target

__all__ = ["TARGETS", "Precision", "Target", "find_target"]
