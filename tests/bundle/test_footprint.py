"""Sizes from the spec and the precision are those of the bundle that the compiler makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pocketmoe.analysis.inspection.inspect import read_spec
from pocketmoe.bench.lib.random_models import make_model
from pocketmoe.bench.quality.families import compile_at, configs
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.compiler.footprint import expected_footprint
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.model.families import FAMILIES
from pocketmoe.targets import find_target
from pocketmoe.tests.compiler.test_family_bundles import CONFIGS


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32", "head=fp32,experts=fp16"])
def test_the_tiny_bundle(
    precision: str, compile_tiny: Callable[[str], Path], tiny_checkpoint: Path
) -> None:
    chosen = parse_precision([precision], 32, find_target("cpu"))
    expected = expected_footprint(read_spec(tiny_checkpoint), chosen)
    found = read_manifest(compile_tiny(precision)).footprint
    assert expected == found
    assert found.num_pages > 0


def test_what_a_token_reads(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    layers = manifest.spec.layers
    pages = 0
    for layer in manifest.experts:
        router = layers[layer.layer].router
        assert router is not None
        pages += router.top_k * layer.formats[0].nbytes
    found = manifest.footprint
    assert found.token_page_bytes == pages
    assert found.token_bytes == pages + manifest.backbone_bytes
    assert found.num_pages == manifest.num_pages
    assert found.page_bytes == manifest.page_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("family", "config"), CONFIGS.items())
def test_every_familys_bundle(family: str, config: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    make_model(dict(configs(FAMILIES[family]))[config], checkpoint)
    for precision in ("int4", "fp32"):
        chosen = parse_precision([precision], 32, find_target("cpu"))
        expected = expected_footprint(read_spec(checkpoint), chosen)
        assert expected.backbone_bytes > 0
        found = read_manifest(compile_at(checkpoint, precision)).footprint
        assert expected.backbone_bytes == found.backbone_bytes
        assert (expected.experts, expected.segments) == (found.experts, found.segments)
