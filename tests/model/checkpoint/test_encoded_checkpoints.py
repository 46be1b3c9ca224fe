"""Whole checkpoints with encoded matrices, held against plain ones."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketmoe.errors import CheckpointError, ConfigError
from pocketmoe.model.checkpoint.checkpoint import SINGLE_FILE, Checkpoint
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.parameters import parameter_shapes
from pocketmoe.tests.support.quantized import (
    AWQ,
    FP8,
    GPTQ,
    MXFP4,
    Config,
    Tensors,
    compressed,
    pack,
)

Encode = Callable[[str, torch.Tensor], Tensors]


def to_fp8(name: str, weight: torch.Tensor) -> Tensors:
    scale = weight.abs().amax() / 448
    return {
        f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn),
        f"{name}.weight_scale_inv": scale.reshape(1, 1),
        f"{name}.input_scale": torch.tensor(1.0),
    }


def to_mxfp4(name: str, weight: torch.Tensor) -> Tensors:
    table = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat([table, -table])
    blocks = weight.unflatten(1, (-1, 32))
    exponents = blocks.abs().amax(-1).log2().floor() - 2
    scaled = blocks / 2 ** exponents[..., None]
    nibbles = (scaled[..., None] - table).abs().argmin(-1).to(torch.uint8)
    return {
        f"{name}_blocks": nibbles[..., 0::2] | (nibbles[..., 1::2] << 4),
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }


def asymmetric(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Values `[out, in]`, zeros and scales `[out, groups]` of 4 bits in groups of 32."""
    blocks = weight.unflatten(1, (-1, 32))
    least, most = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scales = ((most - least) / 15).half()
    zeros = (-least / scales).round()
    values = (blocks / scales[..., None] + zeros[..., None]).round().clamp(0, 15).flatten(1)
    return values.numpy(), zeros.numpy(), scales


