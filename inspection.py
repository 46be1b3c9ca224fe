"""What `inspect` tells about a checkpoint or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from .errors import ConfigError, InputError
from .model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, read_json
from .model.families import find_family
from .model.parameters import layer_shapes
from .model.spec import ModelSpec
from .runtime.bundle import MANIFEST, Precision, is_bundle, read_manifest
from .runtime.kv_cache import SLACK, capacity
from .runtime.pages import PRECISIONS, PageFormat

BLOCK_SIZE = 64  # where no bundle says another: what `compile` takes
_BITS = {"int4": 4, "int8": 8, "fp16": 16, "fp32": 32}


@dataclass(frozen=True)
class PrecisionSizes:
    """Bytes of each part at one precision; `page` is the largest expert page.

    Block scales are counted. Norms and routers stay fp32; the embedding is fp16 unless
    the precision is fp32.
    """

    precision: str
    embedding: int
    backbone: int
    head: int
    experts: int
    total: int
    page: int


@dataclass(frozen=True)
class ModelFacts:
    """experts and top_k: the distinct values of the MoE layers.

    kv_bytes_per_token: what one more token takes in the float32 cache of the full-attention
    layers; kv_window_bytes: what the windowed layers keep at least, however long the text.
    """

    family: str
    context: int
    vocab_size: int
    hidden_size: int
    layers: int
    moe_layers: int
    dense_layers: int
    windowed_layers: int
    experts: tuple[int, ...]
    top_k: tuple[int, ...]
    parameters_total: int
    parameters_active: int
    kv_bytes_per_token: int
    kv_window_bytes: int
    block_size: int
    sizes: tuple[PrecisionSizes, ...]


@dataclass(frozen=True)
class CheckpointFacts:
    """stored_bytes and dtypes are None where the directory holds a config alone."""

    kind: str
    path: str
    model: ModelFacts
    files: int
    stored_bytes: int | None
    dtypes: tuple[str, ...] | None
    tokenizer: bool


@dataclass(frozen=True)
class BundleFacts:
    """total_bytes: all files but the manifest; page_bytes: the largest page."""

    kind: str
    path: str
    model: ModelFacts
    version: int
    target: str
    precision: Precision
    embedding_dtype: str
    files: int
    total_bytes: int
    backbone_bytes: int
    expert_bytes: int
    pages: int
    page_bytes: int
    segments: int
    active_experts: tuple[int, ...]
    lossy: tuple[str, ...]
    toolchain: dict[str, str]


def inspect_path(path: Path) -> CheckpointFacts | BundleFacts:
    """The facts of a bundle, of a checkpoint, or of a directory with a config.json alone.

    Raises:
        InputError: the path is none of these.
        CheckpointError, ConfigError, BundleError: it is one, but damaged or not supported.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give the directory of a checkpoint or of a bundle")
    if is_bundle(path):
        return _inspect_bundle(path)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} has neither config.json (a checkpoint) nor {MANIFEST} (a complete bundle)"
        )
    return _inspect_checkpoint(path)


def _inspect_checkpoint(path: Path) -> CheckpointFacts:
    tokenizer = (path / "tokenizer.json").is_file()
    if not any((path / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        config = read_json(path / "config.json")
        try:
            model = model_facts(find_family(config).read_config(config), BLOCK_SIZE)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        return CheckpointFacts("config", str(path), model, 0, None, None, tokenizer)
    checkpoint = Checkpoint(path)
    return CheckpointFacts(
        kind="checkpoint",
        path=str(path),
        model=model_facts(checkpoint.spec, BLOCK_SIZE),
        files=len(set(checkpoint.files.values())),
        stored_bytes=checkpoint.stored_bytes(),
        dtypes=tuple(sorted(set(checkpoint.dtypes.values()))),
        tokenizer=tokenizer,
    )


def _inspect_bundle(path: Path) -> BundleFacts:
    manifest = read_manifest(path)
    model = model_facts(manifest.spec, manifest.precision.block_size or BLOCK_SIZE)
    return BundleFacts(
        kind="bundle",
        path=str(path),
        model=model,
        version=manifest.version,
        target=manifest.target,
        precision=manifest.precision,
        embedding_dtype=manifest.embedding_dtype,
        files=len(manifest.files),
        total_bytes=manifest.total_bytes,
        backbone_bytes=manifest.backbone_bytes,
        expert_bytes=manifest.expert_bytes,
        pages=manifest.num_pages,
        page_bytes=manifest.page_bytes,
        segments=len(manifest.segments),
        active_experts=model.top_k,
        lossy=manifest.lossy,
        toolchain=manifest.toolchain,
    )


def model_facts(spec: ModelSpec, block_size: int) -> ModelFacts:
    count = spec.count_parameters()
    routers = [layer.router for layer in spec.layers if layer.router is not None]
    windows = [layer.window for layer in spec.layers if layer.window is not None]
    positions = sum(capacity(window, spec.max_position_embeddings, SLACK) for window in windows)
    kv_bytes = 2 * spec.num_key_value_heads * spec.head_dim * 4  # key and value, float32
    return ModelFacts(
        family=spec.family,
        context=spec.max_position_embeddings,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        layers=spec.num_hidden_layers,
        moe_layers=len(routers),
        dense_layers=spec.num_hidden_layers - len(routers),
        windowed_layers=len(windows),
        experts=tuple(sorted({router.num_experts for router in routers})),
        top_k=tuple(sorted({router.top_k for router in routers})),
        parameters_total=count.total,
        parameters_active=count.active,
        kv_bytes_per_token=kv_bytes * (spec.num_hidden_layers - len(windows)),
        kv_window_bytes=kv_bytes * positions,
        block_size=block_size,
        sizes=tuple(precision_sizes(spec, precision, block_size) for precision in PRECISIONS),
    )


def precision_sizes(spec: ModelSpec, precision: str, block_size: int) -> PrecisionSizes:
    backbone = 4 * spec.hidden_size
    experts = page = 0
    for index, layer in enumerate(spec.layers):
        for name, shape in layer_shapes(spec, index).items():
            fp32 = len(shape) == 1 or name.endswith("router.weight")
            backbone += 4 * prod(shape) if fp32 else _matrix_bytes(shape, precision, block_size)
        if layer.router is not None:
            format_ = PageFormat(precision, block_size, spec.hidden_size, layer.intermediate_size)
            experts += format_.nbytes * layer.router.num_experts
            page = max(page, format_.nbytes)
    table = (spec.vocab_size, spec.hidden_size)
    embedding = prod(table) * (4 if precision == "fp32" else 2)
    head = _matrix_bytes(table, precision, block_size)
    return PrecisionSizes(
        precision=precision,
        embedding=embedding,
        backbone=backbone,
        head=head,
        experts=experts,
        total=embedding + backbone + head + experts,
        page=page,
    )


def _matrix_bytes(shape: tuple[int, ...], precision: str, block_size: int) -> int:
    """Bytes of an `[out, in]` matrix of the backbone, with its float32 block scales."""
    rows, columns = shape
    scales = 4 * rows * -(-columns // block_size) if precision in ("int4", "int8") else 0
    return rows * columns * _BITS[precision] // 8 + scales
