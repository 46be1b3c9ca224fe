"""Encodings against the libraries that define them, or against packers written from the formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pocketmoe.model.checkpoint.encodings import find_encoding
from pocketmoe.model.checkpoint.headers import read_header
from pocketmoe.model.checkpoint.tensors import StoredParameter, TensorReader
from pocketmoe.model.families.names import Location, Place
from pocketmoe.runtime.memory.host_memory import process_memory
from pocketmoe.tests.support.quantized import (
    AWQ,
    FP8,
    GPTQ,
    INT4_WEIGHTS,
    MXFP4,
    Config,
    Tensors,
    compressed,
    pack,
)

FILE = "encoded.safetensors"


def decode(
    path: Path, section: Config, tensors: Tensors, shape: tuple[int, int], place: Place
) -> torch.Tensor:
    """The parameter of `shape` that lies in `tensors`; where they are stacked, expert 1."""
    file = path / FILE
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return decode_file(path, section, shape, place)


def decode_file(path: Path, section: Config, shape: tuple[int, int], place: Place) -> torch.Tensor:
    encoding = find_encoding({"quantization_config": section})
    assert encoding is not None
    headers = read_header(path / FILE)
    rows = shape[0] if place.rows == "all" else 2 * shape[0]
    matrix = encoding.find(place.name, (rows, shape[1]), headers)
    assert matrix is not None
    experts = (2,) if place.stacked else ()
    for part in matrix.parts.values():
        assert headers[part.tensor].shape == (*experts, *part.shape)
        assert headers[part.tensor].dtype in part.dtypes
    location = Location(place, place.name, 1 if place.stacked else None)
    parts = {key: headers[part.tensor] for key, part in matrix.parts.items()}
    with TensorReader({"w": StoredParameter(shape, location, parts, matrix)}) as reader:
        return reader.read("w")


def decode_plain(path: Path, section: Config, tensors: Tensors, shape: tuple[int, int]) -> Any:
    return decode(path, section, tensors, shape, Place("w.weight"))


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

    @pytest.mark.parametrize("rows", ["first", "second", "even", "odd"])
    def test_only_the_rows_of_the_parameter_are_decoded(
        self, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded, ldexp = [], np.ldexp

        def counting(one: Any, exponents: np.ndarray) -> Any:
            decoded.append(len(exponents))
            return ldexp(one, exponents)

        monkeypatch.setattr(np, "ldexp", counting)
        decode(tmp_path, MXFP4, self.tensors(), (32, 96), Place("w", stacked=True, rows=rows))
        assert sum(decoded) == 32

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


ROWS, COLUMNS = 2048, 8192


def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def gptq_parts(groups: torch.Tensor) -> Tensors:
    return {
        "w.qweight": zeros(COLUMNS // 8, ROWS), "w.qzeros": zeros(COLUMNS // 32, ROWS // 8),
        "w.scales": zeros(COLUMNS // 32, ROWS, dtype=torch.float16), "w.g_idx": groups.int(),
    }  # fmt: skip


# The matrix as it is stored takes an eighth, or with 8 bits a quarter, of the one in float32.
LARGE: dict[str, tuple[Config, Callable[[], Tensors], float]] = {
    "fp8": (FP8, lambda: {
        "w.weight": zeros(ROWS, COLUMNS, dtype=torch.float8_e4m3fn),
        "w.weight_scale_inv": zeros(ROWS // 128, COLUMNS // 128, dtype=torch.float32),
    }, 1.25),
    "mxfp4": (MXFP4, lambda: {
        "w_blocks": zeros(ROWS, COLUMNS // 32, 16, dtype=torch.uint8),
        "w_scales": zeros(ROWS, COLUMNS // 32, dtype=torch.uint8),
    }, 1.125),
    "gptq": (GPTQ, lambda: gptq_parts(torch.arange(COLUMNS) // 32), 1.125),
    "gptq, out of order": (GPTQ, lambda: gptq_parts(torch.arange(COLUMNS) % 256), 1.125),
    "awq": (AWQ, lambda: {
        "w.qweight": zeros(COLUMNS, ROWS // 8), "w.qzeros": zeros(COLUMNS // 32, ROWS // 8),
        "w.scales": zeros(COLUMNS // 32, ROWS, dtype=torch.float16),
    }, 1.125),
    "compressed-tensors": (compressed({"symmetric": False}), lambda: {
        "w.weight_packed": zeros(ROWS, COLUMNS // 8),
        "w.weight_scale": zeros(ROWS, COLUMNS // 32, dtype=torch.float16),
        "w.weight_zero_point": zeros(ROWS // 8, COLUMNS // 32),
    }, 1.125),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_decoding_takes_little_more_than_the_matrix(name: str, tmp_path: Path) -> None:
    section, make, stored = LARGE[name]
    decode_plain(tmp_path, section, make(), (ROWS, COLUMNS))  # libraries are loaded
    # "5" sets the peak back to what is resident (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    before = process_memory("VmRSS")
    found = decode_file(tmp_path, section, (ROWS, COLUMNS), Place("w.weight"))
    peak = process_memory("VmHWM") - before
    assert found.nbytes == 64 << 20
    assert peak < (stored + 0.2) * found.nbytes