def to_gptq(name: str, weight: torch.Tensor) -> Tensors:
    values, zeros, scales = asymmetric(weight)
    return {
        f"{name}.qweight": pack(values).T, f"{name}.qzeros": pack(zeros.T),
        f"{name}.scales": scales.T, f"{name}.bias": torch.zeros(len(weight)),
        f"{name}.g_idx": (torch.arange(weight.shape[1]) // 32).int(),
    }  # fmt: skip


def to_awq(name: str, weight: torch.Tensor) -> Tensors:
    values, zeros, scales = asymmetric(weight)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def interleaved(array: np.ndarray) -> torch.Tensor:
        return pack(array.reshape(len(array), -1, 8)[..., order].reshape(array.shape))

    return {
        f"{name}.qweight": interleaved(values.T), f"{name}.qzeros": interleaved(zeros.T),
        f"{name}.scales": scales.T,
    }  # fmt: skip


def to_compressed(name: str, weight: torch.Tensor) -> Tensors:
    values, zeros, scales = asymmetric(weight)
    return {
        f"{name}.weight_packed": pack(values), f"{name}.weight_zero_point": pack(zeros.T).T,
        f"{name}.weight_scale": scales, f"{name}.weight_shape": torch.tensor(weight.shape),
    }  # fmt: skip


def encode_checkpoint(path: Path, section: Config, encode: Encode) -> None:
    """Encodes the experts and projections of a checkpoint in place."""
    tensors: Tensors = {}
    for name, tensor in load_file(path / SINGLE_FILE).items():
        module = name.removesuffix(".weight")
        if ".experts." in name or name.endswith("_proj.weight"):
            tensors |= encode(module, tensor)
        else:
            tensors[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / SINGLE_FILE)
    change_section(path, section)


def change_section(path: Path, section: Config | None) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": section}))


@pytest.fixture
def plain(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may encode."""
    path = tmp_path / "encoded"
    path.mkdir()
    for file in tiny_checkpoint.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


ENCODINGS: Mapping[str, tuple[Config, Encode, float]] = {
    "fp8": (FP8, to_fp8, 0.05),
    "mxfp4": (MXFP4, to_mxfp4, 0.3),
    "gptq": (GPTQ, to_gptq, 0.15),
    "awq": (AWQ, to_awq, 0.15),
    "compressed-tensors": (compressed({"symmetric": False}), to_compressed, 0.15),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encoded_checkpoint_is_the_plain_one(
    name: str, plain: Path, tiny_checkpoint: Path
) -> None:
    section, encode, limit = ENCODINGS[name]
    encode_checkpoint(plain, section, encode)
    encoded, original = Checkpoint(plain), Checkpoint(tiny_checkpoint)
    encoded.check_leftovers()
    assert encoded.encoding == name
    assert set(encoded.dtypes.values()) == {"F32", name}
    assert encoded.spec == original.spec
    assert encoded.stored_bytes() < original.stored_bytes()
    with encoded.tensors() as ours, original.tensors() as theirs:
        for parameter, shape in parameter_shapes(encoded.spec).items():
            found, expected = ours.read(parameter), theirs.read(parameter)
            assert found.shape == shape
            error = (found - expected).norm() / expected.norm()
            if encoded.dtypes[parameter] == "F32":
                assert error == 0
            else:
                assert 0 < error < limit
            tiles = list(ours.tiles(parameter, max_bytes=1000))
            assert torch.equal(torch.cat(tiles), found)


def test_gpt_oss_as_published(tmp_path: Path) -> None:
    """Experts are [experts, in, out] in bf16 and [experts, out, in / 32, 16] in MXFP4."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**FAMILIES["gpt_oss"].tiny)
    model = transformers.AutoModelForCausalLM.from_config(config)
    plain_path, encoded_path = tmp_path / "plain", tmp_path / "encoded"
    for path in (plain_path, encoded_path):
        model.save_pretrained(path)
    tensors: Tensors = {}
    for name, tensor in load_file(plain_path / SINGLE_FILE).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            parts = [to_mxfp4(name, expert.T.float()) for expert in tensor]
            tensors |= {part: torch.stack([p[part] for p in parts]) for part in parts[0]}
        else:
            tensors[name] = tensor
    save_file({name: t.contiguous() for name, t in tensors.items()}, encoded_path / SINGLE_FILE)
    change_section(encoded_path, MXFP4)
    encoded, plain = Checkpoint(encoded_path), Checkpoint(plain_path)
    with encoded.tensors() as ours, plain.tensors() as theirs:
        for parameter in parameter_shapes(encoded.spec):
            found, expected = ours.read(parameter).float(), theirs.read(parameter).float()
            is_encoded = ".experts." in parameter and parameter.endswith("weight")
            assert (encoded.dtypes[parameter] == "mxfp4") == is_encoded
            assert (found - expected).norm() <= (0.3 if is_encoded else 0) * expected.norm()


def refusal(path: Path) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        Checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_encoded_without_saying_so(plain: Path) -> None:
    encode_checkpoint(plain, FP8, to_fp8)
    change_section(plain, None)
    assert "stored as F8_E4M3; pocketmoe reads F32, F16, BF16" in refusal(plain)


def test_another_encoding_than_said(plain: Path) -> None:
    encode_checkpoint(plain, AWQ, to_awq)
    change_section(plain, {**GPTQ, "group_size": 64})
    message = refusal(plain)
    assert "q_proj.qweight has shape [64, 8], but config.json says [8, 64]" in message


def test_a_missing_part(plain: Path) -> None:
    encode_checkpoint(plain, AWQ, lambda *matrix: dict(list(to_awq(*matrix).items())[:-1]))
    message = refusal(plain)
    assert ".scales is missing; config.json asks for it" in message


def test_a_part_of_another_type(plain: Path) -> None:
    encode_checkpoint(
        plain, GPTQ, lambda *m: {k: v.double() if "scales" in k else v
                                 for k, v in to_gptq(*m).items()}
    )  # fmt: skip
    assert "is stored as F64; pocketmoe reads F32, F16, BF16 for gptq" in refusal(plain)


def test_a_bias_that_is_not_zero(plain: Path) -> None:
    encode_checkpoint(
        plain, GPTQ, lambda *m: {k: v + 1 if k.endswith("bias") else v
                                 for k, v in to_gptq(*m).items()}
    )  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(plain).check_leftovers()
    message = str(caught.value)
    assert ".bias [" in message
    assert "has no place in the model" in message
