"""Pages are read as they were written, kept as the policy says, and refused when damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketmoe.analysis.planning.policies import Lru
from pocketmoe.bundle.expert_layers import ExpertLayer
from pocketmoe.bundle.manifest import Manifest, Precision
from pocketmoe.bundle.pages import ExpertKey, PageFormat
from pocketmoe.errors import BundleError, InputError
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import LayerSpec, ModelSpec, RouterSpec
from pocketmoe.runtime.native.checksum import find_xxh64
from pocketmoe.runtime.paging import page_file, readers
from pocketmoe.runtime.paging.pager import Pager
from pocketmoe.runtime.paging.policy import CachePolicy

LAYERS, EXPERTS = 2, 4
FORMATS = (PageFormat("int4", 32, 64, 96), PageFormat("int8", 32, 64, 160))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("pages")
    return root, write_pages(root)


def write_pages(
    root: Path, formats: tuple[PageFormat, ...] = FORMATS, *, checksums: bool = True
) -> Manifest:
    """Layers of random pages: by default two, the second with larger ones."""
    random = np.random.default_rng(0)
    layers = []
    for layer, page_format in enumerate(formats):
        file = f"layer_{layer}.bin"
        pages = [random.bytes(page_format.nbytes) for _ in range(EXPERTS)]
        (root / file).write_bytes(b"".join(pages))
        offsets = tuple(expert * page_format.nbytes for expert in range(EXPERTS))
        hashes = tuple(hashlib.sha256(page).hexdigest() for page in pages)
        quick = tuple(xxhash.xxh64_hexdigest(page) for page in pages) if checksums else ()
        layers.append(ExpertLayer(layer, file, (page_format,), offsets, hashes, quick))
    rule = LayerSpec(window=None, intermediate_size=96, router=RouterSpec(EXPERTS, 2, True))
    rope = RopeSpec(1e4, 32)
    spec = ModelSpec("reference", 8, 64, 2, 1, 32, 64, rope, 1e-5, True, (rule,) * len(formats))
    precision = Precision("int4", "int8", "int8", 32)
    return Manifest(spec, "cpu", precision, "float16", (), tuple(layers), 0, {})


def expected(root: Path, layer: int, expert: int) -> bytes:
    size = FORMATS[layer].nbytes
    return (root / f"layer_{layer}.bin").read_bytes()[expert * size : (expert + 1) * size]


def content(pager: Pager, layer: int, expert: int) -> bytes:
    """What a layer's run that needs this expert alone gets to see."""
    ((found, page),) = pages(pager, layer, [expert])
    assert found == expert
    return page


def pages(
    pager: Pager, layer: int, experts: list[int], *, in_order: bool = False
) -> list[tuple[int, bytes]]:
    """What a layer's run gets to see, in the order in which it comes."""
    seen = []
    for batch in pager.visit(layer, experts, in_order=in_order):
        assert batch
        seen += [(e, slot.data[: FORMATS[layer % 2].nbytes].tobytes()) for e, slot in batch]
    return seen


@pytest.fixture
def pager(bundle: tuple[Path, Manifest]) -> Iterator[Pager]:
    pager = Pager(*bundle, slots=3)
    yield pager
    pager.close()


def test_pages_are_what_was_written(bundle: tuple[Path, Manifest], pager: Pager) -> None:
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            assert content(pager, layer, expert) == expected(bundle[0], layer, expert)
    assert pager.misses == pager.readers.verified == LAYERS * EXPERTS
    assert pager.readers.bytes_read == sum(f.nbytes for f in FORMATS) * EXPERTS


def test_slots_are_aligned_to_memory_pages(pager: Pager) -> None:
    for batch in pager.visit(1, [0, 2, 3]):
        for _, slot in batch:
            assert slot.address == slot.data.ctypes.data
            assert slot.address % 4096 == 0


def test_no_more_slots_than_pages(bundle: tuple[Path, Manifest]) -> None:
    pager = Pager(*bundle, slots=1000)
    assert pager.slots == LAYERS * EXPERTS
    pager.close()


requests = st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=requests, slots=st.integers(1, LAYERS * EXPERTS))
def test_with_lru_the_least_recently_used_goes_first(
    bundle: tuple[Path, Manifest], order: list[tuple[int, int]], slots: int
) -> None:
    pager = Pager(*bundle, slots=slots, policy=Lru())
    cached: list[ExpertKey] = []
    hits = 0
    for layer, expert in order:
        key = ExpertKey(layer, expert)
        hits += key in cached
        cached = [*(other for other in cached if other != key), key][-slots:]
        assert content(pager, layer, expert) == expected(bundle[0], layer, expert)
        assert pager.resident() == frozenset(cached)
    assert (pager.hits, pager.misses) == (hits, len(order) - hits)
    pager.close()


experts_of_a_run = st.lists(st.integers(0, EXPERTS - 1), min_size=1, unique=True).map(sorted)
layer_runs = st.lists(st.tuples(st.integers(0, LAYERS - 1), experts_of_a_run), max_size=30)


