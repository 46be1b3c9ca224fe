"""The pages of one layer, as the manifest has them: where they lie, and in which formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BundleError
from .pages import ExpertKey, ExpertPage, PageFormat, page_format_from_json

ENGINE = "engine.onnx"


@dataclass(frozen=True)
class ExpertLayer:
    """The pages of one layer.

    Attributes:
        layer: the index of the decoder layer.
        file: where its pages lie, within the bundle.
        formats: the formats of its pages. In the file, `format` where there is one alone.
        offsets: where the page of each expert starts, in bytes.
        sha256: of each page.
        xxh64: of each page, quicker to check; empty where the compiler had no native library.
        kinds: for each expert, the index of its format; empty where there is one alone.
    """

    layer: int
    file: str
    formats: tuple[PageFormat, ...]
    offsets: tuple[int, ...]
    sha256: tuple[str, ...]
    xxh64: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()

    @property
    def format(self) -> PageFormat:
        """That of all pages, for what can do with one alone.

        Raises:
            BundleError: there are several.
        """
        if len(self.formats) > 1:
            raise BundleError(
                f"the experts of layer {self.layer} are stored in several formats, which this "
                "cannot use; compile the bundle again without --bits"
            )
        return self.formats[0]

    @property
    def counts(self) -> tuple[int, ...]:
        """Pages of each format."""
        if not self.kinds:
            return (len(self.offsets),)
        return tuple(self.kinds.count(kind) for kind in range(len(self.formats)))

    @property
    def histogram(self) -> dict[str, int]:
        """Pages of each format, by its name."""
        return {form.name: n for form, n in zip(self.formats, self.counts, strict=True)}

    @property
    def engines(self) -> tuple[str, ...]:
        """The graphs that ONNX Runtime runs the pages of each format with."""
        folder = self.file.rpartition("/")[0]
        return tuple(f"{folder}/{engine_name(kind)}" for kind in range(len(self.formats)))

    def format_of(self, expert: int) -> PageFormat:
        return self.formats[self.kinds[expert] if self.kinds else 0]

    def page(self, expert: int) -> ExpertPage:
        page_format = self.format_of(expert)
        return ExpertPage(
            ExpertKey(self.layer, expert), self.file, self.offsets[expert], page_format.nbytes,
            self.sha256[expert], page_format, self.xxh64[expert] if self.xxh64 else "",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        data = vars(self).copy()
        formats, kinds = data.pop("formats"), data.pop("kinds")
        if len(formats) == 1:
            return data | {"format": formats[0].to_json()}
        return data | {"formats": [item.to_json() for item in formats], "kinds": kinds}


def average_bits(layers: Iterable[ExpertLayer]) -> float:
    """Bits of an expert weight on average, scales included; 0 without experts."""
    pages = [item for layer in layers for item in zip(layer.formats, layer.counts, strict=True)]
    weights = sum(form.weights * count for form, count in pages)
    bits = sum(form.weight_bits * form.weights * count for form, count in pages)
    return bits / weights if weights else 0.0


def engine_name(kind: int) -> str:
    """Of a layer's graph for pages of its format `kind`."""
    return f"engine_{kind}.onnx" if kind else ENGINE


def expert_layer_from_json(data: Mapping[str, Any]) -> ExpertLayer:
    """Inverse of `ExpertLayer.to_json`.

    Raises:
        BundleError: its formats do not go together, or a page has none.
    """
    formats = [page_format_from_json(item) for item in data.get("formats", [data.get("format")])]
    kinds, offsets = tuple(data.get("kinds", ())), tuple(data["offsets"])
    layer = ExpertLayer(
        data["layer"], data["file"], tuple(formats), offsets, tuple(data["sha256"]),
        tuple(data.get("xxh64", ())), kinds,
    )  # fmt: skip
    valid = len(kinds) == (len(offsets) if len(formats) > 1 else 0)
    valid = valid and all(type(kind) is int and 0 <= kind < len(formats) for kind in kinds)
    # They may differ in how they store the weights alone.
    same = {replace(item, precision="", block_size=0) for item in formats}
    if not valid or len(same) != 1 or len(set(formats)) != len(formats):
        raise BundleError(
            f"the page formats of layer {layer.layer} are damaged; compile the bundle again"
        )
    return layer
