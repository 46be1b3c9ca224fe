"""Sessions on the native kernels: against ONNX Runtime, paged, and where there are none."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pocketmoe
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.errors import InputError
from pocketmoe.runtime.cpu import experts, loading
from pocketmoe.runtime.cpu.experts import choose_kernels
from pocketmoe.runtime.memory import budget
from pocketmoe.runtime.native import library

needs_library = pytest.mark.skipif(not library.available(), reason="no native library")
TOKENS = np.random.default_rng(0).integers(1, 384, 40).tolist()


def run(bundle: Path, kernels: str) -> tuple[np.ndarray, str]:
    """Logits of a prompt and of tokens one by one; the engine's name."""
    with pocketmoe.open(bundle, kernels=kernels) as opened:
        parts = [opened.forward(TOKENS[:30])]
        parts += [opened.forward([token]) for token in TOKENS[30:]]
        return np.concatenate(parts), opened.stats.expert_engine


@needs_library
@pytest.mark.parametrize(
    ("precision", "bound"),
    [
        ("fp32", 1e-5),
        ("experts=fp16,backbone=fp32,head=fp32", 1e-5),
        ("experts=int8,backbone=fp32,head=fp32", 0.01),  # activations are rounded to int8
        ("experts=int4,backbone=fp32,head=fp32", 0.01),
    ],
)
def test_both_engines_agree(
    compile_tiny: Callable[[str], Path], precision: str, bound: float
) -> None:
    bundle = compile_tiny(precision)
    native, name = run(bundle, "native")
    other, other_name = run(bundle, "onnxruntime")
    apart = np.abs(native - other).max(axis=1) / np.abs(other).max()
    # Rounding may send a token to other experts: then that one's logits differ, most others' not.
    assert (apart.max() if bound < 1e-4 else np.median(apart)) < bound
    assert name == f"native, {library.instruction_sets()[0]}"
    assert other_name == "onnxruntime"
    assert run(bundle, "auto")[0].tobytes() == native.tobytes()


@needs_library
@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_paged_is_resident_to_the_byte(
    compile_tiny: Callable[[str], Path], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = compile_tiny(precision)
    resident = run(bundle, "native")[0]
    plan = loading.plan_memory

    def few_slots(*args: object, **kwargs: object) -> budget.MemoryPlan:
        return dataclasses.replace(plan(*args, **kwargs), slots=3)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "plan_memory", few_slots)
    assert run(bundle, "native")[0].tobytes() == resident.tobytes()


def test_without_the_library_onnx_runtime_serves_and_it_is_said_once(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = run(tiny_bundle, "onnxruntime")[0]
    monkeypatch.setattr(experts, "available", lambda: False)
    monkeypatch.setattr(experts, "_said", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            logits, name = run(tiny_bundle, "auto")
            assert name == "onnxruntime"
            assert logits.tobytes() == wanted.tobytes()
    assert [record.message for record in caplog.records if "native" in record.message] == [
        "the native kernels are not built; install pocketmoe again where there is a C++ compiler; "
        "ONNX Runtime computes the experts, slower"
    ]
    caplog.clear()
    monkeypatch.setattr(experts, "_said", set())
    monkeypatch.setattr(experts, "find_spec", lambda _: None)
    assert choose_kernels("auto", read_manifest(tiny_bundle), 1) is None
    assert caplog.messages == []  # its absence is an error, which is enough
    with pytest.raises(InputError, match="not built"):
        pocketmoe.open(tiny_bundle, kernels="native")
    with pytest.raises(InputError, match="one of auto, native, onnxruntime"):
        pocketmoe.open(tiny_bundle, kernels="cuda")


def test_a_library_that_the_system_cannot_load_is_none(tmp_path: Path) -> None:
    broken = tmp_path / "libpocketmoe.so"
    broken.write_bytes(b"\x7fELF nothing")
    assert library.library_path(tmp_path) == broken
    assert library.load_library(broken) is None
    assert library.library_path(tmp_path / "none") is None


@needs_library
def test_the_plan_counts_what_the_kernels_hold(tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, kernels="native") as opened:
        kernels = opened._runner._engines[1]._kernels  # type: ignore[attr-defined]
        opened.forward(TOKENS * 4)
        bound = experts.native_bytes(kernels, opened.manifest, opened.plan.batch)
        assert 0 < kernels.nbytes <= bound <= opened.plan.workspace
