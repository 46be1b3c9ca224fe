"""TensorRT's log.

It takes one logger per process, the first that it is given: every builder and runtime of a module
shares this one.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any

_log = logging.getLogger(__name__)


class LibraryLog:
    """logger: what TensorRT's constructors take. errors: what it has said since the last clear,
    oldest first. All of it goes to Python's logging too; what is an error here becomes an
    exception there, so it is not shown twice."""

    def __init__(self, module: ModuleType):
        self.errors: list[str] = []
        self.logger = _make_logger(module, self.errors)

    @property
    def last(self) -> str:
        """The latest of them, in one line; empty where there is none."""
        return " ".join(self.errors[-1].split()) if self.errors else ""

    def clear(self) -> None:
        self.errors.clear()


@cache
def library_log(module: ModuleType) -> LibraryLog:
    return LibraryLog(module)


def _make_logger(module: ModuleType, errors: list[str]) -> Any:
    severity = module.ILogger.Severity

    class Logger(module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: Any, text: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                errors.append(text)
                _log.info("%s", text)
            elif level == severity.WARNING:
                _log.info("%s", text)
            elif level == severity.INFO:
                _log.debug("%s", text)

    return Logger()
