"""A pager whose pages differ in size: slots as large as their pages, in so many bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketmoe.bundle.expert_layers import ExpertLayer, average_bits
from pocketmoe.bundle.manifest import Manifest, Precision
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.model.spec import LayerSpec, ModelSpec, RopeSpec, RouterSpec
from pocketmoe.runtime.paging.pager import Pager

LAYERS, EXPERTS = 2, 6
FORMATS = (
    PageFormat("int4", 64, 64, 128),
    PageFormat("int8", 64, 64, 128),
    PageFormat("fp16", 0, 64, 128),
)
KINDS = ((0, 1, 0, 2, 1, 0), (0, 0, 2, 0, 0, 1))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)
    layers = []
    for layer, kinds in enumerate(KINDS):
        pages = [random.bytes(FORMATS[kind].nbytes) for kind in kinds]
        (root / f"layer_{layer}.bin").write_bytes(b"".join(pages))
        sizes = [len(page) for page in pages]
        offsets = tuple(sum(sizes[:expert]) for expert in range(EXPERTS))
        hashes = tuple(hashlib.sha256(page).hexdigest() for page in pages)
        layers.append(
            ExpertLayer(layer, f"layer_{layer}.bin", FORMATS, offsets, hashes, kinds=kinds)
        )
    rule = LayerSpec(window=None, intermediate_size=128, router=RouterSpec(EXPERTS, 2, True))
    spec = ModelSpec("reference", 8, 64, 2, 1, 32, 64, RopeSpec(1e4, 32), 1e-5, True,
                     (rule,) * LAYERS)  # fmt: skip
    precision = Precision("int4+int8+fp16", "int8", "int8", 32)
    return root, Manifest(spec, "cpu", precision, "float16", (), tuple(layers), 0, {})


def expected(bundle: tuple[Path, Manifest], layer: int, expert: int) -> bytes:
    page = bundle[1].experts[layer].page(expert)
    return (bundle[0] / page.file).read_bytes()[page.offset : page.offset + page.nbytes]


def held_bytes(pager: Pager) -> int:
    loading = (load.slot for load in pager._loading.values())
    return sum(len(s.data) for s in (*pager._resident.values(), *loading, *pager._free))


experts_of_a_run = st.lists(st.integers(0, EXPERTS - 1), min_size=1, unique=True).map(sorted)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(0, LAYERS - 1), experts_of_a_run, st.integers(1, 12)), max_size=25
    ),
    slots=st.integers(1, LAYERS * EXPERTS),
    in_order=st.booleans(),
    early=st.booleans(),
)
def test_every_page_comes_once_within_the_bytes(
    bundle: tuple[Path, Manifest],
    runs: list[tuple[int, list[int], int]],
    slots: int,
    in_order: bool,
    early: bool,
) -> None:
    unit = bundle[1].footprint.mean_page_bytes
    pager = Pager(*bundle, slots=slots, unit=unit)
    for layer, experts, next_slots in runs:
        limit = max(FORMATS[2].nbytes, pager.slots * unit)
        visit, seen = pager.visit(layer, experts, in_order=in_order), []
        if early and len(experts) * FORMATS[2].nbytes <= limit:
            pager.read_early(1 - layer, experts, most=2)
        for batch in visit:
            for expert, slot in batch:
                assert slot.data.tobytes() == expected(bundle, layer, expert)
                seen.append(expert)
            assert held_bytes(pager) <= limit
        assert seen == experts if in_order else sorted(seen) == experts
        pager.resize(next_slots)
        assert held_bytes(pager) <= max(FORMATS[2].nbytes, pager.slots * unit)
    pager.close()
    assert held_bytes(pager) == 0


def test_all_pages_fit_into_as_many_slots(bundle: tuple[Path, Manifest]) -> None:
    manifest = bundle[1]
    pager = Pager(*bundle, slots=manifest.num_pages, unit=manifest.footprint.mean_page_bytes)
    for _ in range(2):
        for layer in range(LAYERS):
            for _ in pager.visit(layer, list(range(EXPERTS))):
                pass
    assert pager.misses == manifest.num_pages
    assert held_bytes(pager) == manifest.expert_bytes
    pager.close()


def test_sizes_are_those_of_the_formats(bundle: tuple[Path, Manifest]) -> None:
    manifest = bundle[1]
    sizes = [FORMATS[kind].nbytes for kinds in KINDS for kind in kinds]
    assert manifest.expert_bytes == sum(sizes)
    assert manifest.page_bytes == max(sizes)
    assert manifest.footprint.mean_page_bytes == -(-sum(sizes) // len(sizes))
    per_layer = [sum(FORMATS[kind].nbytes for kind in kinds) / EXPERTS for kinds in KINDS]
    assert manifest.footprint.token_page_bytes == round(2 * sum(per_layer))
    bits = {0: 4.25, 1: 8.25, 2: 16.0}
    wanted = np.mean([bits[kind] for kinds in KINDS for kind in kinds])
    assert average_bits(manifest.experts) == pytest.approx(wanted)
    assert manifest.experts[0].histogram == {"int4/64": 3, "int8/64": 2, "fp16": 1}
