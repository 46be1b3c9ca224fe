"""For which devices an app is exported: what pip and the markers of packages call them."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass

from ..errors import InputError

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_FORM = re.compile(r"linux-([a-z0-9_]+)-py(3)(\d{1,2})")
_OLDEST_PYTHON = (3, 10)
# Debian 12, Ubuntu 22.04 (so JetPack 6) and RHEL 9 have this or newer.
_USUAL_GLIBC = (2, 34)
_OLDEST_GLIBC = (2, 17)
# Names that older wheels have for versions of glibc.
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class Platform:
    """machine: "x86_64" or "aarch64". python: (3, 11). glibc: the oldest that it may have."""

    machine: str
    python: tuple[int, int]
    glibc: tuple[int, int]

    def __str__(self) -> str:
        return f"linux-{self.machine}-py{self.python[0]}{self.python[1]}"

    @property
    def python_text(self) -> str:
        return ".".join(map(str, self.python))

    @property
    def glibc_text(self) -> str:
        return ".".join(map(str, self.glibc))

    def tags(self) -> list[str]:
        """pip's names of the platforms whose wheels it runs, the best first."""
        found = []
        for minor in range(self.glibc[1], 4, -1):
            if minor >= _OLDEST_GLIBC[1] or self.machine == "x86_64":
                found.append(f"manylinux_2_{minor}_{self.machine}")
                if minor in _LEGACY:
                    found.append(f"{_LEGACY[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    def markers(self) -> dict[str, str]:
        """What the markers of requirements (`python_version < "3.11"`) are about."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_text}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python_text}.0",
            "python_version": self.python_text,
            "sys_platform": "linux",
        }


def this_machine() -> str:
    machine = platform.machine().lower()
    return MACHINES.get(machine, machine)


def this_glibc() -> tuple[int, int] | None:
    """None with another C library."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        return None
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", text)
    return None if match is None else (int(match[1]), int(match[2]))


def find_platform(name: str | None, glibc: str | None) -> Platform:
    """name: such as "linux-aarch64-py310"; None for this machine and this Python. glibc: "2.31".

    Raises:
        InputError: there are no wheels for it, or it is none.
    """
    if name is None:
        machine, python = this_machine(), (sys.version_info[0], sys.version_info[1])
        libc = this_glibc() or _USUAL_GLIBC
        if sys.platform != "linux" or machine not in MACHINES:
            raise InputError("apps are for Linux on x86_64 or aarch64; say which with --for")
    else:
        match = _FORM.fullmatch(name.lower())
        if match is None or match[1] not in MACHINES:
            raise InputError(
                f"--for {name!r} is not of the form linux-x86_64-py311 or linux-aarch64-py310"
            )
        machine, python, libc = MACHINES[match[1]], (int(match[2]), int(match[3])), _USUAL_GLIBC
        if python < _OLDEST_PYTHON:
            raise InputError(f"--for {name}: Python 3.10 is the oldest that the runtime works with")
    if glibc is not None:
        libc = _read_glibc(glibc)
    return Platform(machine, python, libc)


def _read_glibc(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"2\.(\d{1,2})", text)
    if match is None or int(match[1]) < _OLDEST_GLIBC[1]:
        raise InputError(f"--glibc {text!r} is not a version such as 2.31, from 2.17 on")
    return 2, int(match[1])
