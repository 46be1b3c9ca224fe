"""Bundles whose experts are stored each in a format of its own."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pocketmoe
from pocketmoe.analysis.evaluation.verify import load_decoder
from pocketmoe.bundle.damage import find_damage
from pocketmoe.bundle.expert_layers import average_bits, expert_layer_from_json
from pocketmoe.bundle.manifest import Manifest, read_manifest, write_manifest
from pocketmoe.bundle.pages import PROJECTIONS, ExpertPage
from pocketmoe.calibration.calibrate import calibrate
from pocketmoe.calibration.record import CalibrationRecord, read_record
from pocketmoe.cli import main
from pocketmoe.compiler.calibrated.layers import Calibration
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import BundleError
from pocketmoe.runtime.cpu import loading
from pocketmoe.runtime.memory import budget
from pocketmoe.runtime.native import library
from pocketmoe.targets import find_target

TOKENS = np.random.default_rng(0).integers(1, 384, 60).tolist()
BACKBONE = "backbone=fp32,head=fp32"
KERNELS = ["onnxruntime"] + (["native"] if library.available() else [])
BITS = 6.5


@pytest.fixture(scope="module")
def record(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    (folder / "text.txt").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    calibrate(tiny_checkpoint, folder / "text.txt", folder / "cal", tokens=512, seq_len=32)
    return folder / "cal"


def uneven(record: CalibrationRecord) -> CalibrationRecord:
    """Experts of very different worth, so that every format is somebody's best."""
    random = np.random.default_rng(3)
    worth = np.array([1.0, 0.5, 0.02, 0.0001])[: len(record.candidates)]
    layers = [
        replace(item, errors=random.lognormal(0, 4, (len(item.usage), 1)) * worth)
        for item in record.layers
    ]
    return replace(record, layers=tuple(layers))


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint: Path, record: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "mixed"
    target = find_target("cpu")
    compile_bundle(
        tiny_checkpoint, out, target=target, precision=parse_precision([BACKBONE], 32, target),
        calibration=Calibration(record, uneven(read_record(record)), "rtn", signed=True), bits=BITS,
    )  # fmt: skip
    return out


def run(bundle: Path, kernels: str) -> np.ndarray:
    """Logits of a prompt and of tokens one by one."""
    with pocketmoe.open(bundle, kernels=kernels) as session:
        parts = [session.forward(TOKENS[:45])]
        parts += [session.forward([token]) for token in TOKENS[45:]]
        return np.concatenate(parts)


def stored(root: Path, page: ExpertPage) -> dict[str, torch.Tensor]:
    """The weights of a page, read by the format's description."""
    data = (root / page.file).read_bytes()[page.offset : page.offset + page.nbytes]
    raw = {p.name: data[p.offset : p.offset + p.nbytes] for p in page.format.tensors()}
    shapes = {place.name: place.shape for place in page.format.tensors()}
    weights = {}
    for name in PROJECTIONS:
        rows, columns = shapes[name]
        if page.format.precision == "fp16":
            values = np.frombuffer(raw[name], np.float16).astype(np.float32)
        elif page.format.precision == "int8":
            values = np.frombuffer(raw[name], np.int8).astype(np.float32)
        else:
            packed = np.frombuffer(raw[name], np.uint8)
            nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int8)
            values = np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.float32)
        values = values.reshape(rows, columns)
        if page.format.quantized:
            scales = np.frombuffer(raw[f"{name}_scales"], np.float16).astype(np.float32)
            values = values * scales.reshape(rows, -1).repeat(page.format.block_size, axis=1)
        weights[name] = torch.from_numpy(values.copy())
    return weights


def test_the_bundle_says_how_each_expert_is_stored(mixed: Path) -> None:
    manifest = read_manifest(mixed)
    assert all(len(layer.formats) > 1 for layer in manifest.experts)
    used = {page.format.name for page in manifest.pages()}
    assert used == {"int4/64", "int4/32", "int8/64", "fp16"}
    assert manifest.precision.experts == "int4+int8+fp16"
    assert manifest.bits is not None
    assert manifest.bits.asked == BITS
    assert manifest.bits.reached == pytest.approx(average_bits(manifest.experts))
    assert BITS - 1 < manifest.bits.reached <= BITS
    assert find_damage(mixed, manifest) == {}
    shown = CliRunner().invoke(main, ["inspect", str(mixed), "--json"])
    facts = json.loads(shown.output)
    assert facts["bits"] == {"asked": BITS, "reached": manifest.bits.reached}
    assert facts["expert_formats"]["1"] == manifest.experts[0].histogram
    table = CliRunner().invoke(main, ["inspect", str(mixed)]).output
    assert "per expert weight, asked for 6.5" in table


@pytest.mark.parametrize("kernels", KERNELS)
@torch.no_grad()
def test_logits_are_those_of_the_stored_weights(
    tiny_checkpoint: Path, mixed: Path, kernels: str
) -> None:
    manifest = read_manifest(mixed)
    model = load_decoder(tiny_checkpoint)
    for page in manifest.pages():
        expert = model.layers[page.key.layer].experts[page.key.expert]
        for name, weight in stored(mixed, page).items():
            getattr(expert, name).weight.copy_(weight)
    expected = model(torch.tensor([TOKENS]))[0].numpy()
    apart = np.abs(run(mixed, kernels) - expected).max(axis=1) / np.abs(expected).max()
    # The native kernels round activations to int8, which may send a token to other experts.
    assert (apart.max() < 1e-4) if kernels == "onnxruntime" else (np.median(apart) < 0.01)


