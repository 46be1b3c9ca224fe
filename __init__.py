"""Compile a Mixture-of-Experts language model for a device too small for it, and run it there."""

from importlib.metadata import version

__version__ = version("pocketmoe")
