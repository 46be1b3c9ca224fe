"""bench/make_bundle.py writes bundles that are like compiled ones."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pocketmoe
from pocketmoe.bench.lib.random_source import RandomPages, RandomSource, copy_round
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.make_bundle import make_bundle
from pocketmoe.bundle.damage import find_damage
from pocketmoe.bundle.manifest import Precision, read_manifest
from pocketmoe.bundle.pages import PROJECTIONS, PageFormat
from pocketmoe.compiler.precision import DEFAULT, parse_precision
from pocketmoe.errors import ConfigError, InputError
from pocketmoe.model.families import find_family
from pocketmoe.runtime.cpu.ort import load_session, set_up
from pocketmoe.targets import find_target
from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.slow import slow
from pocketmoe.tests.support.waiting import PATIENCE

SCRIPT = ROOT / "bench/make_bundle.py"
NUMBERS = 100_003

TINY = {
    **with_layers(SHAPES["qwen3-30b-a3b"], 2), "vocab_size": 300, "hidden_size": 256,
    "intermediate_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
# Biases, sinks and another activation.
TINY_GPT_OSS = {
    **with_layers(SHAPES["gpt-oss-20b"], 2), "vocab_size": 300, "hidden_size": 320,
    "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_local_experts": 8,
}  # fmt: skip


def precision_of(text: str) -> Precision:
    return parse_precision([text], 64, find_target("cpu"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "bundle"
    make_bundle(TINY, path, precision=precision_of("int4"), numbers=NUMBERS)
    return path


@pytest.mark.parametrize(
    "precision", ["int4", *map(slow, ("experts=int8,backbone=fp16", "fp16", "fp32"))]
)
@pytest.mark.parametrize("config", [TINY, TINY_GPT_OSS], ids=["qwen3_moe", "gpt_oss"])
def test_a_bundle_that_is_whole_and_runs(
    config: dict[str, object], precision: str, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    made = make_bundle(config, out, precision=precision_of(precision), numbers=NUMBERS)
    assert list(tmp_path.iterdir()) == [out]
    manifest = read_manifest(out)
    assert manifest == made
    assert find_damage(out, manifest) == {}
    tokens = np.random.default_rng(0).integers(300, size=40).tolist()
    with pocketmoe.open(out) as session:
        logits = session.forward(tokens)
        assert session.generate(tokens, max_new_tokens=4, seed=1).text()
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 3


def test_activations_are_of_ordinary_size_and_tokens_spread_over_the_experts(bundle: Path) -> None:
    tokens = np.random.default_rng(0).integers(300, size=200).tolist()
    ids, largest = [], 0.0

    with pocketmoe.open(bundle) as session:

        def observe(_: int, out: dict[str, np.ndarray]) -> None:
            nonlocal largest
            if "expert_ids" in out:
                ids.append(out["expert_ids"].copy())
                largest = max(largest, float(np.abs(out["hidden_out"]).max()))

        session.forward(tokens, observe=observe)
    assert largest < 20
    # 200 tokens of 4 experts each, in 2 layers: 50 uses of each expert, if all were even.
    for layer in (np.concatenate(ids[::2]), np.concatenate(ids[1::2])):
        uses = np.bincount(layer.ravel(), minlength=16)
        assert uses.min() > 0
        assert uses.max() < 150
        same = [len({*a} & {*b}) for a, b in zip(layer.tolist(), layer.tolist()[1:], strict=False)]
        assert np.mean(same) < 2  # of 4; 1, if neighbours were independent


def test_every_expert_file_is_the_expert_of_its_page(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    x = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    set_up(2)
    for layer in manifest.experts:
        pages = (bundle / layer.file).read_bytes()
        for expert in (0, 7, 15):
            path = bundle / layer.file.replace("pages.bin", f"expert_{expert:03d}.onnx")
            (y,) = load_session(path, path).run(None, {"x": x})
            weights = read_int4(pages, layer.offsets[expert], layer.format)
            gate, up = x @ weights["gate"].T, x @ weights["up"].T
            expected = (gate / (1 + np.exp(-gate)) * up) @ weights["down"].T
            assert np.abs(y - expected).max() / np.abs(expected).max() < 5e-6


def read_int4(pages: bytes, page: int, page_format: PageFormat) -> dict[str, np.ndarray]:
    """The projections of a page in float64, written from the description of the format."""
    places = {place.name: place for place in page_format.tensors()}
    found = {}
    for name in PROJECTIONS:
        place, scales = places[name], places[f"{name}_scales"]
        packed = np.frombuffer(pages, np.uint8, place.nbytes, page + place.offset)
        values = np.stack([packed & 15, packed >> 4], axis=1).astype(np.int8).reshape(place.shape)
        values = np.where(values > 7, values - 16, values)
        blocks = np.frombuffer(pages, np.float16, scales.nbytes // 2, page + scales.offset)
        factors = np.repeat(blocks.reshape(scales.shape), page_format.block_size, axis=1)
        found[name] = values * factors.astype(np.float64)
    return found


def test_pages_differ_and_look_like_quantized_normal_numbers(bundle: Path) -> None:
    layers = read_manifest(bundle).experts
    assert len({item for layer in layers for item in layer.sha256}) == 2 * 16
    pages = (bundle / layers[1].file).read_bytes()
    for expert in range(16):
        for matrix in read_int4(pages, layers[1].offsets[expert], layers[1].format).values():
            assert matrix.std() == pytest.approx(0.02, rel=0.05)
            assert abs(matrix.mean()) < 1e-3


def test_the_seed_decides(bundle: Path, tmp_path: Path) -> None:
    made = {
        seed: make_bundle(
            TINY, tmp_path / str(seed), precision=precision_of("int4"), seed=seed, numbers=NUMBERS
        )
        for seed in (0, 1)
    }
    assert made[0].files == read_manifest(bundle).files
    assert made[1].experts[0].sha256 != made[0].experts[0].sha256
    assert made[1].files["backbone/segment_000.bin"] != made[0].files["backbone/segment_000.bin"]


def test_a_stretch_longer_than_the_block_goes_round() -> None:
    source = np.arange(5, dtype=np.int16)
    target = np.empty(24, np.uint8)
    copy_round(target, source, 3)
    assert target.view(np.int16).tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    page_format = PageFormat("int4", 64, 128, 64)
    pages = RandomPages(DEFAULT, np.random.default_rng(0).normal(size=700).astype(np.float32), 0)
    (page,) = pages.layer(0, 1, page_format)
    assert all(np.abs(item).max() > 0 for item in read_int4(page, 0, page_format).values())


def test_the_embedding_undoes_the_multiplier() -> None:
    config = with_layers(SHAPES["granite-3.1-3b-a800m"], 1)
    spec = find_family(config).read_config(config)
    (rows, *_) = RandomSource(spec, 0, 1_000_003).tiles("embed.weight")
    assert rows.std().item() * spec.embedding_multiplier == pytest.approx(1, rel=0.01)


def test_what_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        make_bundle(TINY, bundle, precision=DEFAULT)
    with pytest.raises(ConfigError, match="block"):
        make_bundle({**TINY, "moe_intermediate_size": 96}, tmp_path / "x", precision=DEFAULT)
    command = [sys.executable, SCRIPT, "--shape", "olmoe-1b-7b", "-o", bundle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert list(tmp_path.iterdir()) == []
