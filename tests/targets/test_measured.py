"""The user's file of measured targets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pocketmoe.errors import TargetError
from pocketmoe.targets import (
    TARGETS,
    Target,
    all_targets,
    check_writable,
    find_target,
    measured_target,
    write_target,
)

FIGURES = {"memory_bytes": 8 << 30, "memory_bandwidth": 2e10, "storage_bandwidth": 1.5e9}
SOURCES = {"memory_bandwidth": "measured", "storage_bandwidth": "measured"}
NAMED = {"name": "local", "description": "d", "sources": {}}


def target(name: str = "local", **figures: float) -> Target:
    return measured_target(name, "this machine", {**FIGURES, **figures}, SOURCES)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a/b/targets.json"
    assert all_targets(path) == TARGETS
    write_target(path, target())
    write_target(path, target("box", memory_bandwidth=3e10))
    write_target(path, target(memory_bandwidth=4e10))
    box, local = all_targets(path)[len(TARGETS) :]
    assert (box.name, local.name) == ("box", "local")
    assert (box.memory_bandwidth, local.memory_bandwidth) == (3e10, 4e10)
    assert local == find_target("local", path) == target(memory_bandwidth=4e10)
    assert local.sources["memory_bandwidth"] == "measured"
    assert local.memory_bytes == 8 << 30
    assert [file.name for file in path.parent.iterdir()] == ["targets.json"]


def test_it_is_compiled_for_like_the_cpu() -> None:
    cpu = find_target("cpu")
    local = target()
    assert (local.kind, local.precisions, local.toolchain) == (
        cpu.kind, cpu.precisions, cpu.toolchain,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cpu", "", "Local", "a b", "-x", "../x", "x" * 65, "a\n"])
def test_names_that_it_cannot_have(name: str) -> None:
    with pytest.raises(TargetError) as refusal:
        target(name)
    assert "\n" not in str(refusal.value)


def test_a_name_that_the_table_has_taken_since(tmp_path: Path) -> None:
    """A file of before is no damaged one: its other targets are there, and nothing is lost."""
    path = tmp_path / "targets.json"
    items = [{**NAMED, **FIGURES, "name": name} for name in ("rtx-4090", "local")]
    path.write_text(json.dumps({"format": "pocketmoe targets", "version": 1, "targets": items}))
    assert [found.name for found in all_targets(path)[len(TARGETS) :]] == ["local"]
    assert find_target("rtx-4090", path).kind == "gpu"
    write_target(path, target(memory_bandwidth=4e10))
    names = [item["name"] for item in json.loads(path.read_text())["targets"]]
    assert names == ["local", "rtx-4090"]
    with pytest.raises(TargetError, match="built in"):
        target("rtx-4090")


def test_local_before_it_is_measured(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="targets --measure"):
        find_target("local", tmp_path / "none.json")


def test_a_near_miss_of_a_measured_one(tmp_path: Path) -> None:
    write_target(tmp_path / "targets.json", target("workstation"))
    with pytest.raises(TargetError, match=r"did you mean workstation\?"):
        find_target("workstatoin", tmp_path / "targets.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a file of measured targets"),
        ("[1", "not a file of measured targets"),
        ("[]", "does not say"),
        ("{}", "does not say"),
        ("[" * 100_000, "not a file of measured targets"),
        ('{"format": "pocketmoe targets"}', "has version None"),
        ('{"format": "pocketmoe targets", "version": 2}', "update pocketmoe"),
        ('{"format": "pocketmoe targets", "version": 1}', "no list"),
        ([1], "not an object"),
        ([{}], "keys: name"),
        ([{**NAMED, "cores": 4}], "keys: cores"),
        ([{**NAMED, "name": "cpu"}], "built in"),
        ([{**NAMED, "sources": {"a": 1}}], "no sources"),
        ([NAMED, NAMED], "twice"),
        ([{**NAMED, "memory_bandwidth": "fast"}], "not a number above 0"),
        ([{**NAMED, "memory_bandwidth": 0}], "not a number above 0"),
        ([{**NAMED, "storage_bandwidth": True}], "not a number above 0"),
        ([{**NAMED, "storage_bandwidth": float("inf")}], "not a number above 0"),
        ([{**NAMED, "layer_seconds": float("nan")}], "not a number above 0"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, text: object, words: str) -> None:
    path = tmp_path / "targets.json"
    whole = {"format": "pocketmoe targets", "version": 1, "targets": text}
    path.write_text(text if isinstance(text, str) else json.dumps(whole))
    before = path.read_bytes()
    for call in (
        all_targets,
        lambda p: find_target("local", p),
        lambda p: write_target(p, target()),
    ):
        with pytest.raises(TargetError, match=words) as refusal:
            call(path)
        assert "\n" not in str(refusal.value)
        assert str(path) in str(refusal.value)
    assert path.read_bytes() == before
    assert find_target("cpu", path).name == "cpu"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TargetError, match="not a file of measured targets"):
        all_targets(path)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    path.mkdir()
    with pytest.raises(TargetError, match="cannot be read"):
        all_targets(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(TargetError, match="cannot be written"):
        write_target(file / "targets.json", target())
    with pytest.raises(TargetError, match="no directory"):
        check_writable(file / "targets.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TargetError, match="permission denied"):
        check_writable(tmp_path / "x/targets.json")
    with pytest.raises(TargetError, match="permission denied"):
        write_target(tmp_path / "x/targets.json", target())


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "targets.json"
    write_target(path, target())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TargetError, match="Permission denied"):
        write_target(path, target(memory_bandwidth=1e9))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["targets.json"]
