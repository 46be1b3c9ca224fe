"""Bits by expert: against trying everything, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.calibration.candidates import CANDIDATES, candidates_for, output_errors
from pocketmoe.calibration.record import CalibrationRecord, LayerRecord, Provenance
from pocketmoe.compiler.calibrated.bits import choose_candidates, plan_bits
from pocketmoe.errors import InputError
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.spec import ModelSpec
from pocketmoe.targets import find_target
from pocketmoe.tests.support.examples import examples

BITS = np.array([item.bits for item in CANDIDATES])
WHERE = Path("cal")


def random_errors(seed: int, count: int, *, orderly: bool = True) -> np.ndarray:
    """Of experts that differ in what they matter; not orderly: more bits may be worse."""
    random = np.random.default_rng(seed)
    shape = (count, len(BITS))
    if not orderly:
        return random.lognormal(0, 2, shape) * 1e-6
    falling = np.array([1, 0.85, 0.7, 0.004, 1e-5])
    return random.lognormal(0, 2, (count, 1)) * falling * random.lognormal(0, 0.05, shape) * 1e-6


def total(errors: np.ndarray, chosen: np.ndarray) -> float:
    return float(errors[np.arange(len(chosen)), chosen].sum())


@settings(deadline=None, max_examples=examples(60))
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=1, max_size=5),
    most=st.floats(4.125, 16),
    orderly=st.booleans(),
)
def test_no_other_choice_is_better(
    seed: int, sizes: list[float], most: float, orderly: bool
) -> None:
    errors, size = random_errors(seed, len(sizes), orderly=orderly), np.array(sizes)
    chosen = choose_candidates(errors, size, BITS, most)
    allowed = most * size.sum() * (1 + 1e-9)
    assert size @ BITS[chosen] <= allowed
    tried = (np.array(c) for c in itertools.product(range(len(BITS)), repeat=len(sizes)))
    best = min(total(errors, c) for c in tried if size @ BITS[c] <= allowed)
    assert total(errors, chosen) <= best * (1 + 1e-6)


@settings(deadline=None, max_examples=examples(20))
@given(seed=st.integers(0, 2**32 - 1), orderly=st.booleans())
def test_more_bits_are_never_worse_and_never_exceeded(seed: int, orderly: bool) -> None:
    errors = random_errors(seed, 200, orderly=orderly)
    sizes = np.ones(200)
    before = np.inf
    for most in (4.125, 4.2, 4.25, 4.26, 5, 8.25, 12, 16):
        chosen = choose_candidates(errors, sizes, BITS, most)
        assert BITS[chosen].mean() <= most * (1 + 1e-9)
        assert total(errors, chosen) <= before * (1 + 1e-9)
        before = total(errors, chosen)
    if orderly:
        assert set(chosen.tolist()) == {len(BITS) - 1}


def test_many_experts_are_no_matter() -> None:
    """As many as in the largest models; far better than the best uniform choice."""
    errors = random_errors(0, 15_000)
    chosen = choose_candidates(errors, np.ones(15_000), BITS, 4.25)
    assert BITS[chosen].mean() <= 4.25
    assert total(errors, chosen) < 0.7 * errors[:, 1].sum()


def test_what_overflows_is_not_chosen() -> None:
    errors = random_errors(1, 20)
    errors[:10, -1] = np.inf
    chosen = choose_candidates(errors, np.ones(20), BITS, 16)
    assert set(chosen[:10].tolist()) == {3}
    assert set(chosen[10:].tolist()) == {4}


def make_record(spec: ModelSpec, names: tuple[str, ...]) -> CalibrationRecord:
    layers = []
    for layer in spec.paged_layers:
        router = spec.layers[layer].router
        assert router is not None
        count = router.num_experts
        empty = np.zeros((0, 0), np.float32)
        errors = random_errors(layer, count)[:, : len(names)].astype(np.float32)
        layers.append(
            LayerRecord(
                layer, empty, empty, np.ones(count, np.int64), np.ones(count), empty, empty, empty,
                None, errors,
            )
        )  # fmt: skip
    provenance = Provenance("", "", "", "", "", 0, 0, 0, False, "")
    return CalibrationRecord(provenance, np.zeros((1, 1), np.int64), tuple(layers), names)


def wide_spec() -> ModelSpec:
    family = FAMILIES["olmoe"]
    config = {**family.tiny, "hidden_size": 256, "intermediate_size": 128}
    return family.read_config(config)


NAMES = tuple(item.name for item in CANDIDATES)


def test_the_plan_keeps_the_average_and_names_each_experts_format() -> None:
    spec = wide_spec()
    plan = plan_bits(make_record(spec, NAMES), spec, find_target("cpu"), 5, WHERE)
    pages = [page for layer in plan.formats.values() for page in layer]
    assert plan.average.asked == 5
    assert plan.average.reached == pytest.approx(np.mean([page.weight_bits for page in pages]))
    assert plan.average.reached <= 5
    assert len({page.name for page in pages}) > 2
    assert plan.precision.startswith("int4+int8")


def test_for_a_gpu_the_experts_of_a_layer_are_alike() -> None:
    spec = wide_spec()
    plan = plan_bits(make_record(spec, NAMES), spec, find_target("rtx-4060-8gb"), 8.3, WHERE)
    assert all(len(set(layer)) == 1 for layer in plan.formats.values())
    assert plan.average.reached <= 8.3


def test_what_is_refused() -> None:
    spec, cpu = wide_spec(), find_target("cpu")
    record = make_record(spec, NAMES)
    for bits in (3, 4.1, 16.5, float("nan")):
        with pytest.raises(InputError, match=r"cannot be met.*from 4.125 to 16 bits"):
            plan_bits(record, spec, cpu, bits, WHERE)
    with pytest.raises(InputError, match="calibrate again"):
        plan_bits(replace(record, candidates=()), spec, cpu, 5, WHERE)
    with pytest.raises(InputError, match=r"'int3/64'.*calibrate again"):
        plan_bits(replace(record, candidates=("int3/64",)), spec, cpu, 5, WHERE)
    fp8_alone = replace(cpu, name="odd", precisions=("fp8",))
    with pytest.raises(InputError, match="nothing to choose from for target odd"):
        plan_bits(record, spec, fp8_alone, 5, WHERE)


def test_candidates_fit_the_widths_and_more_bits_err_less() -> None:
    import torch

    from pocketmoe.model.module import GatedFFN

    spec = wide_spec()
    assert candidates_for(spec) == CANDIDATES
    narrow = {**FAMILIES["olmoe"].tiny, "hidden_size": 96, "intermediate_size": 64}
    names = [item.name for item in candidates_for(FAMILIES["olmoe"].read_config(narrow))]
    assert names == ["int4/32", "fp16"]
    torch.manual_seed(0)
    module, x, weights = GatedFFN(256, 128), torch.randn(700, 256), torch.rand(700)
    errors = output_errors(module, x, weights, CANDIDATES)
    assert (np.diff(errors) < 0).all()
    # Twice the share is four times the squared error; no token, no error.
    assert np.allclose(output_errors(module, x, 2 * weights, CANDIDATES), 4 * errors, rtol=1e-3)
    assert not output_errors(module, x[:0], weights[:0], CANDIDATES).any()
