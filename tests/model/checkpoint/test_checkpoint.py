"""Checkpoints in every stored form are read; a damaged one is answered by naming what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketmoe.analysis.inspection.inspect import inspect_path
from pocketmoe.bundle.manifest import Precision
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.errors import CheckpointError, ConfigError, InputError
from pocketmoe.model.checkpoint.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.parameters import expert_prefix, parameter_shapes
from pocketmoe.model.train.checkpoint_writer import write_checkpoint
from pocketmoe.tables.model import fact_rows
from pocketmoe.targets import find_target

SHARDS = 3
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    path = tmp_path / "tiny"
    shutil.copytree(tiny_checkpoint, path)
    return path


def shard_name(number: int) -> str:
    return f"model-{number:05}-of-{SHARDS:05}.safetensors"


def shard(path: Path) -> None:
    """Splits model.safetensors into three files and an index."""
    tensors = load_file(path / SINGLE_FILE)
    parts: list[Tensors] = [{} for _ in range(SHARDS)]
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[number % SHARDS][name] = tensor
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        save_file(part, path / shard_name(number))
        weight_map |= dict.fromkeys(part, shard_name(number))
    (path / SINGLE_FILE).unlink()
    (path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_tensors(path: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(path / SINGLE_FILE)
    change(tensors)
    save_file(tensors, path / SINGLE_FILE)


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def refusal(path: Path) -> str:
    """The one-line message of the error that opening `path` raises."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        Checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")],
    ids=["fp32", "fp16", "bf16"],
)
def test_every_stored_form(
    checkpoint: Path, sharded: bool, dtype: torch.dtype, stored: str
) -> None:
    original = load_file(checkpoint / SINGLE_FILE)

    def cast(tensors: Tensors) -> None:
        tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}

    change_tensors(checkpoint, cast)
    if sharded:
        shard(checkpoint)
    opened = Checkpoint(checkpoint)
    assert set(opened.dtypes.values()) == {stored}
    assert opened.stored_bytes() == sum(t.numel() * dtype.itemsize for t in original.values())
    with opened.tensors() as reader:
        for name, shape in parameter_shapes(opened.spec).items():
            tensor = reader.read(name)
            assert tuple(tensor.shape) == shape
            assert torch.equal(tensor, original[name].to(dtype))


def test_mixed_types_are_read(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda t: t.update({"norm.weight": t["norm.weight"].half()}))
    assert Checkpoint(checkpoint).dtypes["norm.weight"] == "F16"


def test_what_is_written_is_read(checkpoint: Path, tmp_path: Path) -> None:
    opened = Checkpoint(checkpoint)
    with opened.tensors() as reader:
        parameters = {name: reader.read(name) for name in parameter_shapes(opened.spec)}
    copy = tmp_path / "copy"
    write_checkpoint(copy, opened.config, parameters, {"tokenizer.json": "{}"})
    assert sorted(file.name for file in copy.iterdir()) == [
        "config.json", SINGLE_FILE, "tokenizer.json",
    ]  # fmt: skip
    assert Checkpoint(copy).spec == opened.spec
    assert (copy / SINGLE_FILE).read_bytes() == (checkpoint / SINGLE_FILE).read_bytes()


def test_generation_config_ends_the_text(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [3, 4], "top_p": 0.9}')
    assert Checkpoint(checkpoint).spec.eos_token_ids == (3, 4)


@pytest.mark.parametrize("value", ["2", 1.5, True, [2, None], {"id": 2}], ids=str)
def test_a_generation_config_with_other_ids(checkpoint: Path, value: object) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    message = refusal(checkpoint)
    assert f": generation_config.json: eos_token_id = {value!r} is not supported" in message


def test_no_directory(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")
    file = tmp_path / "weights.safetensors"
    file.touch()
    assert "weights.safetensors is a file" in refusal(file)


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).unlink()
    message = refusal(checkpoint)
    assert SINGLE_FILE in message
    assert INDEX_FILE in message


def test_a_missing_shard(checkpoint: Path) -> None:
    shard(checkpoint)
    (checkpoint / shard_name(2)).unlink()
    assert f"{shard_name(2)} is missing" in refusal(checkpoint)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999], ids=str)
def test_a_truncated_shard(checkpoint: Path, kept: float) -> None:
    shard(checkpoint)
    file = checkpoint / shard_name(2)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    message = refusal(checkpoint)
    assert f"{shard_name(2)} cannot be read" in message
    assert "truncated" in message


def test_a_shard_that_is_no_safetensors_file(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).write_bytes(b"<html>not found</html>" * 99)
    assert f"{SINGLE_FILE} cannot be read" in refusal(checkpoint)


