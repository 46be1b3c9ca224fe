"""Pages are read as they were written, kept as the policy says, and refused when damaged."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketmoe.errors import BundleError
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import LayerSpec, ModelSpec, RouterSpec
from pocketmoe.runtime import pager as pager_module
from pocketmoe.runtime.bundle import ExpertLayer, Manifest, Precision
from pocketmoe.runtime.pager import Pager
from pocketmoe.runtime.pages import ExpertKey, PageFormat
from pocketmoe.runtime.policy import CachePolicy, Lru

LAYERS, EXPERTS = 2, 4
FORMATS = (PageFormat("int4", 32, 64, 96), PageFormat("int8", 32, 64, 160))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("pages")
    return root, write_pages(root)


def write_pages(root: Path, formats: tuple[PageFormat, ...] = FORMATS) -> Manifest:
    """Layers of random pages: by default two, the second with larger ones."""
    random = np.random.default_rng(0)
    layers = []
    for layer, page_format in enumerate(formats):
        file = f"layer_{layer}.bin"
        pages = [random.bytes(page_format.nbytes) for _ in range(EXPERTS)]
        (root / file).write_bytes(b"".join(pages))
        offsets = tuple(expert * page_format.nbytes for expert in range(EXPERTS))
        hashes = tuple(hashlib.sha256(page).hexdigest() for page in pages)
        layers.append(ExpertLayer(layer, file, page_format, offsets, hashes))
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
    pager.visit(layer, [expert])
    return pager.page(layer, expert)[: FORMATS[layer].nbytes].tobytes()


@pytest.fixture
def pager(bundle: tuple[Path, Manifest]) -> Iterator[Pager]:
    pager = Pager(*bundle, slots=3)
    yield pager
    pager.close()


def test_pages_are_what_was_written(bundle: tuple[Path, Manifest], pager: Pager) -> None:
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            assert content(pager, layer, expert) == expected(bundle[0], layer, expert)
    assert pager.misses == pager.verified == LAYERS * EXPERTS
    assert pager.bytes_read == sum(f.nbytes for f in FORMATS) * EXPERTS


def test_slots_are_aligned_to_memory_pages(pager: Pager) -> None:
    assert all(pager.page(1, e).ctypes.data % 4096 == 0 for e in range(EXPERTS))


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
@given(runs=layer_runs, slots=st.integers(1, LAYERS * EXPERTS))
def test_the_running_layers_pages_stay_if_they_fit_together(
    bundle: tuple[Path, Manifest],
    make: Callable[[], CachePolicy | None],
    runs: list[tuple[int, list[int]]],
    slots: int,
) -> None:
    pager = Pager(*bundle, slots=slots, policy=make())
    requests = 0
    for layer, experts in runs:
        keys = {ExpertKey(layer, expert) for expert in experts}
        before, misses = pager.resident(), pager.misses
        pager.visit(layer, experts)
        for expert in experts:
            page = pager.page(layer, expert)[: FORMATS[layer].nbytes]
            assert page.tobytes() == expected(bundle[0], layer, expert)
            assert ExpertKey(layer, expert) in pager.resident()
            assert len(pager.resident()) <= slots
        requests += len(experts)
        if len(experts) <= slots:
            assert keys <= pager.resident()
            assert pager.misses - misses == len(keys - before)
    assert pager.hits + pager.misses == requests
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
                pager.visit(layer, experts)
                for expert in experts:
                    pager.page(layer, expert)
        assert pager.hits + pager.misses == 800
        hits[name] = pager.hits
        pager.close()
    assert hits["lru"] == 0
    assert hits["default"] > 800 / 5, hits


def test_a_flipped_byte_is_named_and_the_cache_stays_whole(tmp_path: Path) -> None:
    manifest = write_pages(tmp_path)
    with (tmp_path / "layer_1.bin").open("r+b") as file:
        file.seek(2 * FORMATS[1].nbytes + 777)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    pager = Pager(tmp_path, manifest, slots=2)
    pager.page(0, 0)
    pager.page(0, 1)
    for _ in range(3):
        with pytest.raises(BundleError, match=r"layer_1\.bin: .*layer 1, expert 2 is damaged"):
            pager.page(1, 2)
    assert content(pager, 1, 3) == expected(tmp_path, 1, 3)
    assert content(pager, 0, 1) == expected(tmp_path, 0, 1)
    pager.close()


def test_hashes_are_not_checked_when_told_so(tmp_path: Path) -> None:
    manifest = write_pages(tmp_path)
    path = tmp_path / "layer_0.bin"
    path.write_bytes(bytes(path.stat().st_size))
    pager = Pager(tmp_path, manifest, slots=2, verify=False)
    assert not any(content(pager, 0, 0))
    assert pager.verified == 0
    pager.close()


def test_a_page_is_hashed_only_once(bundle: tuple[Path, Manifest]) -> None:
    pager = Pager(*bundle, slots=1)
    for _ in range(3):
        pager.page(0, 0)
        pager.page(0, 1)
    assert (pager.misses, pager.verified) == (6, 2)
    pager.close()


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    manifest = write_pages(tmp_path)
    os.truncate(tmp_path / "layer_0.bin", FORMATS[0].nbytes * 3 + 100)
    pager = Pager(tmp_path, manifest, slots=2)
    assert content(pager, 0, 2) == expected(tmp_path, 0, 2)
    with pytest.raises(BundleError, match="layer 0, expert 3 cannot be read"):
        pager.page(0, 3)
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

    monkeypatch.setattr(pager_module.os, "preadv", preadv)


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
        pager.page(0, 1)
    assert content(pager, 0, 1) == expected(bundle[0], 0, 1)


def test_without_direct_reads(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pager_module, "_O_DIRECT", 0)
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

    monkeypatch.setattr(pager_module.os, "preadv", preadv)
    assert content(pager, 0, 3) == expected(bundle[0], 0, 3)
    assert not pager.direct
    assert content(pager, 0, 2) == expected(bundle[0], 0, 2)
