"""The facts of a report, of a calibration record, of a bundle, or of both. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..analysis.planning.plan import NOT_MEASURED, ModelPlan, plan_model
from ..analysis.planning.policies import Lru
from ..analysis.planning.replay import belady, replay
from ..analysis.planning.route_sources import RouteSource, assumed_page, recorded_routes
from ..bundle.expert_layers import ExpertLayer
from ..bundle.manifest import TOKENIZER, Manifest, is_bundle, read_manifest
from ..bundle.pages import PageFormat
from ..calibration.record import CalibrationRecord, is_record, read_record
from ..errors import BundleError, InputError, TargetError
from ..progress import Progress, Silent
from ..runtime.paging.next_use import NextUse
from ..runtime.recording.routes import Routes
from ..targets import Target

ERRORS = "calibration.json"  # of a bundle: how far each expert is from its checkpoint's
_SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
_SILENT = Silent()


@dataclass(frozen=True)
class CachePoint:
    """Hit rates of a cache of so many pages. even: where experts are chosen evenly."""

    slots: int
    runtime: float
    lru: float
    optimum: float
    even: float


@dataclass(frozen=True)
class CacheCurve:
    """page_bytes: of a slot, which holds any page; assumed: nobody has said so yet, it is that of
    int4. token_slots: pages that one token needs. note: which routes."""

    points: tuple[CachePoint, ...]
    num_pages: int
    token_slots: int
    page_bytes: int
    assumed: bool
    note: str


@dataclass(frozen=True)
class LayerError:
    """Relative errors of a layer's experts, None where nothing was measured, and of what leaves
    the layer."""

    layer: int
    experts: tuple[float | None, ...]
    hidden: float | None


@dataclass(frozen=True)
class Report:
    """Of the record, the manifest or both. no_plan: why there is no plan."""

    path: str
    record: CalibrationRecord | None = None
    manifest: Manifest | None = None
    errors: tuple[LayerError, ...] = ()
    cache: CacheCurve | None = None
    plan: ModelPlan | None = None
    no_plan: str = ""


def gather_report(
    path: Path,
    *,
    calibration: Path | None = None,
    target: Target | None = None,
    measured: Target | None = None,
    progress: Progress = _SILENT,
) -> Report:
    """path: a record or a bundle; calibration: the record that goes with a bundle. target: whose
    speed is predicted; measured: this machine, for want of another.

    Raises:
        InputError: the path is neither, or the record is damaged or another model's.
        BundleError: the bundle is damaged.
        TargetError: the target does not have a precision of the bundle.
    """
    if not is_bundle(path):
        return _report_record(path, calibration, target, progress)
    manifest = read_manifest(path)
    record = None
    if calibration is not None:
        record = read_record(calibration)
        check_bundle(record, manifest, calibration, path)
    errors = read_errors(path, manifest)
    progress.stage("planning", 0)
    plan, no_plan = _plan(path, target, measured, calibration)
    cache = None
    if record is not None:
        cache = cache_curve(record, manifest.page_bytes, assumed=False, progress=progress)
    return Report(str(path), record, manifest, errors, cache, plan, no_plan)


def _report_record(
    path: Path, calibration: Path | None, target: Target | None, progress: Progress
) -> Report:
    if not path.exists():
        raise InputError(f"{path} does not exist; give a calibration record or a bundle")
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the directory of a calibration record or bundle")
    if not is_record(path):
        raise InputError(
            f"{path} is neither a calibration record nor a bundle; an unfinished calibration goes "
            "on with --resume"
        )
    for option, given in (("--calibration", calibration), ("--target", target)):
        if given is not None:
            raise InputError(f"{option} goes with a bundle, and {path} is a calibration record")
    record = read_record(path)
    pages = [assumed_page(i.input_square.shape[1], i.inner_square.shape[1]) for i in record.layers]
    largest = max((page.nbytes for page in pages), default=0)
    cache = cache_curve(record, largest, assumed=True, progress=progress)
    return Report(str(path), record, cache=cache, no_plan="a calibration record has no weights")


def _plan(
    path: Path, target: Target | None, measured: Target | None, routes: Path | None
) -> tuple[ModelPlan | None, str]:
    """The plan, or why there is none."""
    chosen = target or measured
    if chosen is None:
        return None, NOT_MEASURED
    try:
        plan = plan_model(path, chosen, routes=routes)
    except TargetError as error:
        if target is not None:
            raise
        return None, str(error)
    if all(row.speed is None for row in plan.rows):
        return None, f"the speed of target {chosen.name} is {NOT_MEASURED}"
    return plan, ""


def check_bundle(record: CalibrationRecord, manifest: Manifest, where: Path, bundle: Path) -> None:
    """Raises InputError where the record cannot be of the model that the bundle was made of."""
    tokenizer = manifest.files.get(TOKENIZER)
    same = record.provenance.family == manifest.spec.family
    same = same and (tokenizer is None or tokenizer.sha256 == record.provenance.tokenizer)
    found = {item.layer: len(item.usage) for item in record.layers}
    if not same or found != {item.layer: len(item.offsets) for item in manifest.experts}:
        raise InputError(
            f"{where} is the calibration of another model than {bundle} was made of; calibrate "
            "that one"
        )


def cache_curve(
    record: CalibrationRecord,
    page_bytes: int,
    *,
    assumed: bool,
    progress: Progress = _SILENT,
) -> CacheCurve | None:
    """None where the record has no routes."""
    num_pages = sum(len(item.usage) for item in record.layers)
    if not num_pages:
        return None
    source: RouteSource = recorded_routes(record)
    # All slots are of one size, whatever a layer's pages have.
    routes = Routes(source.routes.visits, dict.fromkeys(source.routes.layers, 1))
    sizes = sorted({max(1, round(share * num_pages)) for share in _SHARES})
    tokens = sum(visit.layer == routes.layers[0] for visit in routes.visits)
    progress.stage("replaying", tokens * len(sizes))
    points = []
    for slots in sizes:
        points.append(
            CachePoint(
                slots,
                runtime=replay(routes, slots, NextUse(len(routes.layers))).hit_rate,
                lru=replay(routes, slots, Lru()).hit_rate,
                optimum=replay(routes, slots, belady(routes)).hit_rate,
                even=slots / num_pages,
            )
        )
        progress.advance(tokens)
    token = sum(item.experts.shape[1] for item in record.layers)
    return CacheCurve(tuple(points), num_pages, token, page_bytes, assumed, source.note)


def formats_of(layer: ExpertLayer) -> tuple[PageFormat, ...]:
    """The format of each expert's page."""
    each = getattr(layer, "format_of", None)  # where a layer has pages of several formats
    count = len(layer.offsets)
    return tuple(each(expert) if each is not None else layer.format for expert in range(count))