def test_a_wrong_shape(checkpoint: Path) -> None:
    name = "layers.1.experts.3.up.weight"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(64, 32)}))
    message = refusal(checkpoint)
    assert SINGLE_FILE in message
    assert f"{name} has shape [64, 32], but config.json says [64, 64]" in message


def test_a_missing_tensor(checkpoint: Path) -> None:
    name = "layers.2.router.weight"
    change_tensors(checkpoint, lambda tensors: tensors.__delitem__(name))
    assert f"tensor {name} is missing" in refusal(checkpoint)


def test_a_tensor_that_only_the_index_has(checkpoint: Path) -> None:
    name = "layers.2.router.weight"
    change_tensors(checkpoint, lambda tensors: tensors.__delitem__(name))
    shard(checkpoint)
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    index["weight_map"][name] = shard_name(1)
    (checkpoint / INDEX_FILE).write_text(json.dumps(index))
    message = refusal(checkpoint)
    assert f"tensor {name} is missing" in message
    assert shard_name(1) in message


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float64, "F64"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_an_unknown_dtype(checkpoint: Path, dtype: torch.dtype, stored: str) -> None:
    change_tensors(checkpoint, lambda t: t.update({"norm.weight": t["norm.weight"].to(dtype)}))
    message = refusal(checkpoint)
    assert f"tensor norm.weight is stored as {stored}" in message
    assert "F32, F16, BF16" in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0", '{"weight_map": 3}', '{"metadata": {}}'])
def test_a_damaged_index(checkpoint: Path, text: str) -> None:
    shard(checkpoint)
    (checkpoint / INDEX_FILE).write_text(text)
    assert INDEX_FILE in refusal(checkpoint)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "..", ".", "", 7])
def test_an_index_that_leaves_its_folder(checkpoint: Path, file: object) -> None:
    shard(checkpoint)
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    index["weight_map"]["norm.weight"] = file
    (checkpoint / INDEX_FILE).write_text(json.dumps(index))
    assert INDEX_FILE in refusal(checkpoint)


def test_no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json is missing" in refusal(checkpoint)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object(checkpoint: Path, data: bytes) -> None:
    (checkpoint / "config.json").write_bytes(data)
    assert "config.json" in refusal(checkpoint)


def test_an_unknown_family(checkpoint: Path) -> None:
    change_config(checkpoint, model_type="mixtrel")
    message = refusal(checkpoint)
    assert "model_type = 'mixtrel'" in message
    assert "did you mean mixtral?" in message


@pytest.mark.parametrize("model_type", [None, 3, ["mixtral"], {"name": "mixtral"}])
def test_a_family_that_is_no_name(checkpoint: Path, model_type: object) -> None:
    change_config(checkpoint, model_type=model_type)
    assert "model_type" in refusal(checkpoint)


def test_a_refused_value_names_the_checkpoint(checkpoint: Path) -> None:
    change_config(checkpoint, hidden_act="gelu")
    message = refusal(checkpoint)
    assert str(checkpoint) in message
    assert "hidden_act = 'gelu'" in message


def test_a_shard_that_shrinks_after_opening(checkpoint: Path) -> None:
    opened = Checkpoint(checkpoint)
    (checkpoint / SINGLE_FILE).write_bytes(b"")
    with opened.tensors() as reader, pytest.raises(CheckpointError, match=SINGLE_FILE):
        reader.read("norm.weight")


def test_reads_from_many_threads(checkpoint: Path) -> None:
    shard(checkpoint)
    opened = Checkpoint(checkpoint)
    names = list(parameter_shapes(opened.spec)) * 5
    with opened.tensors() as reader:
        expected = {name: reader.read(name) for name in names}
    with opened.tensors() as reader, ThreadPoolExecutor(8) as pool:
        for name, found in zip(names, pool.map(reader.read, names), strict=True):
            assert torch.equal(found, expected[name])


@pytest.mark.parametrize(
    "name",
    ["layers.0.attention.q_proj.bias", "layers.4.ffn_norm.weight", "layers.0.norm.weight",
     "layers.1.experts.8.up.weight"],
)  # fmt: skip
def test_a_tensor_that_nothing_asks_for(checkpoint: Path, name: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(64)}))
    message = refusal(checkpoint)
    assert SINGLE_FILE in message
    assert f"tensor {name} [64] has no place in the model that config.json describes" in message


def test_fewer_layers_than_there_are(checkpoint: Path) -> None:
    change_config(checkpoint, num_hidden_layers=3)
    assert "tensor layers.3." in refusal(checkpoint)


