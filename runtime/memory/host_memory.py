"""The memory that this machine has free for the process: what `--memory-budget auto` takes.

Two things bound it: MemAvailable of the whole machine, and the limits of the memory cgroups that
the process is in, version 1 or 2, each less what others in that cgroup use. Cached files do not
count as used: the kernel drops them before it kills anyone. What the process itself holds is part
of its budget.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...sizes import format_size

_log = logging.getLogger(__name__)
_MARGIN_SHARE = 20  # a twentieth stays free: page tables, sockets, what others come to need
_LEAST_MARGIN = 16 << 20
_NO_LIMIT = 2**62  # version 1 writes "no limit" as the largest whole page below 2^63
_CACHED = ("inactive_file", "active_file")


@dataclass(frozen=True)
class HostMemory:
    """free: bytes that the process may hold in all. budget: free less a margin. source: the
    tightest of the bounds, in words."""

    budget: int
    free: int
    source: str


@dataclass(frozen=True)
class _Files:
    """Names of one cgroup version. `limits`: the smallest of them counts; prefix: of memory.stat's
    fields that count the cgroups below too."""

    limits: tuple[str, ...]
    usage: str
    prefix: str


_V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")
_V2 = _Files(("memory.max", "memory.high"), "memory.current", "")


def read_host_memory(root: Path = Path("/")) -> HostMemory:
    """root: where /proc is, for tests.

    Raises:
        InputError: the system does not say how much is free.
    """
    own = _kilobytes(root / "proc/self/status", "RssAnon") or 0
    bounds = []
    available = available_memory(root)
    if available is not None:
        bounds.append((available + own, "what the machine has available"))
    bounds += [
        (limit - max(0, used - own), f"the limit of {format_size(limit)} of the cgroup {name}")
        for name, limit, used in _limits(root)
    ]
    if not bounds:
        raise InputError("the system does not say how much memory is free; give a size as budget")
    free, source = min(bounds)
    free = max(0, free)
    budget = max(1, free - max(_LEAST_MARGIN, free // _MARGIN_SHARE))
    _log.info("memory budget %s: of %s, from %s", format_size(budget), format_size(free), source)
    return HostMemory(budget, free, source)


def give_back_freed() -> None:
    """Has the C library return the memory that nothing uses to the system, where it can (glibc):
    it keeps much of what was freed, and would count it against the next budget."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_memory(root: Path = Path("/")) -> int | None:
    """What the machine has available, in bytes, cached files not counted as used; None where it
    does not say."""
    return _kilobytes(root / "proc/meminfo", "MemAvailable")


def _kilobytes(path: Path, name: str) -> int | None:
    """A field of a /proc file, in bytes; None where there is none."""
    match = re.search(rf"^{name}:\s*(\d+) kB$", _text(path), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _text(path: Path) -> str:
    """Empty where the file is missing or not for us to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _limits(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name, limit and bytes in use, cached files left out, of each cgroup with a limit."""
    for files, mount, group in _memory_mounts(root):
        folder = group
        while folder == mount or mount in folder.parents:
            limit = _limit(folder, files)
            used = _number(folder / files.usage)
            if limit is not None and used is not None:
                name = "/" if folder == mount else f"/{folder.relative_to(mount).as_posix()}"
                yield name, limit, used - _cached(folder, files)
            if folder == mount or _text(folder.parent / "memory.use_hierarchy").strip() == "0":
                break  # in version 1, the limits above may not count for those below
            folder = folder.parent


def _limit(folder: Path, files: _Files) -> int | None:
    numbers = [_number(folder / name) for name in files.limits]
    limits = [number for number in numbers if number is not None and number < _NO_LIMIT]
    return min(limits, default=None)


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or a word such as "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _cached(folder: Path, files: _Files) -> int:
    counts = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if line)
    names = [files.prefix + name for name in _CACHED]
    return sum(int(counts[name]) for name in names if counts.get(name, "").strip().isdecimal())


def _memory_mounts(root: Path) -> Iterator[tuple[_Files, Path, Path]]:
    """For each version: where its memory cgroups are mounted, and the folder of this process."""
    own = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, separator, source = line.partition(" - ")
        fields, kind = mount.split(), source.split()
        if not separator or len(fields) < 5 or not kind:
            continue
        if kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            files, paths = _V1, [item[2] for item in own if "memory" in item[1].split(",")]
        elif kind[0] == "cgroup2":
            files, paths = _V2, [item[2] for item in own if item[:2] == ["0", ""]]
        else:
            continue
        folder = root / _unescaped(fields[4]).lstrip("/")
        # In a container the mount may show a part of the tree alone, and the path be outside.
        top, path = _unescaped(fields[3]), paths[0] if paths else "/"
        inside = path == top or path.startswith(top.rstrip("/") + "/")
        below = path[len(top.rstrip("/")) :].strip("/") if inside else ""
        group = folder / below if ".." not in below.split("/") else folder
        yield files, folder, group if group.is_dir() else folder


def _unescaped(path: str) -> str:
    """A path of mountinfo, which writes blanks as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def process_memory(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS, VmHWM (its peak), RssAnon; 0 if unknown."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == field:
                    return int(value.split()[0]) * 1024
    except OSError:
        pass
    return 0
