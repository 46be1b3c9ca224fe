"""A file takes its place as a whole, or what was there stays."""

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from pocketmoe import files
from pocketmoe.files import PRIVATE, atomic_file, write_atomically
from pocketmoe.tests.support.waiting import PATIENCE


def test_it_is_in_its_place_after_the_block_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_where_the_block_raises_nothing_has_changed(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_the_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append(f"synced {os.fstat(number).st_size}")
        sync(number)

    def replaced(*names: Any) -> None:
        done.append("renamed")
        replace(*names)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    write_atomically(tmp_path / "file", "ä")
    assert done == ["synced 2", "renamed"]


def test_a_disk_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_its_mode_follows_the_umask_unless_it_is_private(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "shared", b"")
        write_atomically(tmp_path / "own", b"", mode=PRIVATE)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "own")]
    assert modes == [0o640, 0o600]


def test_threads_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [str(number) * 50_000 for number in range(8)]
    both = threading.Barrier(len(texts))

    def write(text: str) -> None:
        with atomic_file(path) as file:
            both.wait(PATIENCE)
            file.write(text.encode())

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