def test_tensors_without_effect(checkpoint: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["layers.0.attention.rotary_emb.inv_freq"] = torch.zeros(16)
        tensors["layers.0.attention.masked_bias"] = torch.zeros(())
        tensors["head.weight"] = tensors["embed.weight"].clone()

    change_tensors(checkpoint, add)
    opened = Checkpoint(checkpoint)
    opened.check_leftovers()
    assert opened.skipped == ()
    assert set(opened.dtypes) == set(parameter_shapes(opened.spec))


def test_a_head_that_is_tied_in_the_config_alone(checkpoint: Path) -> None:
    def untie(tensors: Tensors) -> None:
        tensors["head.weight"] = tensors["embed.weight"] + 1

    change_tensors(checkpoint, untie)
    message = "tensor head.weight .* has no place in the model"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(checkpoint).check_leftovers()
    with pytest.raises(CheckpointError, match=message):
        compile_bundle(
            checkpoint, checkpoint.parent / "out", target=find_target("cpu"),
            precision=Precision("fp32", "fp32", "fp32", 32),
        )  # fmt: skip


def test_a_head_of_another_shape_than_the_embedding_it_is_tied_to(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda t: t.update({"head.weight": t["embed.weight"][1:].clone()}))
    assert "tensor head.weight" in refusal(checkpoint)


def test_prediction_layers_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = dict(FAMILIES["deepseek_v3"].tiny)
    (prefix,) = FAMILIES["deepseek_v3"].predictors(config)
    path = tmp_path / "checkpoint"
    spec = FAMILIES["deepseek_v3"].read_config(config)
    parameters = {
        name: torch.randn(shape)
        for name, shape in parameter_shapes(spec).items()
        if name != "head.weight" or not spec.tie_word_embeddings
    }
    write_checkpoint(path, config, parameters, {})
    extra = {f"{prefix}{name}": torch.zeros(1) for name in ("eh_proj.weight", "enorm.weight")}
    change_tensors(path, lambda tensors: tensors.update({**extra, "mtp.0.norm": torch.zeros(1)}))
    lines = (
        f"multi-token prediction: {prefix.rstrip('.')} (2 tensors)",
        "multi-token prediction: mtp (1 tensor)",
    )
    assert Checkpoint(path).skipped == lines
    facts = inspect_path(path)
    assert [row for row in fact_rows(facts) if row[0] == "skipped"] == [
        ("skipped", line) for line in lines
    ]
    precision = Precision("fp32", "fp32", "fp32", 32)
    with pytest.raises(InputError):  # compiling says it before anything else
        compile_bundle(
            path, tmp_path / "out", target=find_target("cpu"), precision=precision,
            active_experts=99,
        )  # fmt: skip
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        f"{line} is not used" for line in lines
    ]


@pytest.mark.slow
def test_a_checkpoint_of_hundreds_of_gigabytes_opens(tmp_path: Path) -> None:
    """Mixtral 8x22B's shapes in 59 files that have their sizes and no blocks on the disk."""
    config = {
        **FAMILIES["mixtral"].tiny, "vocab_size": 32768, "hidden_size": 6144,
        "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48,
        "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 8,
    }  # fmt: skip
    family = FAMILIES["mixtral"]
    shapes = parameter_shapes(family.read_config(config))
    weight_map, total = {}, 0
    for number in range(59):
        header, size = {}, 0
        for parameter in list(shapes)[number::59]:
            nbytes = 2 * prod(shapes[parameter])
            header[family.locate(parameter).name] = {
                "dtype": "BF16", "shape": shapes[parameter], "data_offsets": [size, size + nbytes]
            }  # fmt: skip
            size += nbytes
        text = json.dumps(header).encode()
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(file, 8 + len(text) + size)
        weight_map |= dict.fromkeys(header, file.name)
        total += size
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = Checkpoint(tmp_path)
    assert opened.stored_bytes() == total > 250e9
    parameter = f"{expert_prefix(55, 7)}.down.weight"
    with opened.tensors() as reader:
        tile = next(reader.tiles(parameter))
    assert tile.nbytes <= 64 << 20
    assert not tile.any()


@pytest.mark.parametrize(
    "entry",
    [7, {}, {"dtype": "F32", "shape": [2], "data_offsets": [0]},
     {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
     {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
     {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
     {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
     {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}],
    ids=str,
)  # fmt: skip
def test_a_damaged_header(checkpoint: Path, entry: object) -> None:
    text = json.dumps({"norm.weight": entry}).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    (checkpoint / SINGLE_FILE).write_bytes(data)
    assert f"{SINGLE_FILE} cannot be read" in refusal(checkpoint)
