"""Places of a segment's weights: backbone/segment_000.json, beside the graph and its weights.

ONNX Runtime reads it from the graph. What runs a segment without the graph reads it here; bundles
of older releases have no such file, and ONNX Runtime runs all of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError
from .manifest import Manifest, Segment

DTYPES = ("uint8", "float16", "float32")


def index_file(segment: Segment) -> str:
    return segment.file.replace(".onnx", ".json")


def weights_file(segment: Segment) -> str:
    return segment.file.replace(".onnx", ".bin")


@dataclass(frozen=True)
class WeightPlace:
    """A tensor of the segment's .bin. uint8: `[out, blocks, bytes of a block]`, unsigned values of
    4 or 8 bits as MatMulNBits wants them; their float32 scales are a tensor of their own, with
    `.scales` after its name."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class WeightIndex:
    """loaded_bytes: what the segment's weights take in ONNX Runtime. size: bytes of the .bin."""

    loaded_bytes: int
    size: int
    places: dict[str, WeightPlace]

    def to_json(self) -> dict[str, Any]:
        return {
            "loaded_bytes": self.loaded_bytes,
            "size": self.size,
            "places": {name: vars(place) for name, place in self.places.items()},
        }


def write_index(path: Path, index: WeightIndex) -> None:
    path.write_text(json.dumps(index.to_json(), indent=1) + "\n", encoding="utf-8")


def read_index(root: Path, manifest: Manifest, segment: Segment) -> WeightIndex | None:
    """None where the bundle has no such file.

    Raises:
        BundleError: it is damaged, or names places that the .bin does not have.
    """
    name = index_file(segment)
    if name not in manifest.files:
        return None
    path = root / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        index = WeightIndex(
            int(data["loaded_bytes"]),
            int(data["size"]),
            {
                key: WeightPlace(item["dtype"], tuple(item["shape"]), int(item["offset"]))
                for key, item in data["places"].items()
            },
        )
        wrong = [
            key
            for key, place in index.places.items()
            if place.dtype not in DTYPES
            or place.offset < 0
            or place.offset % 64
            or min(place.shape, default=1) < 0
            or place.offset + place.nbytes > index.size
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read ({error!r}); compile the bundle again") from error
    if wrong or manifest.files[weights_file(segment)].size != index.size:
        what = wrong[0] if wrong else "its weights"
        raise BundleError(f"{path} is damaged ({what} are not there); compile the bundle again")
    return index
