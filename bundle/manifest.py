"""The bundle: a directory that a device can run. This file is the only owner of its format.

manifest.json                  this file's `Manifest`
tokenizer.json
chat.json                      the chat template and its special tokens, where there is one
backbone/embedding.bin         one row per token
backbone/predictors.bin        routers to guess the next layer's experts with; may be missing
backbone/segment_000.onnx …    from one paged layer to the next; the last one ends in the logits
backbone/segment_000.bin …     their weights
backbone/segment_000.json …    where each weight lies (see weight_index.py); absent in older bundles
experts/layer_000/pages.bin    one page per expert (see pages.py)
experts/layer_000/expert_000.onnx …   each expert as a standard ONNX graph over its page
experts/layer_000/engine.onnx         the same function with a page's tensors as inputs
experts/layer_000/engine_1.onnx …     and for each further page format of the layer
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BundleError, ConfigError
from ..model.spec import ModelSpec, spec_from_json
from .expert_layers import ExpertLayer, expert_layer_from_json
from .footprint import Footprint, LayerFootprint, predictor_bytes
from .gpu_graphs import (
    EngineSet,
    GpuGraphs,
    engine_set_from_json,
    graphs_from_json,
    rebuilding,
    to_json,
)
from .pages import ExpertPage

FORMAT_VERSION = 3
_READABLE = (2, FORMAT_VERSION)
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat.json"
EMBEDDING = "backbone/embedding.bin"
PREDICTORS = "backbone/predictors.bin"
CALIBRATION = "calibration.json"  # how experts were quantized, and their errors
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Precision:
    """How the three parts are stored; block_size applies to what is quantized."""

    experts: str
    backbone: str
    head: str
    block_size: int


@dataclass(frozen=True)
class Segment:
    """One backbone graph.

    layers: the decoder layers whose attention it runs. router_layer: the paged layer whose routing
    it ends with; None for the last segment, which ends in the logits.
    """

    file: str
    layers: tuple[int, ...]
    router_layer: int | None


@dataclass(frozen=True)
class AverageBits:
    """Of each expert weight, its share of a scale included: what was asked for, and reached."""

    asked: float
    reached: float


@dataclass(frozen=True)
class FileRecord:
    """size in bytes; sha256 of the whole file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its weights.

    backbone_bytes: what the backbone's weights take in memory once loaded, in bytes.
    toolchain: versions of what made it. lossy: named choices that changed the model's output.
    graphs, engines: what GPUs run; None and empty in a bundle for CPUs alone. incomplete: sets of
    engines with files that are not there, or not whole, which `missing` names: a bundle serves
    without them. bits: where experts are stored in formats of their own, chosen for an average.
    """

    spec: ModelSpec
    target: str
    precision: Precision
    embedding_dtype: str
    segments: tuple[Segment, ...]
    experts: tuple[ExpertLayer, ...]
    backbone_bytes: int
    toolchain: dict[str, str]
    lossy: tuple[str, ...] = ()
    files: dict[str, FileRecord] = field(default_factory=dict)
    graphs: GpuGraphs | None = None
    engines: tuple[EngineSet, ...] = ()
    bits: AverageBits | None = None
    incomplete: tuple[EngineSet, ...] = ()
    missing: tuple[str, ...] = ()
    version: int = FORMAT_VERSION

    @property
    def expert_bytes(self) -> int:
        return sum(page.nbytes for page in self.pages())

    @property
    def total_bytes(self) -> int:
        """Size of the bundle's files, the manifest left out."""
        return sum(record.size for record in self.files.values())

    @property
    def page_bytes(self) -> int:
        """Size of the largest page."""
        formats = (page_format for layer in self.experts for page_format in layer.formats)
        return max((page_format.nbytes for page_format in formats), default=0)

    @property
    def num_pages(self) -> int:
        return sum(len(layer.offsets) for layer in self.experts)

    @property
    def footprint(self) -> Footprint:
        """What memory and speed follow from."""
        layers = [
            LayerFootprint(pages.layer, pages.formats, pages.counts, router.top_k)
            for pages in self.experts
            if (router := self.spec.layers[pages.layer].router) is not None
        ]
        guessing = predictor_bytes(self.spec) if PREDICTORS in self.files else 0
        return Footprint(
            self.spec, len(self.segments), self.backbone_bytes, tuple(layers), guessing
        )

    def pages(self) -> Iterator[ExpertPage]:
        for layer in self.experts:
            for expert in range(len(layer.offsets)):
                yield layer.page(expert)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "pocketmoe bundle",
            "version": self.version,
            "spec": self.spec.to_json(),
            "target": self.target,
            "precision": vars(self.precision),
            "embedding_dtype": self.embedding_dtype,
            "segments": [vars(segment) for segment in self.segments],
            "experts": [layer.to_json() for layer in self.experts],
            "backbone_bytes": self.backbone_bytes,
            "toolchain": self.toolchain,
            "lossy": self.lossy,
            "graphs": to_json(self.graphs),
            "engines": [to_json(item) for item in self.engines],
            **({"bits": vars(self.bits)} if self.bits is not None else {}),
            "files": {name: vars(record) for name, record in sorted(self.files.items())},
        }


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Writes manifest.json beside and renames it."""
    temporary = root / (MANIFEST + ".tmp")
    data = manifest.to_json()
    data["sha256"] = _own_hash(data)
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, root / MANIFEST)


def _own_hash(data: dict[str, Any]) -> str:
    """Of the manifest's own content."""
    content = {name: value for name, value in data.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_manifest(root: Path) -> Manifest:
    """Reads manifest.json and checks that every file is there, with its size. Engines that are not
    are left out, with their sets.

    Raises:
        BundleError: no bundle, another version, a damaged manifest, or a missing or cut file.
    """
    path = root / MANIFEST
    if root.exists() and not root.is_dir():
        raise BundleError(f"{root} is a file; a bundle is a directory")
    if not root.is_dir():
        raise BundleError(f"bundle {root} does not exist; `pocketmoe compile` makes one")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "config.json").is_file():
            raise BundleError(
                f"{root} is a checkpoint; `pocketmoe compile` makes a bundle of it"
            ) from None
        raise BundleError(f"{root} has no {MANIFEST}: it is not a (complete) bundle") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); compile the bundle again") from error
    version = data.get("version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path} is not a pocketmoe manifest")
    if version not in _READABLE:
        remedy = "update pocketmoe" if version > FORMAT_VERSION else "compile the bundle again"
        raise BundleError(
            f"{root} has format version {version}, and this pocketmoe reads "
            f"{FORMAT_VERSION}: {remedy}"
        )
    if data.get("sha256") != _own_hash(data):
        raise BundleError(f"{path} is damaged (its hash is another); compile the bundle again")
    try:
        manifest = _manifest_from_json(data)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(f"{path} is damaged ({error!r}); compile the bundle again") from error
    _check_paths(root, manifest)
    manifest = _without_incomplete(root, manifest)
    _check_files(root, manifest)
    return manifest


