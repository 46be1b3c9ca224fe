"""Compute capabilities that engines are built for: what TensorRT can, and a bundle's precision
allows."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from ..bundle.gpu_graphs import GpuGraphs, capability_name
from ..bundle.manifest import Precision
from ..errors import EngineError, InputError, TargetError
from ..targets import Target
from .libraries import RTX, STOCK, is_installed, load_tensorrt, version_numbers

# What TensorRT for RTX 1.7 builds for on a machine without a GPU.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# It multiplies no fp32 matrices there.
_NO_FP32_PRODUCTS = ("7.5",)
# The least that a precision needs: TensorRT refuses it below.
_NEEDS = {"int4": "8.0", "fp8": "8.9", "fp32": "8.0"}
_ARCHITECTURE = re.compile(r"(?:sm_?)?(\d{1,2})\.?(\d)", re.IGNORECASE)

_log = logging.getLogger(__name__)


def plan_engines(target: Target, precision: Precision, *, portable: bool) -> tuple[str, ...]:
    """The architectures that `compile` builds engines for; none where the device builds its own.

    portable: every one that the precision allows, not the target's alone. TensorRT is loaded, so
    that what is missing is said before the work begins.

    Raises:
        EngineError: TensorRT for RTX does not load, or does not build for the target.
        TargetError: portable, for a target whose engines are not built here.
    """
    if target.toolchain != RTX or target.compute_capability is None:
        if portable:
            raise TargetError(
                f"--portable has no effect for target {target.name}: TensorRT for RTX alone builds "
                "engines for other devices"
            )
        return ()
    try:
        load_tensorrt(RTX)
    except EngineError as error:
        raise EngineError(
            f"{error}; or compile with --no-engines, and 'pocketmoe build' adds them later"
        ) from error
    check_capability(target.compute_capability, precision)
    return portable_capabilities(precision) if portable else (target.compute_capability,)


def has_fp32_products(target: Target, capabilities: Sequence[str]) -> bool:
    """Whether all that a bundle's graphs are for multiply fp32 matrices."""
    everywhere = {*capabilities, target.compute_capability}
    return target.toolchain != RTX or everywhere.isdisjoint(_NO_FP32_PRODUCTS)


def portable_capabilities(precision: Precision, graphs: GpuGraphs | None = None) -> tuple[str, ...]:
    """Every architecture that the precision allows, and the graphs, if they are there; the others
    are named in a warning."""
    left_out = {c: lack for c in RTX_CAPABILITIES if (lack := _lacks(c, precision))}
    if graphs is not None and graphs.fp32_products:
        left_out = {**dict.fromkeys(_NO_FP32_PRODUCTS, "fp32 products"), **left_out}
    if left_out:
        named = ", ".join(f"{capability_name(c)} (no {lack})" for c, lack in left_out.items())
        _log.warning("no engines for %s", named)
    return tuple(c for c in RTX_CAPABILITIES if c not in left_out)


def _check_products(capability: str, graphs: GpuGraphs) -> None:
    """Raises EngineError where the graphs multiply fp32 matrices and the architecture does not."""
    if graphs.fp32_products and capability in _NO_FP32_PRODUCTS:
        raise EngineError(
            f"the bundle's graphs are not for {capability_name(capability)}, which multiplies no "
            "fp32 matrices: compile it with such a GPU as its --target, or with --portable"
        )


def check_capability(capability: str, precision: Precision) -> None:
    """Raises EngineError where TensorRT for RTX builds no engines of this precision for it."""
    name = capability_name(capability)
    if capability not in RTX_CAPABILITIES:
        raise EngineError(
            f"TensorRT for RTX builds no engines for {name}; it does for "
            f"{', '.join(map(capability_name, RTX_CAPABILITIES))}"
        )
    if lack := _lacks(capability, precision):
        raise EngineError(
            f"{name} has no {lack}, which this bundle is stored in; it needs "
            f"{capability_name(_NEEDS[lack])} or newer, or another --precision when compiling"
        )


def _lacks(capability: str, precision: Precision) -> str | None:
    """The precision of a part that an architecture does not have."""
    # Experts may be stored in several, as "int4+int8".
    for part in (*precision.experts.split("+"), precision.backbone, precision.head):
        least = _NEEDS.get(part)
        if least is not None and version_numbers(capability) < version_numbers(least):
            return part
    return None


def parse_capability(text: str) -> str:
    """ "sm89", "89" and "8.9" as "8.9".

    Raises:
        InputError: it is none of these.
    """
    found = _ARCHITECTURE.fullmatch(text.strip())
    if found is None:
        known = ", ".join(map(capability_name, RTX_CAPABILITIES))
        raise InputError(f"there is no architecture {text!r}: write it as sm89; known are {known}")
    return f"{int(found.group(1))}.{found.group(2)}"


def choose_toolchain(
    wanted: str | None, target: Target | None, architectures: Sequence[str], *, portable: bool
) -> str:
    """The toolchain for a bundle's engines: the one asked for, that of architectures that were
    named, else the target's where it is installed, else whichever is. target: None where the
    bundle's is not known here.

    Raises:
        InputError: architectures for TensorRT, which builds for the GPU that is here.
        EngineError: the target's engines are built on it alone, and this machine has no TensorRT.
    """
    named = [parse_capability(name) for name in architectures]
    if named and portable:
        raise InputError("--arch and --portable contradict each other: leave one out")
    own = target.toolchain if target is not None and target.toolchain in (RTX, STOCK) else RTX
    itself = own == STOCK and target is not None and target.compute_capability in named
    if wanted == STOCK or (wanted is None and itself):
        if named or portable:
            option = "--portable" if portable else "--arch"
            raise InputError(
                f"{option} is for tensorrt-rtx, and tensorrt builds for the GPU that is here "
                f"alone: leave out {option}"
            )
        return STOCK
    if wanted is not None or named or portable:
        return RTX
    if own == STOCK and target is not None and not is_installed(STOCK):
        raise EngineError(
            f"engines for {target.name} are built on the device, with TensorRT: copy the bundle "
            "there and run 'pocketmoe build' there"
        )
    if own == RTX and not is_installed(RTX) and is_installed(STOCK):
        _log.warning("%s is not installed here: engines are built with %s", RTX, STOCK)
        return STOCK
    return own


def choose_capabilities(
    wanted: Sequence[str],
    target: Target | None,
    precision: Precision,
    graphs: GpuGraphs,
    *,
    portable: bool,
) -> tuple[str, ...]:
    """What TensorRT for RTX builds for: what was asked for, else the architecture of the target.

    Raises:
        InputError: an architecture is not written as one, or none is known.
        EngineError: there are no engines for one of them.
    """
    if portable:
        return portable_capabilities(precision, graphs)
    capabilities = tuple(dict.fromkeys(map(parse_capability, wanted)))
    if not capabilities and target is not None and target.compute_capability is not None:
        capabilities = (target.compute_capability,)
    if not capabilities:
        raise InputError("the bundle's target names no architecture: choose one with --arch")
    for capability in capabilities:
        check_capability(capability, precision)
        _check_products(capability, graphs)
    return capabilities
