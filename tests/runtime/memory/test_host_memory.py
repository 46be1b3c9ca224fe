"""What "auto" takes as a budget, on trees of files such as Linux shows."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from pocketmoe.errors import InputError
from pocketmoe.runtime.memory.budget import read_budget
from pocketmoe.runtime.memory.host_memory import read_host_memory

GIB, MIB = 1 << 30, 1 << 20
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def machine(root: Path, *, available: int = 8 * GIB, own: int = 100 * MIB) -> Path:
    return write(
        root,
        {
            "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB",
            "proc/self/status": f"Name:\tx\nRssAnon:\t{own // 1024} kB\nRssFile:\t9 kB",
        },
    )


def v2(folder: str, limit: object, used: int, cached: int = 0) -> dict[str, object]:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cached // 2}\nactive_file {cached // 2}",
    }


def v1(folder: str, limit: object, used: int, cached: int = 0) -> dict[str, object]:
    stat = f"cache 5\ninactive_file 7\ntotal_inactive_file {cached}\ntotal_active_file 0"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": stat,
        f"{folder}/memory.use_hierarchy": 1,
    }


def test_without_a_limit_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    """What the process holds itself is within its budget."""
    memory = read_host_memory(machine(tmp_path))
    assert memory.free == 8 * GIB + 100 * MIB
    assert memory.budget == memory.free - memory.free // 20
    assert "available" in memory.source


def test_a_little_stays_free_however_little_there_is(tmp_path: Path) -> None:
    memory = read_host_memory(machine(tmp_path, available=100 * MIB, own=20 * MIB))
    assert memory.budget == 104 * MIB
    memory = read_host_memory(machine(tmp_path, available=1 * MIB, own=1 * MIB))
    assert memory.budget == 1


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_cgroup_less_what_others_use(tmp_path: Path, version: int) -> None:
    """4 GiB, of which 1 GiB is ours and others', and 600 MiB files that the kernel can drop."""
    machine(tmp_path, own=100 * MIB)
    make = {1: v1, 2: v2}[version]
    mount = {1: "sys/fs/cgroup/memory", 2: "sys/fs/cgroup"}[version]
    line = {1: "4:memory:/app", 2: "0::/app"}[version]
    mountinfo = {1: V1, 2: V2}[version]
    write(tmp_path, {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": f"9:cpu:/z\n{line}"})
    write(tmp_path, make(f"{mount}/app", 4 * GIB, 1 * GIB, 600 * MIB))
    memory = read_host_memory(tmp_path)
    assert memory.free == 4 * GIB - (1 * GIB - 600 * MIB - 100 * MIB)
    assert memory.source == "the limit of 4.0 GiB of the cgroup /app"


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_the_ancestors_counts(tmp_path: Path, version: int) -> None:
    machine(tmp_path)
    make = {1: v1, 2: v2}[version]
    mount = {1: "sys/fs/cgroup/memory", 2: "sys/fs/cgroup"}[version]
    line = {1: "4:pids,memory:/a/b/c", 2: "0::/a/b/c"}[version]
    none = {1: 9223372036854771712, 2: "max"}[version]
    write(tmp_path, {"proc/self/mountinfo": {1: V1, 2: V2}[version], "proc/self/cgroup": line})
    write(tmp_path, make(f"{mount}/a/b/c", none, 200 * MIB))
    write(tmp_path, make(f"{mount}/a/b", 3 * GIB, 2 * GIB))  # neighbours use most of it
    write(tmp_path, make(f"{mount}/a", 2 * GIB, 2 * GIB, 1 * GIB))
    write(tmp_path, make(mount, none, 20 * GIB))
    memory = read_host_memory(tmp_path)
    assert memory.free == 1 * GIB + 100 * MIB
    assert "cgroup /a" in memory.source


def test_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    """Above it the kernel slows the process down."""
    machine(tmp_path)
    write(tmp_path, {"proc/self/mountinfo": V2, "proc/self/cgroup": "0::/x"})
    write(tmp_path, {**v2("sys/fs/cgroup/x", "max", 0), "sys/fs/cgroup/x/memory.high": GIB})
    assert read_host_memory(tmp_path).free == GIB


def test_a_version_1_hierarchy_that_does_not_count(tmp_path: Path) -> None:
    machine(tmp_path)
    write(tmp_path, {"proc/self/mountinfo": V1, "proc/self/cgroup": "4:memory:/a/b"})
    write(tmp_path, v1("sys/fs/cgroup/memory/a/b", 4 * GIB, 0))
    write(tmp_path, v1("sys/fs/cgroup/memory/a", 1 * GIB, 0))
    write(tmp_path, {"sys/fs/cgroup/memory/a/memory.use_hierarchy": 0})
    assert read_host_memory(tmp_path).free == 4 * GIB


@pytest.mark.parametrize(
    ("top", "path"),
    [("/docker/abc", "/docker/abc"), ("/docker/abc", "/"), ("/", "/../.."), ("/", "/gone")],
)
def test_a_container_sees_its_own_part_of_the_tree(tmp_path: Path, top: str, path: str) -> None:
    machine(tmp_path)
    mountinfo = V2.replace("0:38 / ", f"0:38 {top} ")
    write(tmp_path, {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": f"0::{path}"})
    write(tmp_path, v2("sys/fs/cgroup", 2 * GIB, 0))
    memory = read_host_memory(tmp_path)
    assert memory.free == 2 * GIB
    assert memory.source.endswith("cgroup /")


def test_blanks_in_the_mount_point(tmp_path: Path) -> None:
    machine(tmp_path)
    mountinfo = V2.replace("/sys/fs/cgroup", "/my\\040groups")
    write(tmp_path, {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": "0::/"})
    write(tmp_path, v2("my groups", 2 * GIB, 0))
    assert read_host_memory(tmp_path).free == 2 * GIB


@pytest.mark.parametrize("text", ["", "x", "1 2 3 - cgroup2", "- - -\n\n - \n", "0::", "\xff\x00"])
def test_files_of_another_make_are_no_limits(tmp_path: Path, text: str) -> None:
    machine(tmp_path)
    write(tmp_path, {"proc/self/mountinfo": text, "proc/self/cgroup": "1:a:/b"})
    assert read_host_memory(tmp_path).free == 8 * GIB + 100 * MIB


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a size"):
        read_host_memory(tmp_path)


def test_the_budget_of_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pocketmoe"):
        budget = read_budget("auto")
    assert budget is not None
    text = Path("/proc/meminfo").read_text()
    match = re.search(r"MemTotal:\s*(\d+)", text)
    assert match
    assert 0 < budget < int(match[1]) * 1024
    assert [record.message.startswith("memory budget ") for record in caplog.records] == [True]
