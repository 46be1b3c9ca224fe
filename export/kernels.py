"""The native library that goes into an app: what it was compiled for, by its ELF header."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ExportError, InputError
from ..runtime.native.library import library_path
from .platforms import Platform, this_machine

_MACHINES = {62: "x86_64", 183: "aarch64"}
_NEEDS = re.compile(rb"GLIBC_2\.(\d{1,2})(?![\d.])")


def find_kernels(given: Path | None, platform: Platform) -> Path | None:
    """The library for a platform: the one that was given, or this machine's own; None for neither.

    Raises:
        InputError: the file that was given is none for that platform.
        ExportError: this machine's needs a newer glibc than the device may have.
    """
    if given is None:
        own = library_path()
        if own is None or this_machine() != platform.machine:
            return None
        if newer := _newer_glibc(own.read_bytes(), platform):
            raise ExportError(
                f"the native kernels were compiled here for glibc {newer} or newer, and the device "
                f"may have {platform.glibc_text}; name others with --kernels, or raise --glibc"
            )
        return own
    data = given.read_bytes()
    machine = _MACHINES.get(int.from_bytes(data[18:20], "little"))
    if data[:6] != b"\x7fELF\x02\x01" or machine is None or b"pm_run_steps" not in data:
        raise InputError(f"--kernels {given} is no library of pocketmoe's native kernels")
    if machine != platform.machine:
        raise InputError(f"--kernels {given} is for {machine}, and the app for {platform}")
    if newer := _newer_glibc(data, platform):
        raise InputError(
            f"--kernels {given} needs glibc {newer} or newer; raise --glibc from "
            f"{platform.glibc_text}, or compile it on an older system"
        )
    return given


def _newer_glibc(library: bytes, platform: Platform) -> str | None:
    """The glibc that a library needs, if the platform's may be older."""
    newest = max((int(minor) for minor in _NEEDS.findall(library)), default=0)
    return f"2.{newest}" if (2, newest) > platform.glibc else None