@pytest.mark.parametrize("kernels", KERNELS)
def test_paged_is_resident_to_the_byte(
    mixed: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = run(mixed, kernels)
    plan = loading.plan_memory
    for slots in (1, 3, 7):

        def few(*args: object, slots: int = slots, **kwargs: object) -> budget.MemoryPlan:
            return dataclasses.replace(plan(*args, **kwargs), slots=slots)  # type: ignore[arg-type]

        monkeypatch.setattr(loading, "plan_memory", few)
        assert run(mixed, kernels).tobytes() == resident.tobytes()


def test_a_budget_counts_pages_at_their_own_size(mixed: Path) -> None:
    manifest = read_manifest(mixed)
    with pocketmoe.open(mixed) as session:
        plan = session.plan
    assert plan.slots * plan.page < manifest.expert_bytes + manifest.num_pages
    assert plan.fewest * plan.page >= 3 * manifest.page_bytes


def test_routes_have_the_bytes_of_each_page(mixed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(mixed)
    with pocketmoe.open(mixed, record_routes=tmp_path / "routes.csv") as session:
        session.forward(TOKENS[:40])
        for token in TOKENS[40:]:
            session.forward([token])
    lines = (tmp_path / "routes.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if line[:1].isdigit()]
    sizes = {page.key: page.nbytes for page in manifest.pages()}
    read = {(int(r[3]), int(r[5])): int(r[8]) for r in rows if int(r[8])}
    assert read == {(k.layer, k.expert): n for k, n in sizes.items() if (k.layer, k.expert) in read}
    assert len(set(read.values())) > 2
    replayed = CliRunner().invoke(
        main, ["replay", str(tmp_path / "routes.csv"), "--memory-budget", "100KiB"]
    )
    assert replayed.exit_code == 0, replayed.output


def damaged(manifest: Manifest, **changes: object) -> dict[str, object]:
    return {**json.loads(json.dumps(manifest.experts[0].to_json())), **changes}


def test_formats_that_do_not_go_together_are_refused(mixed: Path, tiny_bundle: Path) -> None:
    manifest = read_manifest(mixed)
    layer = manifest.experts[0]
    assert expert_layer_from_json(damaged(manifest)) == layer
    formats = [item.to_json() for item in layer.formats]
    wider = [{**formats[0], "intermediate_size": 128}, *formats[1:]]
    for changes in (
        {"kinds": [0] * 3}, {"kinds": [9] * 8}, {"kinds": [-1] * 8}, {"kinds": [True] * 8},
        {"kinds": []}, {"formats": wider}, {"formats": [formats[0], *formats]},
    ):  # fmt: skip
        with pytest.raises(BundleError, match="page formats of layer 1 are damaged"):
            expert_layer_from_json(damaged(manifest, **changes))
    # One format alone is written as it always was.
    uniform = read_manifest(tiny_bundle).experts[0].to_json()
    assert "format" in uniform
    assert not {"formats", "kinds"} & set(uniform)


def test_what_takes_one_format_alone_says_so(mixed: Path) -> None:
    with pytest.raises(BundleError, match=r"layer 1 .* several formats.*without --bits"):
        _ = read_manifest(mixed).experts[0].format


def test_a_manifest_survives_writing(mixed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(mixed)
    bare = replace(manifest, files={}, segments=())
    write_manifest(tmp_path, bare)
    text = (tmp_path / "manifest.json").read_text()
    assert json.loads(text)["bits"]["asked"] == BITS


def test_the_record_has_errors_of_every_candidate(record: Path) -> None:
    found = read_record(record)
    assert found.candidates == ("int4/64", "int4/32", "int8/64", "fp16")
    for layer in found.layers:
        assert layer.errors.dtype == np.float32
        assert layer.errors.shape == (8, 4)
        assert (layer.errors[:, :3] > 0).all()
        # More bits, less error: of all experts together.
        assert (np.diff(layer.errors.sum(axis=0)) < 0).all()
        used = layer.errors[layer.usage > 0]
        for expert in layer.unused:
            assert np.allclose(layer.errors[expert], used.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "4.25"], "--bits 4.25 needs --calibration"),
        (["--bits", "3", "--calibration"], "--bits 3 cannot be met: .* from 4.25 to 16 bits"),
        (["--bits", "5", "--precision", "int8", "--calibration"], "and so does --precision int8"),
        (["--bits", "5", "--precision", "backbone=int8,experts=int4", "--calibration"],
         "and so does --precision experts=int4"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(
    tiny_checkpoint: Path, record: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [*arguments, str(record)] if arguments[-1] == "--calibration" else arguments
    out = tmp_path / "out"
    command = ["compile", str(tiny_checkpoint), "--target", "cpu", "-o", str(out), *given]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert re.search(message, line)
    assert not out.exists()


def test_for_a_gpu_each_layer_has_one_format_and_its_own_graphs(
    tiny_checkpoint: Path, record: Path, tmp_path: Path
) -> None:
    target = find_target("rtx-4060-8gb")
    out = tmp_path / "gpu"
    manifest = compile_bundle(
        tiny_checkpoint, out, target=target, precision=parse_precision([BACKBONE], 32, target),
        calibration=Calibration(record, uneven(read_record(record)), "rtn", signed=True), bits=9,
    )  # fmt: skip
    assert manifest.graphs is not None
    formats = [layer.format for layer in manifest.experts]
    assert len(set(formats)) > 1
    graphs = {item.layer: item.expert for item in manifest.graphs.layers}
    for layer in manifest.experts:
        same = {graphs[other.layer] for other in manifest.experts if other.format == layer.format}
        assert same == {graphs[layer.layer]}
    assert len(set(graphs.values())) == len(set(formats))
    assert manifest.bits is not None
    assert manifest.bits.reached <= 9
