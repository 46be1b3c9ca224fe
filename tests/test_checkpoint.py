"""Checkpoints in every stored form are read; a damaged one is answered by naming what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketmoe.errors import CheckpointError, ConfigError
from pocketmoe.model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, write_checkpoint
from pocketmoe.model.parameters import parameter_shapes

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
