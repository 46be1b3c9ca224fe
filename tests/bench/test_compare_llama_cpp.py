"""bench/peers/compare_llama_cpp.py: all of it that needs no llama.cpp."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.lib.stored_tensors import stored_tensors
from pocketmoe.bench.make_checkpoint import make_checkpoint
from pocketmoe.bench.peers import compared_files, gguf_file
from pocketmoe.bench.peers.compare_llama_cpp import agree, read_names
from pocketmoe.bench.peers.comparison import ComparedRun, Comparison, as_json, figures, tables
from pocketmoe.bench.peers.limit_model import Bandwidths, measure_storage
from pocketmoe.bench.peers.side_runs import SideRequest, SideRun, median, parse_result, run_side
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.errors import InputError
from pocketmoe.model.train.corpus import train_tokenizer

SMALL = {
    **with_layers(SHAPES["olmoe-1b-7b"], 2), "vocab_size": 96, "hidden_size": 64,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "olmoe"
    make_checkpoint(SMALL, path)
    return path


def side_run(limit: int | None = None, **result: Any) -> SideRun:
    request = SideRequest("model", threads=2, context=1024, long_prompt=128)
    return SideRun(request, result, limit, killed=False, peak=None, exit_code=0, error="")


def compared(*rows: ComparedRun) -> Comparison:
    """Memory gives 100 bytes per second and storage 10, before and after together."""
    return Comparison(
        bundle="b", manifest_sha256="0", bundle_bytes=1, gguf_bytes=1, pages=4, threads=2,
        context=1024, seed=0, agreement=None, before=Bandwidths(90, 12), after=Bandwidths(110, 8),
        resident=50, rows=rows,
    )  # fmt: skip


def test_every_tensor_of_the_shape_is_named_once() -> None:
    """A tensor that was left out or taken twice would be another model."""
    sources = [name for tensor in gguf_file.gguf_tensors(16, 64) for name in tensor.sources]
    assert sorted(sources) == sorted(t.name for t in stored_tensors(SHAPES["olmoe-1b-7b"]))


def test_norms_and_routers_alone_are_not_quantized() -> None:
    plain = {tensor.name for tensor in gguf_file.gguf_tensors(1, 2) if not tensor.quantized}
    assert plain == {
        "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight",
        "blk.0.attn_k_norm.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_gate_inp.weight",
    }  # fmt: skip


def test_rows_are_read_as_stored(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr(gguf_file, "BLOCK_ROWS", 40)
    stored = gguf_file.read_headers(checkpoint)["model.embed_tokens.weight"]
    blocks = list(gguf_file.read_rows(stored))
    expected = load_file(stored.file)["model.embed_tokens.weight"].float().numpy()
    assert [len(block) for block in blocks] == [40, 40, 16]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "norm_topk_prob": True}))
    with pytest.raises(gguf_file.ConversionError, match="norm_topk_prob is True"):
        gguf_file.read_config(tmp_path)


def test_the_gguf_holds_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from safetensors.torch import load_file

    out = tmp_path / "out.gguf"
    assert gguf_file.write_gguf(checkpoint, out) == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert set(tensors) == {t.name for t in gguf_file.gguf_tensors(2, 4)}
    stored = load_file(next(checkpoint.glob("*.safetensors")))
    found = tensors["blk.1.ffn_down_exps.weight"]
    values = gguf.quants.dequantize(found.data, found.tensor_type).reshape(4, 64, 32)
    for expert in range(4):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        expected = stored[name].float().numpy()
        assert np.abs(values[expert] - expected).max() < np.abs(expected).max() / 7


def test_an_f32_gguf_holds_the_checkpoint_and_its_vocabulary(
    checkpoint: Path, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from safetensors.torch import load_file

    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    tokenizer = train_tokenizer(["def main():\n    return 0\n"], 300)
    tokenizer.save(str(copy / "tokenizer.json"))
    out = tmp_path / "out.gguf"
    gguf_file.write_gguf(copy, out, f32=True)
    reader = gguf.GGUFReader(out)
    stored = load_file(next(checkpoint.glob("*.safetensors")))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in gguf_file.gguf_tensors(2, 4):
        expected = np.stack([stored[name].float().numpy() for name in tensor.sources])
        np.testing.assert_array_equal(tensors[tensor.name].data.ravel(), expected.ravel())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [tokenizer.id_to_token(number) for number in range(SMALL["vocab_size"])]
    assert reader.fields["tokenizer.ggml.token_type"].contents()[:2] == [3, 1]


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(gguf_file.ConversionError, match="no byte-level BPE"):
        gguf_file.add_vocabulary(None, tmp_path / "tokenizer.json", 1)


def test_a_python_without_llama_cpp_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gguf.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=r"not here.*CMAKE_ARGS='-DGGML_NATIVE=OFF.*pip install"):
        compared_files.check_llama_python(sys.executable)
    with pytest.raises(InputError, match="--llama-python"):
        compared_files.check_llama_python(str(tmp_path / "no-python"))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ('{"steps": 3}\n', {"steps": 3}),
        ('a word\n{"steps": 1}\n{"steps": 2}\nthe end\n[1]\n', {"steps": 2}),
        ('{"steps": ', {}),
        ("", {}),
    ],
)
def test_the_last_object_that_a_run_prints_counts(text: str, result: dict[str, int]) -> None:
    assert parse_result(text) == result


def test_a_run_of_pocketmoe(tiny_bundle: Path) -> None:
    request = SideRequest(str(tiny_bundle), 1, 64, prompt=8, new=4, long_prompt=16, warm=True)
    run = run_side(sys.executable, "pocketmoe_run.py", request, None)
    assert run.exit_code == 0, run.error
    assert run.result["steps"] == 4
    assert run.hit_rate == 1  # the same tokens were run before
    assert run.missed_bytes == run.result["long_prompt_bytes"] == 0
    assert run.decode_speed is not None
    assert run.long_prompt_speed is not None


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    run = run_side(sys.executable, "pocketmoe_run.py", SideRequest(str(tmp_path), 1, 64), None)
    assert run.exit_code != 0
    assert run.result == {}
    assert str(tmp_path) in run.error


def test_the_limit_is_the_slower_of_memory_and_storage() -> None:
    bandwidths = Bandwidths(memory=100, storage=10)
    assert bandwidths.token_seconds(resident=50, missed=0) == 0.5
    assert bandwidths.token_seconds(resident=50, missed=20) == 2
    assert bandwidths.mean(Bandwidths(300, 20)) == Bandwidths(200, 15)


def test_bandwidths_that_changed_are_told() -> None:
    assert compared().drift == pytest.approx(0.4)  # storage: from 12 to 8


def test_figures_of_a_row() -> None:
    ours = side_run(
        steps=10, decode_seconds=40.0, decode_bytes=200, decode_hits=3, decode_misses=1,
        long_prompt_seconds=64.0, long_prompt_bytes=480, prompt_seconds=12.0, prompt_bytes=100,
    )  # fmt: skip
    row = ComparedRun("2000 MiB", 2000, (ours,), (side_run(steps=2, decode_seconds=80.0),))
    found = figures(compared(row), row)
    assert found["decode_ratio"] == 10
    assert found["limit"] == 0.5  # 20 bytes missed at 10 per second
    assert found["share_of_limit"] == 0.5
    assert found["hit_rate"] == 0.75
    assert found["long_prompt"] == 2
    assert found["long_prompt_share"] == 0.75
    assert found["first_over_reading"] == 1.2
    assert found["ended"] == "well"


def test_a_killed_side_has_no_figures() -> None:
    killed = SideRun(SideRequest("model", 2, 1024), {}, 1, True, 1, -9, "")
    row = ComparedRun("2000 MiB", 2000, (side_run(steps=1, decode_seconds=1.0),), (killed,))
    found = figures(compared(row), row)
    assert found["llama_cpp_ended"] == "killed"
    assert found["llama_cpp_decode"] is None
    assert found["decode_ratio"] is None


def test_published_figures_are_labelled_as_not_of_this_run() -> None:
    row = ComparedRun("2000 MiB", 2000, (side_run(steps=42, decode_seconds=10.0),), ())
    *_, last = tables(compared(row))
    assert "another run of another day" in last.title
    assert last.rows == [["2000 MiB", "4.20", "4.20", "1.00 ×"]]
    assert json.loads(json.dumps(as_json(compared(row))))["figures"][0]["decode"] == 4.2


def test_a_prompt_s_row_has_no_published_figure() -> None:
    decoded = ComparedRun("2000 MiB", 2000, (side_run(steps=42, decode_seconds=10.0),), ())
    read = side_run(long_prompt_seconds=1.0, long_prompt_bytes=1)
    prompt = ComparedRun("prompt", 2000, (read,), (), decodes=False)
    one = side_run(steps=1, decode_seconds=1.0, prompt_bytes=1)
    first = ComparedRun("first", 2000, (one,), (), decodes=False)
    for rows in ((decoded, prompt, first), (first, prompt, decoded)):
        *_, last = tables(compared(*rows))
        assert last.rows == [["2000 MiB", "4.20", "4.20", "1.00 ×"]]


def test_median_leaves_out_what_is_missing() -> None:
    assert median([1.0, None, 3.0]) == 2
    assert median([None]) is None


def test_agreement_of_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 50), np.float32)
    same = agree(logits, 2 * logits)
    assert same.correlation == pytest.approx(1)
    assert same.top1 == 1
    assert abs(agree(logits, logits[::-1]).correlation) < 0.9


def test_rows_by_name() -> None:
    assert read_names("memory, 2000,first") == ["memory", "2000", "first"]
    with pytest.raises(click.BadParameter, match="'2GiB' is none of"):
        read_names("2GiB")


def test_storage_is_measured(tiny_bundle: Path) -> None:
    try:
        assert measure_storage(tiny_bundle, read_manifest(tiny_bundle), seconds=0.1) > 0
    except InputError as error:
        pytest.skip(str(error))
