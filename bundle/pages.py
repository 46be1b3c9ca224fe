"""The page of one expert: where each tensor lies in it.

The compiler writes pages, the runtime reads them.

A page is one extent of a `pages.bin`, aligned to 4 KiB. It holds the gate, up and down projections,
each `[out, in]` row-major: int4 two values per byte (the even element in the low nibble), int8,
fp8 (e4m3), fp16 or fp32; quantized ones are followed by their fp16 block scales
`[out, in / block_size]`, and those with a bias by it, fp32 `[out]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, NamedTuple

from ..errors import BundleError
from ..model.spec import SILU, Activation

PAGE_ALIGNMENT = 4096
TENSOR_ALIGNMENT = 256  # TensorRT takes tensors at no other addresses
_OLD_ALIGNMENT = 64  # of format version 2
PRECISIONS = ("int4", "int8", "fp8", "fp16", "fp32")
QUANTIZED = ("int4", "int8", "fp8")  # with block scales
PROJECTIONS = ("gate", "up", "down")
_BITS = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16, "fp32": 32}


def align(nbytes: int, to: int) -> int:
    return -(-nbytes // to) * to


@dataclass(frozen=True)
class TensorPlace:
    """A tensor within a page.

    Attributes:
        name: "gate", "gate_scales", "gate_bias"; "up" and "down" likewise.
        kind: the precision, "scales" (fp16) or "bias" (fp32).
        shape: `[out, in]` of weights, `[out, in / block_size]` of scales, `[out]` of a bias.
        offset: bytes from the page's start.
        nbytes: its bytes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PageFormat:
    """The layout of a page, and what its expert computes: down(activation(gate(x), up(x))).

    Attributes:
        precision: "int4", "int8", "fp8", "fp16" or "fp32".
        block_size: weights that share one scale: 32, 64 or 128; 0 where nothing is quantized.
        hidden_size: input width of gate and up, output width of down.
        intermediate_size: output width of gate and up, input width of down.
        bias: whether the projections have biases.
        activation: what stands between gate, up and down.
        alignment: each tensor starts at a multiple of so many bytes.
    """

    precision: str
    block_size: int
    hidden_size: int
    intermediate_size: int
    bias: bool = False
    activation: Activation = SILU
    alignment: int = TENSOR_ALIGNMENT

    @property
    def quantized(self) -> bool:
        return self.precision in QUANTIZED

    @property
    def name(self) -> str:
        """The precision, and the block where there is one: "int4/64"."""
        return f"{self.precision}/{self.block_size}" if self.quantized else self.precision

    @property
    def weights(self) -> int:
        """Number of weights, biases left out."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def weight_bits(self) -> float:
        """Bits of a weight, its share of a scale included."""
        return _BITS[self.precision] + (16 / self.block_size if self.quantized else 0)

    def tensors(self) -> tuple[TensorPlace, ...]:
        """In the order of their offsets: gate, its scales, its bias; up and down likewise."""
        places: list[TensorPlace] = []
        end = 0

        def place(name: str, kind: str, shape: tuple[int, ...], bits: int) -> None:
            nonlocal end
            offset = align(end, self.alignment)
            nbytes = prod(shape) * bits // 8
            places.append(TensorPlace(name, kind, shape, offset, nbytes))
            end = offset + nbytes

        for name in PROJECTIONS:
            rows, columns = self.intermediate_size, self.hidden_size
            if name == "down":
                rows, columns = columns, rows
            place(name, self.precision, (rows, columns), _BITS[self.precision])
            if self.quantized:
                place(f"{name}_scales", "scales", (rows, columns // self.block_size), 16)
            if self.bias:
                place(f"{name}_bias", "bias", (rows,), 32)
        return tuple(places)

    @property
    def nbytes(self) -> int:
        """Bytes of one page, padding included."""
        last = self.tensors()[-1]
        return align(last.offset + last.nbytes, PAGE_ALIGNMENT)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def page_format_from_json(data: Mapping[str, Any]) -> PageFormat:
    """Inverse of `PageFormat.to_json`.

    Raises:
        BundleError: a field is missing or has a value that no page has.
    """
    try:
        page_format = PageFormat(
            **{"alignment": _OLD_ALIGNMENT, **data, "activation": Activation(**data["activation"])}
        )
        sizes = (page_format.hidden_size, page_format.intermediate_size)
        valid = page_format.precision in PRECISIONS and all(size > 0 for size in sizes)
        valid = valid and page_format.alignment in (_OLD_ALIGNMENT, TENSOR_ALIGNMENT)
        if page_format.quantized:
            valid = valid and page_format.block_size in (32, 64, 128)
    except (KeyError, TypeError) as error:
        raise BundleError(f"not a page format: {error}") from error
    if not valid:
        raise BundleError(f"not a page format: {dict(data)}")
    return page_format


class ExpertKey(NamedTuple):
    """layer: index of the decoder layer; expert: index within it."""

    layer: int
    expert: int


@dataclass(frozen=True)
class ExpertPage:
    """Where one expert's page lies: `file` is relative to the bundle; the rest in bytes.

    xxh64: empty where the bundle has none.
    """

    key: ExpertKey
    file: str
    offset: int
    nbytes: int
    sha256: str
    format: PageFormat
    xxh64: str = ""