def _manifest_from_json(data: dict[str, Any]) -> Manifest:
    return Manifest(
        spec=spec_from_json(data["spec"]),
        target=data["target"],
        precision=Precision(**data["precision"]),
        embedding_dtype=data["embedding_dtype"],
        segments=tuple(
            Segment(item["file"], tuple(item["layers"]), item["router_layer"])
            for item in data["segments"]
        ),
        experts=tuple(map(expert_layer_from_json, data["experts"])),
        backbone_bytes=int(data["backbone_bytes"]),
        toolchain=dict(data["toolchain"]),
        lossy=tuple(data["lossy"]),
        files={name: FileRecord(**record) for name, record in data["files"].items()},
        graphs=graphs_from_json(data.get("graphs")),
        engines=tuple(engine_set_from_json(item) for item in data.get("engines", ())),
        bits=AverageBits(**data["bits"]) if data.get("bits") is not None else None,
        version=data["version"],
    )  # fmt: skip


def _check_paths(root: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{root / MANIFEST} names a file outside the bundle: {name}")
    needed = [EMBEDDING, *(segment.file for segment in manifest.segments)]
    needed += manifest.graphs.files() if manifest.graphs is not None else ()
    needed += [file for item in manifest.engines for file in item.files]
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{root / MANIFEST} does not list {name}; compile the bundle again")


def _without_incomplete(root: Path, manifest: Manifest) -> Manifest:
    """The manifest without the sets that lack an engine: others run the bundle meanwhile."""
    files = dict.fromkeys(file for item in manifest.engines for file in item.files)
    missing = tuple(f for f in files if not _has_size(root / f, manifest.files[f].size))
    if not missing:
        return manifest
    incomplete = tuple(i for i in manifest.engines if not i.files.isdisjoint(missing))
    whole = tuple(item for item in manifest.engines if item not in incomplete)
    dropped = files.keys() - {file for item in whole for file in item.files}
    return replace(
        manifest, engines=whole, incomplete=incomplete, missing=missing,
        files={name: item for name, item in manifest.files.items() if name not in dropped},
    )  # fmt: skip


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _check_files(root: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        try:
            size = (root / name).stat().st_size
        except OSError:
            raise BundleError(f"{root / name} is missing; compile the bundle again") from None
        if size != record.size:
            raise BundleError(
                f"{root / name} has {size} bytes, and the manifest says {record.size}; "
                "compile the bundle again"
            )
    for layer in manifest.experts:
        size = manifest.files[layer.file].size if layer.file in manifest.files else 0
        pages = map(layer.page, range(len(layer.offsets)))
        if any(page.offset + page.nbytes > size for page in pages):
            raise BundleError(f"{root / layer.file} is too short for its pages")


def hash_file(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file; `progress` is told the bytes of each step."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def check_file(root: Path, manifest: Manifest, name: str) -> None:
    """Raises BundleError where a file is not what the compiler wrote."""
    if hash_file(root / name) != manifest.files[name].sha256:
        built = [item for item in manifest.engines if name in item.files]
        remedy = rebuilding(str(root), built) if built else "compile the bundle again"
        raise BundleError(f"{root / name} is damaged: its hash is not the manifest's; {remedy}")
