"""Bundles whose backbone the native kernels run: against ONNX Runtime, and where they do not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketmoe
from pocketmoe.bundle.manifest import FileRecord, Segment, hash_file, read_manifest, write_manifest
from pocketmoe.bundle.weight_index import WeightIndex, WeightPlace, index_file
from pocketmoe.errors import BundleError
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.parameters import layer_shapes
from pocketmoe.model.spec import ModelSpec
from pocketmoe.runtime.cpu import native_backbone
from pocketmoe.runtime.cpu.native_segment import NativeSegment
from pocketmoe.runtime.cpu.native_weights import Weights
from pocketmoe.runtime.native import library
from pocketmoe.runtime.native.kernels import NativeKernels

pytestmark = pytest.mark.skipif(not library.available(), reason="no native library")
TOKENS = np.random.default_rng(0).integers(1, 384, 200).tolist()
NATIVE = f"native, {library.instruction_sets()[0]}" if library.available() else ""


def run(bundle: Path, *, threads: int | None = None) -> tuple[np.ndarray, str]:
    """Logits of a prompt of several chunks and of tokens one by one; the backbone's engine."""
    with pocketmoe.open(bundle, threads=threads) as opened:
        parts = [opened.forward(TOKENS[:180])]
        parts += [opened.forward([token]) for token in TOKENS[180:]]
        return np.concatenate(parts), opened.stats.backbone_engine


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime runs the backbone; the experts stay native."""
    monkeypatch.setattr(native_backbone, "can_serve", lambda spec: False)


def rewrite(bundle: Path, copy: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a bundle after a change, its manifest true to its files."""
    import shutil

    shutil.copytree(bundle, copy)
    change(copy)
    manifest = read_manifest_unchecked(copy)
    files = {
        name: FileRecord((copy / name).stat().st_size, hash_file(copy / name))
        for name in manifest.files
        if (copy / name).exists()
    }
    write_manifest(copy, dataclasses.replace(manifest, files=files))
    return copy


def read_manifest_unchecked(root: Path) -> native_backbone.Manifest:
    from pocketmoe.bundle.manifest import _manifest_from_json

    return _manifest_from_json(json.loads((root / "manifest.json").read_text()))


