"""Reads that fail, files that change, damaged bytes: each is named, and the rest goes on."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pocketmoe.bundle.manifest import Manifest
from pocketmoe.errors import BundleError, InputError
from pocketmoe.runtime.native.checksum import find_xxh64
from pocketmoe.runtime.paging import page_file, readers
from pocketmoe.runtime.paging.pager import Pager
from pocketmoe.tests.support.expert_pages import (
    EXPERTS,
    FORMATS,
    LAYERS,
    content,
    expected,
    pages,
    write_pages,
)


@pytest.mark.parametrize("settled", [True, False])
def test_a_page_changed_while_running_is_named(tmp_path: Path, settled: bool) -> None:
    """Though it was right when it was first read; others stay usable."""
    manifest = write_pages(tmp_path)
    pager = Pager(tmp_path, manifest, slots=1)
    while settled and not pager._files["layer_0.bin"].stamp().settled:
        time.sleep(0.1)
    for _ in range(2):
        for expert in range(EXPERTS):
            assert content(pager, 0, expert) == expected(tmp_path, 0, expert)
    assert (pager.readers.verified == EXPERTS) == settled  # known to be right, or checked each time
    right = expected(tmp_path, 0, 2)
    with (tmp_path / "layer_0.bin").open("r+b") as file:
        file.seek(2 * FORMATS[0].nbytes + 99)
        file.write(bytes([right[99] ^ 1]))
    with pytest.raises(BundleError, match=r"layer_0\.bin: .*layer 0, expert 2 is damaged"):
        content(pager, 0, 2)
    assert content(pager, 0, 1) == expected(tmp_path, 0, 1)
    with (tmp_path / "layer_0.bin").open("r+b") as file:
        file.seek(2 * FORMATS[0].nbytes + 99)
        file.write(right[99:100])
    assert content(pager, 0, 2) == right
    pager.close()


def test_pages_of_a_file_that_has_settled_are_hashed_once(tmp_path: Path) -> None:
    manifest = write_pages(tmp_path)
    for name in ("layer_0.bin", "layer_1.bin"):
        os.utime(tmp_path / name, (1, 1))  # the change time cannot be set
    pager = Pager(tmp_path, manifest, slots=1)
    while not pager._files["layer_0.bin"].stamp().settled:
        time.sleep(0.1)
    for _ in range(3):
        content(pager, 0, 0)
        content(pager, 0, 1)
    assert (pager.misses, pager.readers.verified) == (6, 2)
    pager.close()


@given(data=st.binary(max_size=200))
def test_checksums_are_those_of_the_xxhash_package(data: bytes) -> None:
    xxh64 = find_xxh64()
    if xxh64 is None:
        pytest.skip("no native library")
    for part in (data, data * 50):
        assert xxh64(np.frombuffer(part, np.uint8)) == xxhash.xxh64_hexdigest(part)


def test_a_page_in_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PART_BYTES", 4096)
    manifest = write_pages(tmp_path)
    pager = Pager(tmp_path, manifest, slots=3)
    for _ in range(3):
        for layer in range(LAYERS):
            for expert, page in pages(pager, layer, [0, 1, 2, 3]):
                assert page == expected(tmp_path, layer, expert)
    pager.close()


@pytest.mark.parametrize("checksums", [True, False])
def test_a_flipped_byte_is_named_and_the_cache_stays_whole(
    tmp_path: Path, checksums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_pages(tmp_path, checksums=checksums)
    if checksums and find_xxh64() is not None:  # sha256 would find it too, but more slowly
        monkeypatch.setattr(readers.hashlib, "sha256", None)
    with (tmp_path / "layer_1.bin").open("r+b") as file:
        file.seek(2 * FORMATS[1].nbytes + 777)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    pager = Pager(tmp_path, manifest, slots=2)
    pages(pager, 0, [0, 1])
    for _ in range(3):
        with pytest.raises(BundleError, match=r"layer_1\.bin: .*layer 1, expert 2 is damaged"):
            pages(pager, 1, [2])
    assert content(pager, 1, 3) == expected(tmp_path, 1, 3)
    assert content(pager, 0, 1) == expected(tmp_path, 0, 1)
    pager.close()


def test_hashes_are_not_checked_when_told_so(tmp_path: Path) -> None:
    manifest = write_pages(tmp_path)
    path = tmp_path / "layer_0.bin"
    path.write_bytes(bytes(path.stat().st_size))
    pager = Pager(tmp_path, manifest, slots=2, verify=False)
    assert not any(content(pager, 0, 0))
    assert pager.readers.verified == 0
    pager.close()


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    manifest = write_pages(tmp_path)
    os.truncate(tmp_path / "layer_0.bin", FORMATS[0].nbytes * 3 + 100)
    pager = Pager(tmp_path, manifest, slots=2)
    assert content(pager, 0, 2) == expected(tmp_path, 0, 2)
    with pytest.raises(BundleError, match="layer 0, expert 3 cannot be read"):
        content(pager, 0, 3)
    assert content(pager, 0, 2) == expected(tmp_path, 0, 2)
    pager.close()


def fail_reads(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """The next `failures` reads fail as a bad disk does."""
    real, left = os.preadv, [failures]

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(page_file.os, "preadv", preadv)


def test_one_failed_read_is_tried_again(
    bundle: tuple[Path, Manifest], pager: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_reads(monkeypatch, 1)
    assert content(pager, 0, 1) == expected(bundle[0], 0, 1)


def test_two_failed_reads_are_an_error_that_passes(
    bundle: tuple[Path, Manifest], pager: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_reads(monkeypatch, 2)
    with pytest.raises(BundleError, match=r"layer 0, expert 1 cannot be read \(Input/output"):
        content(pager, 0, 1)
    assert content(pager, 0, 1) == expected(bundle[0], 0, 1)


def test_without_direct_reads(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_file, "_O_DIRECT", 0)
    pager = Pager(*bundle, slots=2)
    assert not pager.direct
    assert content(pager, 1, 3) == expected(bundle[0], 1, 3)
    pager.close()


def test_a_file_system_that_refuses_direct_reads_late(
    bundle: tuple[Path, Manifest], pager: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pager.direct:
        pytest.skip("no O_DIRECT in the temporary directory")
    real, refused = os.preadv, []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if not refused:
            refused.append(fd)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, buffers, offset)

    monkeypatch.setattr(page_file.os, "preadv", preadv)
    assert content(pager, 0, 3) == expected(bundle[0], 0, 3)
    assert not pager.direct
    assert content(pager, 0, 2) == expected(bundle[0], 0, 2)


def test_a_reader_that_fails_in_an_unforeseen_way_is_an_error_and_no_hang(
    bundle: tuple[Path, Manifest], pager: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory_error(*_: object) -> None:
        raise MemoryError

    for method in ("_check", "_read"):
        with monkeypatch.context() as patch:
            patch.setattr(readers.Readers, method, memory_error)
            for _ in range(4):
                with pytest.raises(MemoryError):
                    content(pager, 0, 1)
    assert content(pager, 0, 1) == expected(bundle[0], 0, 1)


def test_a_system_that_makes_few_threads_or_none(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = threading.Thread.start, [0]

    def start(thread: threading.Thread) -> None:
        if made[0] == 0:
            raise RuntimeError("can't start new thread")
        made[0] -= 1
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    pager = Pager(*bundle, slots=2)
    with pytest.raises(InputError, match="raise the limit of processes"):
        content(pager, 0, 0)
    made[0] = 1
    for expert in range(EXPERTS):
        assert content(pager, 0, expert) == expected(bundle[0], 0, expert)
    pager.close()
