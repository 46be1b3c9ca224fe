"""Bundles of every format open and give the numbers that they gave; see tests/data/README.md."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import pocketmoe
from pocketmoe.bundle.damage import find_damage
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.runtime.native.library import available
from pocketmoe.tests.support.paths import ROOT

DATA = ROOT / "tests" / "data"
PROMPT = [
    5, 17, 33, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 250, 260, 263, 3, 9, 27, 81, 243,
    1, 2, 4,
]  # fmt: skip
# The likeliest tokens after it. No other comes nearer than 1% of the largest logit.
GREEDY = [
    228, 24, 228, 92, 220, 248, 82, 248, 82, 248, 82, 248, 82, 248, 200, 134, 140, 71, 50, 237, 21,
    11, 54, 215,
]  # fmt: skip
# sha256 of the pages of layers 1 and 2.
PAGES = {
    2: (
        "c31d129a636c046e9c97188889baef36277fe553aabfe10649920259fa746c52",
        "4e167d0d9bf01dfbf7cb4e254fe7273ac9f6d94a83a5157bea138290ceeefb0c",
    ),
    3: (
        "0c55c826e5a52ec415b32e30af0528b9dbf2656d3b390dfd00a1a7e4deec5fbc",
        "f757aa9e834f15a07306080460816a160423a8085a9b9e36d6896f166e1f2b83",
    ),
}

each_format = pytest.mark.parametrize("version", PAGES)
each_engine = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(
            "native",
            marks=pytest.mark.skipif(not available(), reason="the native kernels are not built"),
        ),
        "onnxruntime",
    ],
)


def bundle_of(version: int) -> Path:
    return DATA / f"format_{version}"


@each_format
def test_files_are_what_was_written(version: int) -> None:
    root = bundle_of(version)
    manifest = read_manifest(root)
    assert manifest.version == version
    assert find_damage(root, manifest) == {}
    pages = [(root / layer.file).read_bytes() for layer in manifest.experts]
    assert tuple(hashlib.sha256(data).hexdigest() for data in pages) == PAGES[version]


def test_pages_of_all_formats_hold_the_same_tensors() -> None:
    old, new = (read_manifest(bundle_of(version)) for version in PAGES)
    for before, after in zip(old.pages(), new.pages(), strict=True):
        assert before.key == after.key
        tensors = []
        for version, page in ((2, before), (3, after)):
            data = (bundle_of(version) / page.file).read_bytes()[page.offset :]
            places = page.format.tensors()
            tensors.append([data[place.offset :][: place.nbytes] for place in places])
        assert tensors[0] == tensors[1]
        assert [place.offset for place in before.format.tensors()] != [
            place.offset for place in after.format.tensors()
        ]


@each_format
@each_engine
def test_tokens_are_those_that_it_gave(version: int, kernels: str) -> None:
    with pocketmoe.open(bundle_of(version), kernels=kernels) as session:
        logits = session.forward(PROMPT, last_only=True)
        ids = [int(logits[0].argmax())]
        while len(ids) < len(GREEDY):
            ids.append(int(session.forward(ids[-1:])[0].argmax()))
    assert ids == GREEDY


@each_format
@pytest.mark.skipif(not available(), reason="the native kernels are not built")
def test_logits_are_those_that_it_gave(version: int) -> None:
    expected = np.load(DATA / "logits.npy")
    with pocketmoe.open(bundle_of(version), kernels="native") as session:
        logits = session.forward(PROMPT, last_only=True)[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
