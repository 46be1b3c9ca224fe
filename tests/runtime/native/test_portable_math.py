"""Exponentials and rotary tables: exact enough, and the bytes that are written down here from every
instruction set, with and without the library. So another machine's differ from none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest

from pocketmoe.model.rope import RopeSpec, frequencies
from pocketmoe.powers import logarithm, power, powers
from pocketmoe.runtime.generation.sampling import Sampler, Sampling, log_probabilities
from pocketmoe.runtime.native import library, portable_math
from pocketmoe.runtime.native.kernels import NativeKernels
from pocketmoe.runtime.rope_table import RopeTable

SETS = library.instruction_sets()
Table = Callable[[np.ndarray, int, float, np.ndarray, np.ndarray], None]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def floats_of_all_exponents() -> np.ndarray:
    """One float in 1,021, infinities included."""
    x = np.arange(0, 2**32, 1021, dtype=np.uint32).view(np.float32)
    return np.append(x[~np.isnan(x)], np.array([np.inf, -np.inf], np.float32))


@pytest.mark.parametrize("name", SETS)
def test_e_to_the_x_of_floats(name: str) -> None:
    kernels, x = NativeKernels(1, instruction_set=name), floats_of_all_exponents()
    found = kernels.exponentials(x)
    exact = np.exp(x.astype(np.float64).clip(-1000, 700))
    usual = (x > -87.33) & (x < 88.37)
    error = np.abs(found - exact)[usual] / np.spacing(exact[usual].astype(np.float32))
    assert 0.9 < error.max() < 1
    assert (found[x < -87.69] == 0).all()
    assert (found[x > 88.38] == np.inf).all()
    assert found[x == 0].tolist() == [1.0]
    assert np.isnan(kernels.exponentials(np.array([np.nan, 1], np.float32))).tolist() == [
        True,
        False,
    ]
    assert digest(found) == "b0478be1abda0a98"


EXPONENTIALS: dict[str, Callable[[np.ndarray], None]] = {
    "numpy": portable_math.numpy_exponentials,
    "as sampling calls it": portable_math.exponentials,
    **{name: NativeKernels(1, instruction_set=name).exponentials64 for name in SETS},
}
TABLES: dict[str, Table] = {
    "numpy": portable_math.numpy_rotary_table,
    "as a session calls it": portable_math.rotary_table,
    **{name: NativeKernels(1, instruction_set=name).rotary_table for name in SETS},
}


@pytest.mark.parametrize("way", EXPONENTIALS)
def test_e_to_the_x_of_doubles(way: str) -> None:
    x = np.concatenate([(np.arange(1_000_000) - 500_000) / 698.0, [0, -0.0, 5e-324, 1e308, -1e308]])
    found = x.copy()
    EXPONENTIALS[way](found)
    usual = np.abs(x) < 708.3
    exact = np.exp(x[usual].astype(np.longdouble))
    error = np.abs(found[usual] - exact) / np.spacing(found[usual])
    assert error.max() < 1
    assert (found[x < -708.8] == 0).all()
    assert (found[x > 709.44] == np.inf).all()
    assert digest(found) == "bcc360600fcb0588"
    others = np.array([np.nan, np.inf, -np.inf])
    EXPONENTIALS[way](others)
    assert repr(others.tolist()) == "[nan, inf, 0.0]"


@pytest.mark.parametrize("way", TABLES)
def test_rotary_tables(way: str) -> None:
    found = []
    speeds = np.array([1.0, 0.3, 1e-3, 7.7e-5, 3.0], np.float32)
    for start in (0, 70_000, 300_000):
        cos, sin = np.empty((2, 1000, 5), np.float32)
        TABLES[way](speeds, start, 1.0, cos, sin)
        angles = np.arange(start, start + 1000).astype(np.float32)[:, None] * speeds
        assert (cos == np.cos(angles.astype(np.longdouble)).astype(np.float32)).all()
        assert (sin == np.sin(angles.astype(np.longdouble)).astype(np.float32)).all()
        scaled = np.empty((2, 1000, 5), np.float32)
        TABLES[way](speeds, start, 1.1, *scaled)
        assert scaled.tobytes() == (np.stack([cos, sin]) * np.float32(1.1)).tobytes()
        found += [cos, sin]
    assert digest(*found) == "0993ad5acddbcbc7"


def test_powers_and_logarithms_are_the_nearest_floats() -> None:
    for x in (1.0, 1e-300, 5e-324, 3.25, 1e4, 1e300, 2.0**-52 + 1):
        assert math.isclose(logarithm(x), math.log(x), rel_tol=3e-16)
    assert logarithm(1.0) == 0
    assert power(3.0, 4, 2) == 9
    assert power(2.0, 1, 2) == math.sqrt(2)
    assert powers(81.0, 4) == [1.0, 3.0, 9.0, 27.0]


ROPES = {
    "default": RopeSpec(1e4, 64),
    "other base and width": RopeSpec(640_000.0, 96),
    "linear": RopeSpec(1e4, 64, kind="linear", factor=3.0),
    "dynamic": RopeSpec(1e4, 64, kind="dynamic", factor=4.0, original_length=500),
    "yarn": RopeSpec(1.5e5, 64, kind="yarn", factor=32.0, original_length=4096, truncate=False),
    "llama3": RopeSpec(5e5, 128, kind="llama3", factor=8.0, original_length=8192,
                       low_freq_factor=1.0, high_freq_factor=4.0),
}  # fmt: skip


def test_frequencies_and_the_tables_of_a_session() -> None:
    found = []
    for rope in ROPES.values():
        values, _ = frequencies(rope, 1000)
        if rope.kind == "default":
            wanted = rope.theta ** -(np.arange(0, rope.dim, 2) / rope.dim)
            np.testing.assert_allclose(values, wanted, rtol=1e-14)
        table = RopeTable(rope, 40)
        table.fill(990, 10, 1000)
        found += [np.array(values, np.float32), table.cos[:10], table.sin[:10]]
    assert digest(*found) == "556ac908b202653c"


def test_tokens_and_log_probabilities() -> None:
    """Of logits that no function makes: numpy's normal distribution uses the C library's."""
    logits = np.random.default_rng(0).integers(-9000, 9000, 20_000).astype(np.float32) / 1000
    told = []
    for more in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.01}, {"repetition_penalty": 1.2}):
        how = Sampling(temperature=0.8, seed=1, **more)
        sampler = Sampler(how, len(logits), [5, 7, 7])
        for _ in range(40):
            told.append(sampler.sample(logits))
            sampler.add(told[-1])
    assert len(set(told)) > 100
    assert digest(np.array(told)) == "fa9015f87b56bf31"
    assert digest(log_probabilities(logits)) == "5b31f25c5f0fef4d"