def format_name(page: PageFormat) -> str:
    return f"{page.precision}, blocks of {page.block_size}" if page.quantized else page.precision


def bits_per_weight(page: PageFormat) -> float:
    """Scales are counted; biases and padding are not."""
    tensors = page.tensors()
    stored = sum(item.nbytes for item in tensors if item.kind != "bias")
    weights = sum(prod(item.shape) for item in tensors if item.kind == page.precision)
    return 8 * stored / weights


def read_errors(bundle: Path, manifest: Manifest) -> tuple[LayerError, ...]:
    """None for a bundle that was made without a calibration.

    Raises:
        BundleError: the file is not what a compile writes.
    """
    path = bundle / ERRORS
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    counts = {item.layer: len(item.offsets) for item in manifest.experts}
    try:
        found = tuple(_layer_error(item) for item in data["layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, repr(error)) from error
    for item in found:
        if len(item.experts) != counts.get(item.layer):
            raise _damaged(path, f"layer {item.layer} is not the bundle's")
    return tuple(sorted(found, key=lambda item: item.layer))


def _layer_error(item: dict[str, Any]) -> LayerError:
    experts: Sequence[Any] = item["error"]
    return LayerError(int(item["layer"]), tuple(map(_number, experts)),
                      _number(item.get("hidden_error")))  # fmt: skip


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None


def _damaged(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path} is damaged ({reason}); compile the bundle again")
