"""Writes the experts of a layer: their pages, and each as a standard ONNX graph over its page."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

from ...bundle.expert_layers import ExpertLayer, engine_name
from ...bundle.pages import PROJECTIONS, PageFormat, TensorPlace
from ...cpus import cpu_count
from ...model.checkpoint.tensors import TILE_BYTES
from ...model.parameters import expert_prefix
from ...runtime.native.checksum import find_xxh64
from ..quantize import QuantizedMatrix, ReadTiles, quantize_fp8, quantize_matrix
from .graphs import engine_graph, expert_graph, point_into_page

_MATRIX_BYTES = 1 << 30  # float32 matrices that are quantized at one time


def choose_workers(formats: Iterable[PageFormat], *, encoded: bool) -> int:
    """Threads that fill pages: one for each CPU that the process may use, as far as the matrices
    that they hold take no more than 1 GiB together.

    encoded: the checkpoint's matrices are decoded whole; others are read in tiles.
    """
    elements = max((form.hidden_size * form.intermediate_size for form in formats), default=1)
    held = 4 * elements if encoded else min(4 * elements, TILE_BYTES)
    return max(1, min(cpu_count(), _MATRIX_BYTES // held))


def write_expert_layer(
    root: Path,
    layer: int,
    formats: Sequence[PageFormat],
    pages: Iterable[bytearray],
    advance: Callable[[int], None],
) -> ExpertLayer:
    """Writes `experts/layer_NNN/` below root, a page for each expert in order, each of its own of
    `formats`; advance is told the bytes of each page written."""
    folder = root / "experts" / f"layer_{layer:03d}"
    folder.mkdir(parents=True)
    offsets, hashes, checksums, end = [], [], [], 0
    xxh64 = find_xxh64()
    with (folder / "pages.bin").open("wb") as file:
        for page in pages:
            file.write(page)
            offsets.append(end)
            hashes.append(hashlib.sha256(page).hexdigest())
            if xxh64 is not None:
                checksums.append(xxh64(np.frombuffer(page, np.uint8)))
            end += len(page)
            advance(len(page))
    distinct = tuple(dict.fromkeys(formats))
    graphs = {page_format: expert_graph(page_format) for page_format in distinct}
    unchecked = set(distinct)
    for expert, (offset, page_format) in enumerate(zip(offsets, formats, strict=True)):
        path = folder / f"expert_{expert:03d}.onnx"
        onnx.save(point_into_page(graphs[page_format], page_format, offset), path)
        if page_format in unchecked:
            onnx.checker.check_model(str(path))
            unchecked.remove(page_format)
    for kind, page_format in enumerate(distinct):
        engine = engine_graph(page_format)
        onnx.checker.check_model(engine)
        onnx.save(engine, folder / engine_name(kind))
    kinds = tuple(map(distinct.index, formats)) if len(distinct) > 1 else ()
    return ExpertLayer(
        layer, f"experts/{folder.name}/pages.bin", distinct, tuple(offsets), tuple(hashes),
        tuple(checksums), kinds,
    )  # fmt: skip


def build_pages(
    layer: int, num_experts: int, page_format: PageFormat, read: ReadTiles, workers: int
) -> Iterator[bytearray]:
    """Pages in the order of the experts; `workers` projections are quantized at a time."""

    def start(expert: int) -> tuple[bytearray, list[Future[None]]]:
        page, prefix = bytearray(page_format.nbytes), expert_prefix(layer, expert)
        jobs = [
            pool.submit(fill_page, page, page_format, name, lambda n: read(f"{prefix}.{n}"))
            for name in PROJECTIONS
        ]
        return page, jobs

    ahead = min(workers // len(PROJECTIONS) + 2, num_experts)  # no worker waits for the next page
    with ThreadPoolExecutor(workers) as pool:
        pending = deque(start(expert) for expert in range(ahead))
        for expert in range(num_experts):
            page, jobs = pending.popleft()
            for job in jobs:
                job.result()
            if expert + ahead < num_experts:
                pending.append(start(expert + ahead))
            yield page


def fill_page(page: bytearray, page_format: PageFormat, name: str, read: ReadTiles) -> None:
    """Writes one projection into its page. read is asked for `gate.weight`, `gate.bias`, …"""
    places = {place.name: place for place in page_format.tensors()}
    row = 0
    for tile in read(f"{name}.weight"):
        if page_format.precision == "fp8":
            encoded, scales = quantize_fp8(tile, page_format.block_size)
            _write_rows(page, places[name], row, encoded)
            _write_rows(page, places[f"{name}_scales"], row, scales)
        elif page_format.quantized:
            bits = 4 if page_format.precision == "int4" else 8
            quantized = quantize_matrix(tile, bits, page_format.block_size)
            write_matrix(page, places, name, quantized, row)
        else:
            dtype = np.float16 if page_format.precision == "fp16" else np.float32
            _write_rows(page, places[name], row, tile.astype(dtype))
        row += len(tile)
    if page_format.bias:
        write_bias(page, places, name, np.concatenate(list(read(f"{name}.bias"))))


def write_matrix(
    page: bytearray,
    places: Mapping[str, TensorPlace],
    name: str,
    quantized: QuantizedMatrix,
    row: int = 0,
) -> None:
    """Writes rows of an int4 or int8 projection, from `row` on."""
    values = quantized.packed_int4() if quantized.bits == 4 else quantized.values
    _write_rows(page, places[name], row, values)
    _write_rows(page, places[f"{name}_scales"], row, quantized.scales)


def write_bias(
    page: bytearray, places: Mapping[str, TensorPlace], name: str, bias: np.ndarray
) -> None:
    _write_rows(page, places[f"{name}_bias"], 0, bias)


def _write_rows(page: bytearray, place: TensorPlace, row: int, rows: np.ndarray) -> None:
    start = place.offset + row * (place.nbytes // place.shape[0])
    page[start : start + rows.nbytes] = np.ascontiguousarray(rows).data.cast("B")
