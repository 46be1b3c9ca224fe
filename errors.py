"""The errors a user can cause.

Each message is one line: what is wrong, where, what to do. The command line prints it and exits
with 2; whoever uses the library catches `PocketMoEError`.
"""

from __future__ import annotations

import sys
from pathlib import Path


class PocketMoEError(Exception):
    """Anything that a user can put right; every error below is one."""


class InputError(PocketMoEError):
    """An argument, or a file given as one, is wrong."""


class CheckpointError(PocketMoEError):
    """A checkpoint is missing, damaged, or does not hold what its config says."""


class ConfigError(PocketMoEError):
    """A model's config holds a value that its family cannot express."""


class BundleError(PocketMoEError):
    """A bundle is missing a file, damaged, or of a version that this release does not read."""


class BudgetError(PocketMoEError):
    """The memory budget is too small for the bundle."""


class ContextError(PocketMoEError):
    """The prompt, or prompt and output together, are longer than the context."""


class TargetError(PocketMoEError):
    """The target does not exist, or does not do what was asked of it."""


class EngineError(PocketMoEError):
    """An engine cannot be built or run here: a library, a driver, a GPU or a graph stands in the
    way."""


class ExportError(PocketMoEError):
    """An app cannot be exported: wheels are not to be had, or would not run on the device."""


def how_to_add(extra: str) -> str:
    """What to do where one of pocketmoe's extras is missing: a command; in an exported app, which
    has neither pip nor a network, another export."""
    if (Path(sys.prefix).parent / "install.pyz").is_file():
        return f"export the app again, with --extra {extra} besides"
    return f"pip install 'pocketmoe[{extra}]'"
