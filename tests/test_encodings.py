"""Encodings against the libraries that define them, or against packers written from the formats."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketmoe.errors import CheckpointError, ConfigError
from pocketmoe.model.checkpoint import SINGLE_FILE, Checkpoint
from pocketmoe.model.encodings import find_encoding
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.families.names import Location, Place
from pocketmoe.model.headers import read_header
from pocketmoe.model.parameters import parameter_shapes
from pocketmoe.model.tensors import Source, TensorReader

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
Encode = Callable[[str, torch.Tensor], Tensors]

FP8: Config = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
    "weight_block_size": [128, 128],
}  # fmt: skip
MXFP4: Config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
GPTQ: Config = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False,
    "checkpoint_format": "gptq_v2", "damp_percent": 0.01,
}  # fmt: skip
AWQ: Config = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
}  # fmt: skip
INT4_WEIGHTS: Config = {
    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
}  # fmt: skip


def compressed(weights: Config, format_: str = "pack-quantized", **keys: Any) -> Config:
    group = {"targets": ["Linear"], "weights": {**INT4_WEIGHTS, **weights}}
    return {
        "quant_method": "compressed-tensors", "format": format_, "ignore": ["lm_head"],
        "quantization_status": "compressed", "config_groups": {"group_0": group}, **keys,
    }  # fmt: skip


def decode(
    path: Path, section: Config, tensors: Tensors, shape: tuple[int, int], place: Place
) -> torch.Tensor:
    """The parameter of `shape` that lies in `tensors`; where they are stacked, expert 1."""
    file = path / "encoded.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    encoding = find_encoding({"quantization_config": section})
    assert encoding is not None
    headers = read_header(file)
    rows = shape[0] if place.rows == "all" else 2 * shape[0]
    matrix = encoding.find(place.name, (rows, shape[1]), headers)
    assert matrix is not None
    experts = (2,) if place.stacked else ()
    for part in matrix.parts.values():
        assert headers[part.tensor].shape == (*experts, *part.shape)
        assert headers[part.tensor].dtype in part.dtypes
    location = Location(place, place.name, 1 if place.stacked else None)
    parts = {key: headers[part.tensor] for key, part in matrix.parts.items()}
    with TensorReader({"w": Source(shape, location, parts, matrix)}) as reader:
        return reader.read("w")


def decode_plain(path: Path, section: Config, tensors: Tensors, shape: tuple[int, int]) -> Any:
    return decode(path, section, tensors, shape, Place("w.weight"))


def pack(values: np.ndarray, bits: int = 4) -> torch.Tensor:
    """Unsigned values `[..., n]` as int32 `[..., n · bits / 32]`, lowest bits first."""
    grouped = values.astype(np.uint32).reshape(*values.shape[:-1], -1, 32 // bits)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = np.bitwise_or.reduce(grouped << shifts, axis=-1)
    return torch.from_numpy(words.view(np.int32).copy())


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, bits: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape)


class TestFp8:
    def encode(self, rows: int, columns: int, scale_dtype: torch.dtype) -> Tensors:
        scales = random(-(-rows // 128), -(-columns // 128), seed=1).abs() + 0.1
        return {
            "w.weight": random(rows, columns).to(torch.float8_e4m3fn),
            "w.weight_scale_inv": scales.to(scale_dtype),
        }

    @pytest.mark.parametrize("shape", [(256, 384), (128, 64), (320, 200)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_blocks(self, shape: tuple[int, int], dtype: torch.dtype, tmp_path: Path) -> None:
        reference = pytest.importorskip("transformers.integrations.finegrained_fp8")
        tensors = self.encode(*shape, dtype)
        expected = reference._dequantize_fp8_weight(
            tensors["w.weight"], tensors["w.weight_scale_inv"], [128, 128], torch.float32
        )
        assert torch.equal(decode_plain(tmp_path, FP8, tensors, shape), expected)

    def test_scales_that_are_powers_of_two(self, tmp_path: Path) -> None:
        tensors = self.encode(128, 256, torch.float8_e8m0fnu)
        scales = tensors["w.weight_scale_inv"].float().repeat_interleave(128, 1)
        found = decode_plain(tmp_path, {**FP8, "scale_fmt": "ue8m0"}, tensors, (128, 256))
        assert torch.equal(found, tensors["w.weight"].float() * scales)

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
    @pytest.mark.parametrize("name", ["w.weight_scale", "w.weight_scale_inv"])
    def test_one_scale_for_the_matrix(
        self, shape: tuple[int, ...], name: str, tmp_path: Path
    ) -> None:
        weight = random(192, 160).to(torch.float8_e4m3fn)
        tensors = {"w.weight": weight, name: torch.full(shape, 0.3)}
        section = {"quant_method": "fp8", "activation_scheme": "static"}
        found = decode_plain(tmp_path, section, tensors, (192, 160))
        assert torch.equal(found, weight.float() * torch.tensor(0.3))

    def test_stacked_experts_in_halves(self, tmp_path: Path) -> None:
        weight = random(2, 256, 128).to(torch.float8_e4m3fn)
        scales = random(2, 2, 1, seed=1)
        found = decode(
            tmp_path, FP8, {"w.weight": weight, "w.weight_scale_inv": scales}, (128, 128),
            Place("w.weight", stacked=True, rows="second"),
        )  # fmt: skip
        assert torch.equal(found, weight[1, 128:].float() * scales[1, 1])


class TestMxfp4:
    def tensors(self) -> Tensors:
        return {
            "w_blocks": torch.from_numpy(integers(2, 64, 3, 16, bits=8).astype(np.uint8)),
            "w_scales": torch.from_numpy((integers(2, 64, 3) + 118).astype(np.uint8)),
        }

    @pytest.mark.parametrize(
        ("rows", "chosen"), [("all", slice(None)), ("even", slice(0, None, 2)),
                             ("odd", slice(1, None, 2))]
    )  # fmt: skip
    def test_against_transformers(self, rows: Any, chosen: slice, tmp_path: Path) -> None:
        reference = pytest.importorskip("transformers.integrations.mxfp4")
        tensors = self.tensors()
        expected = reference.convert_moe_packed_tensors(
            tensors["w_blocks"], tensors["w_scales"], dtype=torch.float32
        )
        # transformers returns [experts, in, out].
        wanted = expected[1].T[chosen]
        place = Place("w", stacked=True, rows=rows, transposed=True)
        found = decode(tmp_path, MXFP4, tensors, (len(wanted), 96), place)
        assert torch.equal(found, wanted)

    def test_every_exponent(self, tmp_path: Path) -> None:
        scales = torch.arange(255, dtype=torch.uint8).reshape(255, 1)
        blocks = torch.full((255, 1, 16), 0x2A, dtype=torch.uint8)  # -1, 1
        found = decode_plain(
            tmp_path, MXFP4, {"w_blocks": blocks, "w_scales": scales}, (255, 32)
        )  # fmt: skip
        assert torch.equal(found[:, 1].double(), 2.0 ** (torch.arange(255).double() - 127))
        assert torch.equal(found[:, 0], -found[:, 1])


class TestGptq:
    def tensors(self, bits: int, groups: np.ndarray, stored_zeros: np.ndarray) -> Tensors:
        return {
            "w.qweight": pack(integers(48, 64, bits=bits), bits).T,  # [in · bits / 32, out]
            "w.qzeros": pack(stored_zeros, bits),
            "w.scales": random(len(stored_zeros), 48, seed=2).half(),
            "w.g_idx": torch.from_numpy(groups.astype(np.int32)),
        }

    def expected(self, tensors: Tensors, bits: int, zeros: np.ndarray) -> torch.Tensor:
        groups = tensors["w.g_idx"].numpy()
        scales = tensors["w.scales"].float().numpy().T
        values = integers(48, 64, bits=bits) - zeros.T[:, groups]
        return torch.from_numpy(values.astype(np.float32) * scales[:, groups])

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize(("version", "offset"), [("gptq", 1), ("gptq_v2", 0)])
    @pytest.mark.parametrize("ordered", [True, False])
    def test_formats(
        self, bits: int, version: str, offset: int, ordered: bool, tmp_path: Path
    ) -> None:
        groups = np.arange(64) // 32
        if not ordered:
            groups = np.random.default_rng(3).permutation(groups)
        zeros = integers(2, 48, bits=bits, seed=1)
        assert (zeros == 0).any() or bits == 8  # where the offset wraps
        tensors = self.tensors(bits, groups, (zeros - offset) & ((1 << bits) - 1))
        expected = self.expected(tensors, bits, zeros)
        if ordered:
            del tensors["w.g_idx"]
        section = {**GPTQ, "bits": bits, "checkpoint_format": version, "desc_act": not ordered}
        found = decode_plain(tmp_path, section, tensors, (48, 64))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)

    def test_one_group(self, tmp_path: Path) -> None:
        zeros = integers(1, 48)
        tensors = self.tensors(4, np.zeros(64), zeros)
        found = decode_plain(tmp_path, {**GPTQ, "group_size": -1}, tensors, (48, 64))
        torch.testing.assert_close(found, self.expected(tensors, 4, zeros), rtol=1e-6, atol=0)

    def test_order_by_activation_needs_the_groups(self, tmp_path: Path) -> None:
        encoding = find_encoding({"quantization_config": {**GPTQ, "desc_act": True}})
        save_file({"w.qweight": torch.zeros(8, 48, dtype=torch.int32)}, tmp_path / "file")
        assert encoding is not None
        matrix = encoding.find("w.weight", (48, 64), read_header(tmp_path / "file"))
        assert matrix is not None
        assert "g_idx" in matrix.parts


@pytest.mark.parametrize("group_size", [32, -1])
def test_awq(group_size: int, tmp_path: Path) -> None:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    groups = 2 if group_size == 32 else 1
    values, zeros = integers(64, 48), integers(groups, 48, seed=1)  # [in, out]
    scales = random(groups, 48, seed=2).half()

    def interleaved(array: np.ndarray) -> torch.Tensor:
        return pack(array.reshape(len(array), -1, 8)[..., order].reshape(array.shape))

    tensors = {
        "w.qweight": interleaved(values), "w.qzeros": interleaved(zeros), "w.scales": scales,
    }  # fmt: skip
    spread = np.arange(64) // (32 if groups == 2 else 64)
    expected = (values - zeros[spread]).astype(np.float32) * scales.float().numpy()[spread]
    found = decode_plain(tmp_path, {**AWQ, "group_size": group_size}, tensors, (48, 64))
    torch.testing.assert_close(found, torch.from_numpy(expected.T), rtol=1e-6, atol=0)


class TestCompressedTensors:
    """What compressed-tensors itself compresses, as it decompresses it."""

    def roundtrip(self, section: Config, shape: tuple[int, int]) -> tuple[Tensors, torch.Tensor]:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams

        group = section["config_groups"]["group_0"]
        scheme = QuantizationScheme(targets=["Linear"], weights=group["weights"])
        compressor = BaseCompressor.get_value_from_registry(section["format"])
        weight = random(*shape) + 0.3
        weights = scheme.weights
        rows, columns = (weights.block_structure or (1, weights.group_size or shape[1]))[:2]
        if weights.strategy == "tensor":
            rows, columns = shape
        columns = shape[1] if columns == -1 else columns
        blocks = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        scale, zero = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), weights)
        if weights.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        encoded = compressor.compress(state, scheme)
        decoded = compressor.decompress(encoded, scheme)["weight"]
        assert (decoded - weight).abs().max() < 0.5
        return {f"w.{name}": tensor for name, tensor in encoded.items()}, decoded

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
    @pytest.mark.parametrize(
        "strategy",
        [{"strategy": "group", "group_size": 32}, {"strategy": "channel", "group_size": None},
         {"strategy": None, "group_size": -1}],
        ids=["group", "channel", "minus one"],
    )  # fmt: skip
    def test_packed(self, bits: int, symmetric: bool, strategy: Config, tmp_path: Path) -> None:
        section = compressed({"num_bits": bits, "symmetric": symmetric, **strategy})
        tensors, expected = self.roundtrip(section, (44, 96))
        assert ("w.weight_zero_point" in tensors) != symmetric
        found = decode_plain(tmp_path, section, tensors, (44, 96))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("kind", ["int", "float"])
    @pytest.mark.parametrize(
        "strategy",
        [{"strategy": "channel", "group_size": None}, {"strategy": "tensor", "group_size": None},
         {"strategy": "group", "group_size": 32},
         {"strategy": "block", "group_size": None, "block_structure": [16, 32]}],
        ids=["channel", "tensor", "group", "block"],
    )  # fmt: skip
    def test_unpacked(self, kind: str, strategy: Config, tmp_path: Path) -> None:
        section = compressed({"num_bits": 8, "type": kind, **strategy}, f"{kind}-quantized")
        tensors, expected = self.roundtrip(section, (48, 96))
        found = decode_plain(tmp_path, section, tensors, (48, 96))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)

    def test_unpacked_and_asymmetric(self, tmp_path: Path) -> None:
        weights = {"num_bits": 8, "strategy": "channel", "group_size": None, "symmetric": False}
        section = compressed(weights, "int-quantized")
        tensors, expected = self.roundtrip(section, (48, 96))
        found = decode_plain(tmp_path, section, tensors, (48, 96))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("unused", [False, True])
    def test_columns_out_of_order(self, unused: bool, tmp_path: Path) -> None:
        values, scales = integers(48, 64), random(48, 2, seed=1)
        groups = np.random.default_rng(3).permutation(np.arange(64) // 32)
        tensors = {
            "w.weight_packed": pack(values), "w.weight_scale": scales,
            "w.weight_g_idx": torch.from_numpy(np.full(64, -1) if unused else groups).int(),
        }  # fmt: skip
        spread = np.arange(64) // 32 if unused else groups
        section = compressed({"actorder": "group"})
        found = decode_plain(tmp_path, section, tensors, (48, 64))
        expected = (values - 8).astype(np.float32) * scales.numpy()[:, spread]
        assert torch.equal(found, torch.from_numpy(expected))

    def test_zero_points_of_older_releases(self, tmp_path: Path) -> None:
        values, zeros, scales = integers(48, 64), integers(48, 2, seed=2) - 8, random(48, 2, seed=1)
        tensors = {
            "w.weight_packed": pack(values), "w.weight_scale": scales,
            "w.weight_zero_point": torch.from_numpy(zeros.astype(np.int8)),
        }  # fmt: skip
        found = decode_plain(tmp_path, compressed({"symmetric": False}), tensors, (48, 64))
        spread = np.arange(64) // 32
        expected = (values - 8 - zeros[:, spread]).astype(np.float32) * scales.numpy()[:, spread]
        assert torch.equal(found, torch.from_numpy(expected))

    def test_groups_of_modules_with_schemes_of_their_own(self, tmp_path: Path) -> None:
        eight = {**INT4_WEIGHTS, "num_bits": 8, "strategy": "channel", "group_size": None}
        section = compressed({})
        section["config_groups"]["group_1"] = {"targets": ["re:.*down_proj"], "weights": eight}
        tensors, expected = self.roundtrip(compressed(eight), (48, 96))
        found = decode_plain(tmp_path, section, tensors, (48, 96))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ([], ["quantization_config = []"]),
        ({}, ["quant_method = None", "fp8", "gptq"]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["quant_method = 'bitsandbytes'"]),
        ({"quant_method": ["fp8"]}, ["quant_method = ['fp8']"]),
        ({**FP8, "fmt": "e5m2"}, ["quantization_config.fmt = 'e5m2'", "e4m3"]),
        ({**FP8, "weight_block_size": [128]}, ["weight_block_size = [128]"]),
        ({**FP8, "weight_block_size": [0, 128]}, ["weight_block_size = [0, 128]"]),
        ({**FP8, "expert_dtype": "fp4"}, ["expert_dtype = 'fp4'"]),
        ({**FP8, "rotation": "hadamard"}, ["quantization_config.rotation = 'hadamard'"]),
        ({**MXFP4, "block_size": 16}, ["quantization_config.block_size = 16"]),
        ({**GPTQ, "bits": 3}, ["quantization_config.bits = 3", "4 or 8"]),
        ({**GPTQ, "group_size": 0}, ["group_size = 0"]),
        ({**GPTQ, "checkpoint_format": "marlin"}, ["checkpoint_format = 'marlin'"]),
        ({**GPTQ, "format": "bitblas"}, ["format = 'bitblas'"]),
        ({**GPTQ, "is_marlin_format": True}, ["is_marlin_format = True"]),
        ({**GPTQ, "dynamic": {"+:.*down": {"bits": 8}}}, ["dynamic = "]),
        ({**GPTQ, "adapter": {"path": "x"}}, ["adapter = "]),
        ({**GPTQ, "pack_dtype": "int16"}, ["pack_dtype = 'int16'"]),
        ({**AWQ, "bits": 8}, ["quantization_config.bits = 8"]),
        ({**AWQ, "version": "gemv"}, ["version = 'gemv'"]),
        ({**AWQ, "zero_point": False}, ["zero_point = False"]),
        ({**AWQ, "clip": 0.5}, ["quantization_config.clip = 0.5"]),
        (compressed({}, "nvfp4-pack-quantized"), ["format = 'nvfp4-pack-quantized'"]),
        (compressed({}, "marlin-24"), ["format = 'marlin-24'"]),
        (compressed({"num_bits": 3}), ["group_0.weights.num_bits = 3"]),
        (compressed({"type": "float"}), ["weights.type = 'float'"]),
        (compressed({"strategy": "tensor_group"}), ["strategy = 'tensor_group'"]),
        (compressed({"group_size": None}), ["strategy = 'group'"]),
        (compressed({"dynamic": True}), ["weights.dynamic = True"]),
        (compressed({"codebook": 3}), ["weights.codebook = 3"]),
        (compressed({}, sparsity_config={"format": "sparse-24-bitmask"}), ["sparsity_config = "]),
        (compressed({}, transform_config={"config_groups": {"R1": {}}}), ["transform_config = "]),
        (compressed({}, config_groups={}), ["config_groups = {}"]),
        (compressed({}, config_groups={"group_0": ["Linear"]}), ["config_groups.group_0 = "]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_refusals(section: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        find_encoding({"quantization_config": section})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


PUBLISHED: list[Config] = [
    # Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4
    {"batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True,
     "damp_percent": 0.01, "dataset": None, "desc_act": False, "exllama_config": {"version": 1},
     "group_size": 128, "max_input_length": None, "model_seqlen": None,
     "module_name_preceding_first_block": None,
     "modules_in_block_to_quantize": [["self_attn.q_proj"]], "pad_token_id": None,
     "quant_method": "gptq", "sym": True, "tokenizer": None, "true_sequential": True,
     "use_cuda_fp16": False, "use_exllama": True},
    {"bits": 4, "checkpoint_format": "gptq", "desc_act": True, "dynamic": None, "group_size": 128,
     "lm_head": False, "meta": {"quantizer": ["gptqmodel:1.4.4"]}, "pack_dtype": "int32",
     "quant_method": "gptq", "sym": True, "true_sequential": True},
    {"bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq",
     "version": "gemm", "zero_point": True},
    # DeepSeek-V3.1
    {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
     "weight_block_size": [128, 128]},
    {"config_groups": {"group_0": {
        "input_activations": None, "output_activations": None, "targets": ["Linear"],
        "weights": {"actorder": "weight", "block_structure": None, "dynamic": False,
                    "group_size": 128, "num_bits": 4, "observer": "minmax", "observer_kwargs": {},
                    "strategy": "group", "symmetric": True, "type": "int"}}},
     "format": "pack-quantized", "global_compression_ratio": 1.4, "ignore": ["lm_head"],
     "kv_cache_scheme": None, "quant_method": "compressed-tensors",
     "quantization_status": "compressed", "sparsity_config": {}, "transform_config": {},
     "version": "0.10.3.dev10"},
]  # fmt: skip


@pytest.mark.parametrize("section", PUBLISHED, ids=lambda section: section["quant_method"])
def test_configs_as_published(section: Config) -> None:
    found = find_encoding({"quantization_config": section})
    assert found is not None
    assert found.name == section["quant_method"]


def test_what_changes_no_weight_is_accepted() -> None:
    dynamic = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    section = compressed({"num_bits": 8, "type": "float", "strategy": "channel",
                          "group_size": None}, "float-quantized")  # fmt: skip
    section["config_groups"]["group_0"]["input_activations"] = dynamic
    section["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    assert find_encoding({"quantization_config": section}) is not None
    skipped = {**GPTQ, "dynamic": {"-:.*mlp.gate$": {}}, "meta": {"quantizer": ["gptqmodel:2.0"]}}
    assert find_encoding({"quantization_config": skipped}) is not None
    assert find_encoding({"quantization_config": None}) is None


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
    message = refusal(plain)
    assert ".bias [" in message
    assert "has no place in the model" in message
