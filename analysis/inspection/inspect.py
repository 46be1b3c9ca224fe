"""The facts of `inspect` about a checkpoint or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from ...bundle.damage import incomplete_engines
from ...bundle.expert_layers import average_bits
from ...bundle.manifest import (
    CHAT_TEMPLATE,
    MANIFEST,
    AverageBits,
    Precision,
    is_bundle,
    read_manifest,
)
from ...bundle.pages import PageFormat
from ...compiler.precision import precision_of
from ...errors import ConfigError, InputError
from ...model.checkpoint.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, read_json
from ...model.checkpoint.encodings import find_encoding
from ...model.families import find_family
from ...model.parameters import count_parameters, end_shapes, layer_shapes
from ...model.spec import ModelSpec
from ...runtime.cache_shape import SLACK, capacity
from .engine_facts import EngineSetFacts, built_on, engine_set_facts, gpu_here

BLOCK_SIZE = 64  # where no bundle says another: what `compile` takes
# What all parts of a model can be stored in: fp8 is for experts alone.
WHOLE_PRECISIONS = ("int4", "int8", "fp16", "fp32")
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
    """experts and top_k: the distinct values of the MoE layers. paged_layers: those whose FFN lies
    in pages, routed or not.

    kv_bytes_per_token: what one more token takes in the float32 cache of the full-attention
    layers; kv_expanded_bytes_per_token: what it would take with the keys and values of every head,
    more where the cache holds a latent; kv_window_bytes: what the windowed layers keep at least,
    however long the text.
    """

    family: str
    context: int
    vocab_size: int
    hidden_size: int
    layers: int
    moe_layers: int
    dense_layers: int
    paged_layers: int
    windowed_layers: int
    experts: tuple[int, ...]
    top_k: tuple[int, ...]
    parameters_total: int
    parameters_active: int
    kv_bytes_per_token: int
    kv_expanded_bytes_per_token: int
    kv_window_bytes: int
    block_size: int
    sizes: tuple[PrecisionSizes, ...]


@dataclass(frozen=True)
class CheckpointFacts:
    """stored_bytes and dtypes are None where the directory holds a config alone. encoding: of
    quantized weights. skipped: lines about parts of the checkpoint that are not used.
    """

    kind: str
    path: str
    model: ModelFacts
    files: int
    stored_bytes: int | None
    dtypes: tuple[str, ...] | None
    encoding: str | None
    skipped: tuple[str, ...]
    tokenizer: bool


@dataclass(frozen=True)
class BundleFacts:
    """total_bytes: all files but the manifest; page_bytes: the largest page. graphs: how many
    GPU graphs, which engines are built of; graph_context: positions that those are for. gpu:
    this machine's, where the bundle has engines. incomplete_engines: about sets that lack a file,
    in words; engines_on: the device that builds engines itself, where it does.
    expert_bits: of each expert weight on average, scales included; bits: what it was asked to be.
    expert_formats: pages of each format, by layer."""

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
    expert_bits: float
    expert_formats: dict[int, dict[str, int]]
    bits: AverageBits | None
    segments: int
    active_experts: tuple[int, ...]
    chat_template: bool
    lossy: tuple[str, ...]
    toolchain: dict[str, str]
    graphs: int
    gpu: str | None
    engines: tuple[EngineSetFacts, ...]
    graph_context: int | None = None
    incomplete_engines: str = ""
    engines_on: str | None = None


def inspect_path(path: Path) -> CheckpointFacts | BundleFacts:
    """The facts of a bundle, of a checkpoint, or of a directory with a config.json alone.

    Raises:
        InputError: the path is none of these.
        CheckpointError, ConfigError, BundleError: it is one, but damaged or not supported.
    """
    if is_bundle(path):
        return _inspect_bundle(path)
    _need_config(path)
    return _inspect_checkpoint(path)


def _need_config(path: Path) -> None:
    """Raises InputError where `path` is no directory with a config.json."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give the directory of a checkpoint or of a bundle")
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} has neither config.json (a checkpoint) nor {MANIFEST} (a complete bundle)"
        )