@pytest.mark.parametrize(
    ("precision", "bound"), [("fp32", 2e-5), ("fp16", 2e-5), ("int8", 0.02), ("int4", 0.05)]
)
def test_native_segments_agree_with_onnx_runtime(
    compile_tiny: Callable[[str], Path],
    precision: str,
    bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = compile_tiny(precision)
    native, name = run(bundle)
    without_kernels(monkeypatch)
    other, other_name = run(bundle)
    assert (name, other_name) == (NATIVE, "onnxruntime")
    apart = np.abs(native - other).max(axis=1) / np.abs(other).max()
    # Rounding may send a token to other experts: then that one's logits differ, most others' not.
    assert (apart.max() if bound < 1e-4 else np.median(apart)) < bound


def test_the_prompt_may_come_in_any_pieces(tiny_bundle: Path) -> None:
    whole, _ = run(tiny_bundle)
    with pocketmoe.open(tiny_bundle) as opened:
        parts = [opened.forward(TOKENS[:7]), opened.forward(TOKENS[7:150])]
        parts.append(opened.forward(TOKENS[150:]))
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_bundle_without_an_index_runs_on_onnx_runtime(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(tiny_bundle)
    first, *others = (index_file(segment) for segment in manifest.segments)

    def drop_all(root: Path) -> None:
        for name in (first, *others):
            (root / name).unlink()

    older = rewrite(tiny_bundle, tmp_path / "older", drop_all)
    mixed = rewrite(tiny_bundle, tmp_path / "mixed", lambda root: (root / first).unlink())
    native, _ = run(tiny_bundle)
    logits, name = run(older)
    assert name == "onnxruntime"
    some, some_name = run(mixed)
    count = len(manifest.segments)
    assert some_name == f"{NATIVE} ({count - 1} of {count} segments), onnxruntime"
    for found in (logits, some):
        apart = np.abs(found - native).max(axis=1) / np.abs(native).max()
        assert np.median(apart) < 0.02
    without_kernels(monkeypatch)
    assert run(tiny_bundle)[0].tobytes() == logits.tobytes()


def damage(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / index_file(read_manifest(root).segments[0])
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("places"),
        lambda data: data.update(size=data["size"] + 64),
        lambda data: next(iter(data["places"].values())).update(offset=data["size"] // 64 * 64),
        lambda data: next(iter(data["places"].values())).update(offset=-64),
        lambda data: next(iter(data["places"].values())).update(dtype="float64"),
        lambda data: next(iter(data["places"].values())).update(shape="many"),
    ],
)
def test_a_damaged_index_is_refused(
    tiny_bundle: Path, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    broken = rewrite(tiny_bundle, tmp_path / "broken", damage(change))
    with pytest.raises(BundleError, match=r"segment_000\.json .*compile the bundle again"):
        pocketmoe.open(broken)


def cut(name: str) -> Callable[[Path], None]:
    """Half of the weights of that name are gone from the index."""

    def change(data: Any) -> None:
        place = data["places"][name]
        place["shape"] = [(place["shape"][0] + 1) // 2, *place["shape"][1:]]

    return damage(change)


@pytest.mark.parametrize("verify_pages", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attention_norm.weight",
        "layers.0.attention.q_norm.weight",
        "layers.0.attention.k_proj.weight",
        "layers.0.attention.o_proj.weight.scales",
        "layers.1.router.weight",
    ],
)
def test_sizes_that_are_not_the_models_are_refused(
    tiny_bundle: Path, tmp_path: Path, name: str, verify_pages: bool
) -> None:
    broken = rewrite(tiny_bundle, tmp_path / "broken", cut(name))
    with pytest.raises(BundleError, match=rf"segment_000\.json .*{name}.*compile the bundle again"):
        pocketmoe.open(broken, verify_pages=verify_pages)


def index_of(spec: ModelSpec, layer: int) -> WeightIndex:
    """Of a segment with that layer alone, all in float32."""
    places, size = {}, 0
    for name, shape in layer_shapes(spec, layer).items():
        places[name] = WeightPlace("float32", shape, size)
        size += -(-places[name].nbytes // 64) * 64
    return WeightIndex(size, size, places)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt_oss", ["attention.q_proj.bias", "attention.sinks", "router.bias"]),
        ("phimoe", ["attention_norm.bias"]),
        ("glm4_moe", ["attention.k_proj.bias"]),
        ("ernie4_5_moe", ["router_correction"]),
    ],
)
def test_vectors_that_are_not_the_models_are_refused(
    family: str, names: list[str], tmp_path: Path
) -> None:
    spec = FAMILIES[family].read_config(FAMILIES[family].tiny)
    layer = next(i for i, rule in enumerate(spec.layers) if rule.is_moe)
    segment = Segment("backbone/segment_000.onnx", (layer,), layer)
    kernels = NativeKernels(1)
    whole = index_of(spec, layer)

    def build(places: dict[str, WeightPlace]) -> None:
        index = dataclasses.replace(whole, places=places)
        NativeSegment(spec, segment, None, Weights(index, 32, tmp_path / "index"), kernels)

    build(whole.places)
    for name in names:
        full = f"layers.{layer}.{name}"
        place = whole.places[full]
        short = dataclasses.replace(place, shape=(place.shape[0] - 1,))
        with pytest.raises(BundleError, match=rf"index is damaged \({full}"):
            build({**whole.places, full: short})
        with pytest.raises(KeyError):
            build({key: at for key, at in whole.places.items() if key != full})


def test_a_weight_that_is_missing_leaves_the_segment_to_onnx_runtime(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    name = "layers.0.attention.q_proj.weight"
    change = damage(lambda data: data["places"].pop(name))  # type: ignore[attr-defined]
    _, engine = run(rewrite(tiny_bundle, tmp_path / "poor", change))
    count = len(read_manifest(tiny_bundle).segments)
    assert engine == f"{NATIVE} ({count - 1} of {count} segments), onnxruntime"


def test_the_plan_counts_the_native_backbone(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pocketmoe.open(tiny_bundle) as opened:
        native = opened.plan
        opened.forward(TOKENS)
        kernels = next(iter(opened._runner._engines.values()))._kernels  # type: ignore[attr-defined]
        assert 0 < kernels.nbytes <= native.workspace
        weights = sum(
            record.size for name, record in opened.manifest.files.items()
            if name.endswith(".bin") and "segment" in name
        )  # fmt: skip
        assert native.backbone == weights
        in_onnx = opened.manifest.backbone_bytes
    without_kernels(monkeypatch)
    with pocketmoe.open(tiny_bundle) as opened:
        assert opened.plan.backbone == in_onnx > native.backbone
