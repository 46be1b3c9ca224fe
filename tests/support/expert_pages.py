"""Files of random pages with the manifest that describes them, and what a pager makes of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import xxhash

from pocketmoe.bundle.expert_layers import ExpertLayer
from pocketmoe.bundle.manifest import Manifest, Precision
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import LayerSpec, ModelSpec, RouterSpec
from pocketmoe.runtime.paging.pager import Pager

LAYERS, EXPERTS = 2, 4
FORMATS = (PageFormat("int4", 32, 64, 96), PageFormat("int8", 32, 64, 160))


def write_pages(
    root: Path, formats: tuple[PageFormat, ...] = FORMATS, *, checksums: bool = True
) -> Manifest:
    """Layers of random pages: by default two, the second with larger ones."""
    random = np.random.default_rng(0)
    layers = []
    for layer, page_format in enumerate(formats):
        file = f"layer_{layer}.bin"
        pages = [random.bytes(page_format.nbytes) for _ in range(EXPERTS)]
        (root / file).write_bytes(b"".join(pages))
        offsets = tuple(expert * page_format.nbytes for expert in range(EXPERTS))
        hashes = tuple(hashlib.sha256(page).hexdigest() for page in pages)
        quick = tuple(xxhash.xxh64_hexdigest(page) for page in pages) if checksums else ()
        layers.append(ExpertLayer(layer, file, (page_format,), offsets, hashes, quick))
    rule = LayerSpec(window=None, intermediate_size=96, router=RouterSpec(EXPERTS, 2, True))
    rope = RopeSpec(1e4, 32)
    spec = ModelSpec("reference", 8, 64, 2, 1, 32, 64, rope, 1e-5, True, (rule,) * len(formats))
    precision = Precision("int4", "int8", "int8", 32)
    return Manifest(spec, "cpu", precision, "float16", (), tuple(layers), 0, {})


def expected(root: Path, layer: int, expert: int) -> bytes:
    size = FORMATS[layer].nbytes
    return (root / f"layer_{layer}.bin").read_bytes()[expert * size : (expert + 1) * size]


def content(pager: Pager, layer: int, expert: int) -> bytes:
    """What a layer's run that needs this expert alone gets to see."""
    ((found, page),) = pages(pager, layer, [expert])
    assert found == expert
    return page


def pages(
    pager: Pager, layer: int, experts: list[int], *, in_order: bool = False
) -> list[tuple[int, bytes]]:
    """What a layer's run gets to see, in the order in which it comes."""
    seen = []
    for batch in pager.visit(layer, experts, in_order=in_order):
        assert batch
        seen += [(e, slot.data[: FORMATS[layer % 2].nbytes].tobytes()) for e, slot in batch]
    return seen