def read_spec(path: Path) -> ModelSpec:
    """The spec of a checkpoint, from its config.json alone.

    Raises:
        InputError: there is none.
        CheckpointError, ConfigError: it is damaged or not supported.
    """
    _need_config(path)
    config = read_json(path / "config.json")
    try:
        return find_family(config).read_config(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _inspect_checkpoint(path: Path) -> CheckpointFacts:
    tokenizer = (path / "tokenizer.json").is_file()
    if not any((path / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        spec = read_spec(path)
        try:
            encoding = find_encoding(read_json(path / "config.json"))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        return CheckpointFacts(
            kind="config",
            path=str(path),
            model=model_facts(spec, BLOCK_SIZE),
            files=0,
            stored_bytes=None,
            dtypes=None,
            encoding=encoding.name if encoding is not None else None,
            skipped=(),
            tokenizer=tokenizer,
        )
    checkpoint = Checkpoint(path)
    return CheckpointFacts(
        kind="checkpoint",
        path=str(path),
        model=model_facts(checkpoint.spec, BLOCK_SIZE),
        files=len(set(checkpoint.files.values())),
        stored_bytes=checkpoint.stored_bytes(),
        dtypes=tuple(sorted(set(checkpoint.dtypes.values()))),
        encoding=checkpoint.encoding,
        skipped=checkpoint.skipped,
        tokenizer=tokenizer,
    )


def _inspect_bundle(path: Path) -> BundleFacts:
    manifest = read_manifest(path)
    model = model_facts(manifest.spec, manifest.precision.block_size or BLOCK_SIZE)
    gpu = gpu_here() if manifest.engines else None
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
        expert_bits=average_bits(manifest.experts),
        expert_formats={layer.layer: layer.histogram for layer in manifest.experts},
        bits=manifest.bits,
        segments=len(manifest.segments),
        active_experts=model.top_k,
        chat_template=CHAT_TEMPLATE in manifest.files,
        lossy=manifest.lossy,
        toolchain=manifest.toolchain,
        graphs=len(manifest.graphs.files()) if manifest.graphs is not None else 0,
        gpu=str(gpu) if gpu is not None else None,
        engines=tuple(engine_set_facts(item, manifest, gpu) for item in manifest.engines),
        graph_context=manifest.graphs.context if manifest.graphs is not None else None,
        incomplete_engines=incomplete_engines(path, manifest),
        engines_on=built_on(manifest),
    )


def model_facts(spec: ModelSpec, block_size: int) -> ModelFacts:
    count = count_parameters(spec)
    routers = [layer.router for layer in spec.layers if layer.router is not None and layer.is_moe]
    windows = [layer.window for layer in spec.layers if layer.window is not None]
    positions = sum(capacity(window, spec.max_context, SLACK) for window in windows)
    full_layers = spec.num_hidden_layers - len(windows)
    return ModelFacts(
        family=spec.family,
        context=spec.max_context,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        layers=spec.num_hidden_layers,
        moe_layers=len(routers),
        dense_layers=spec.num_hidden_layers - len(routers),
        paged_layers=len(spec.paged_layers),
        windowed_layers=len(windows),
        experts=tuple(sorted({router.num_experts for router in routers})),
        top_k=tuple(sorted({router.top_k for router in routers})),
        parameters_total=count.total,
        parameters_active=count.active,
        kv_bytes_per_token=4 * spec.cache_elements * full_layers,
        kv_expanded_bytes_per_token=4 * spec.expanded_elements * full_layers,
        kv_window_bytes=4 * spec.cache_elements * positions,
        block_size=block_size,
        sizes=tuple(precision_sizes(spec, precision, block_size) for precision in WHOLE_PRECISIONS),
    )


def precision_sizes(spec: ModelSpec, precision: str, block_size: int) -> PrecisionSizes:
    whole = Precision(precision, precision, precision, block_size)
    shapes = {name: shape for name, shape in end_shapes(spec).items() if name != "head.weight"}
    experts = page = 0
    for index, layer in enumerate(spec.layers):
        shapes |= layer_shapes(spec, index)
        if layer.router is not None:
            page_format = PageFormat(
                precision,
                block_size,
                spec.hidden_size,
                layer.intermediate_size,
                bias=spec.expert_bias,
                activation=spec.activation,
            )
            experts += page_format.nbytes * layer.router.num_experts
            page = max(page, page_format.nbytes)
    backbone = sum(
        4 * prod(shape)
        if len(shape) == 1
        else _matrix_bytes(shape, precision_of(name, whole), block_size)
        for name, shape in shapes.items()
    )
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