@pytest.mark.parametrize("make", [lambda: None, Lru], ids=["default", "lru"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(runs=layer_runs, slots=st.integers(1, LAYERS * EXPERTS), in_order=st.booleans())
def test_every_page_comes_once_and_the_running_layers_stay_if_they_fit_together(
    bundle: tuple[Path, Manifest],
    make: Callable[[], CachePolicy | None],
    runs: list[tuple[int, list[int]]],
    slots: int,
    in_order: bool,
) -> None:
    pager = Pager(*bundle, slots=slots, policy=make())
    for layer, experts in runs:
        keys = {ExpertKey(layer, expert) for expert in experts}
        before, misses = pager.resident(), pager.misses
        seen = []
        for batch in pager.visit(layer, experts, in_order=in_order):
            for expert, slot in batch:
                page = slot.data[: FORMATS[layer].nbytes].tobytes()
                assert page == expected(bundle[0], layer, expert)
                assert ExpertKey(layer, expert) in pager.resident()
                seen.append(expert)
            assert len(pager.resident()) <= slots
        assert seen == experts if in_order else sorted(seen) == experts
        if len(experts) <= slots:
            assert keys <= pager.resident()
            assert pager.misses - misses == len(keys - before)
    pager.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.integers(0, LAYERS - 1), experts_of_a_run, st.integers(0, 3), st.integers(1, 9)
        ),
        max_size=20,
    )
)
def test_a_run_left_early_and_new_sizes_do_no_harm(
    bundle: tuple[Path, Manifest], runs: list[tuple[int, list[int], int, int]]
) -> None:
    pager = Pager(*bundle, slots=3)
    for layer, experts, lists, slots in runs:
        visit = pager.visit(layer, experts)
        for _ in range(lists):
            for expert, slot in next(visit, []):
                page = slot.data[: FORMATS[layer].nbytes].tobytes()
                assert page == expected(bundle[0], layer, expert)
        del visit
        pager.resize(slots)
        assert pager.slots == min(slots, LAYERS * EXPERTS)
        assert len(pager.resident()) <= pager.slots
    pager.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(0, LAYERS - 1), experts_of_a_run, experts_of_a_run), max_size=25
    ),
    slots=st.integers(2, LAYERS * EXPERTS),
    wait=st.booleans(),
)
def test_wrong_and_right_guesses_change_nothing_but_the_counts(
    bundle: tuple[Path, Manifest],
    runs: list[tuple[int, list[int], list[int]]],
    slots: int,
    wait: bool,
) -> None:
    """Each run guesses another; wait: until what was guessed has come."""
    pager = Pager(*bundle, slots=slots)
    guesses = 0
    for layer, experts, guessed in runs:
        visit = pager.visit(layer, experts)
        before = pager.early
        if len(experts) <= slots:
            pager.read_early(1 - layer, guessed, most=2)
        guesses += pager.early - before
        assert pager.early - before <= 2
        seen = []
        for batch in visit:
            for expert, slot in batch:
                page = slot.data[: FORMATS[layer].nbytes].tobytes()
                assert page == expected(bundle[0], layer, expert)
                seen.append(expert)
        assert sorted(seen) == experts
        assert len(pager.resident()) <= slots
        while wait and pager._loading:
            pager._collect(wait=True)
    assert pager.early == guesses
    assert pager.early_used <= guesses
    pager.close()


def test_an_early_page_is_a_hit(bundle: tuple[Path, Manifest]) -> None:
    pager = Pager(*bundle, slots=LAYERS * EXPERTS)
    list(pager.visit(0, [0, 1]))
    pager.read_early(1, [3, 2, 1], most=2)
    while pager._loading:
        pager._collect(wait=True)
    assert {key.expert for key in pager.resident() if key.layer == 1} == {3, 2}
    hits = pager.hits
    assert sorted(e for batch in pager.visit(1, [0, 3]) for e, _ in batch) == [0, 3]
    assert (pager.hits - hits, pager.early, pager.early_used) == (1, 2, 1)
    pager.close()


def test_what_is_there_comes_first_and_does_not_wait(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager = Pager(*bundle, slots=LAYERS * EXPERTS)
    pages(pager, 0, [1, 3])
    gate = threading.Event()
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        assert gate.wait(60)
        return real(fd, buffers, offset)

    monkeypatch.setattr(page_file.os, "preadv", preadv)
    visit = pager.visit(0, [0, 1, 2, 3])
    assert [expert for expert, _ in next(visit)] == [1, 3]
    gate.set()
    assert sorted(expert for batch in visit for expert, _ in batch) == [0, 2]
    assert pager.wait_seconds > 0
    pager.close()


def test_more_than_one_page_is_read_at_a_time(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two reads meet at a barrier: one alone would wait for ever."""
    barrier = threading.Barrier(2)
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        barrier.wait(60)
        return real(fd, buffers, offset)

    pager = Pager(*bundle, slots=LAYERS * EXPERTS)
    monkeypatch.setattr(page_file.os, "preadv", preadv)
    found = dict(pages(pager, 0, [0, 1, 2, 3]))
    assert all(found[expert] == expected(bundle[0], 0, expert) for expert in range(4))
    pager.close()


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


def test_below_a_tokens_pages_the_default_has_hits_where_lru_has_none(tmp_path: Path) -> None:
    """Four layers, of whose 4 experts a token takes 2, mostly the same: 8 pages, in 5 slots."""
    manifest = write_pages(tmp_path, FORMATS * 2)
    hits = {}
    for name, policy in (("default", None), ("lru", Lru())):
        random = np.random.default_rng(0)
        pager = Pager(tmp_path, manifest, slots=5, policy=policy)
        for _ in range(100):
            for layer in range(len(manifest.experts)):
                chosen = random.choice(EXPERTS, 2, replace=False, p=(0.4, 0.3, 0.2, 0.1))
                experts = sorted(chosen.tolist())
                pages(pager, layer, experts)
        assert pager.hits + pager.misses == 800
        hits[name] = pager.hits
        pager.close()
    assert hits["lru"] == 0
    assert hits["default"] > 800 / 5, hits


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
