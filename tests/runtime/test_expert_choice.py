"""Fewer experts per token: the choice against plain loops, in sessions, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketmoe
from pocketmoe.analysis.evaluation.scores import evaluate
from pocketmoe.analysis.evaluation.windows import cut_windows
from pocketmoe.bench.quality.lossy import Recorded, open_with_pages
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.cli import main
from pocketmoe.errors import InputError
from pocketmoe.model.spec import ModelSpec
from pocketmoe.runtime.expert_choice import DROPPED, ExpertChoice, drop_cold, keep_strongest
from pocketmoe.runtime.routing import route
from pocketmoe.tests.support.examples import examples

TOKENS = np.random.default_rng(0).integers(1, 384, 60).tolist()


@st.composite
def routes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Weights and ids of up to 6 tokens; an expert at most once for each token. Equal weights and
    zeros are common."""
    tokens, top_k = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    weight = st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 8, width=32))
    weights = draw(st.lists(weight, min_size=tokens * top_k, max_size=tokens * top_k))
    ids = [draw(st.permutations(range(9)))[:top_k] for _ in range(tokens)]
    return np.array(weights, np.float32).reshape(tokens, top_k), np.array(ids, np.int64)


def close(found: np.ndarray, expected: list[list[float]]) -> bool:
    return np.allclose(found, np.array(expected), rtol=1e-5, atol=0)


def rescaled(before: list[float], after: list[float]) -> list[float]:
    factor = sum(before) / sum(after) if sum(after) else 1.0
    return [weight * factor for weight in after]


@given(routes(), st.integers(1, 6), st.booleans())
def test_keep_strongest_is_what_a_loop_does(
    route: tuple[np.ndarray, np.ndarray], active: int, renormalise: bool
) -> None:
    weights, ids = route
    expected_weights, expected_ids = [], []
    for row, names in zip(weights.tolist(), ids.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda slot: (-row[slot], slot))
        kept = set(ranked[:active])
        after = [weight if slot in kept else 0.0 for slot, weight in enumerate(row)]
        expected_weights.append(rescaled(row, after) if renormalise else after)
        expected_ids.append([e if slot in kept else DROPPED for slot, e in enumerate(names)])
    found, chosen = keep_strongest(weights, ids, active, renormalise=renormalise)
    assert chosen.tolist() == expected_ids
    assert close(found, expected_weights)
    assert (found.dtype, chosen.dtype, found.shape) == (np.float32, np.int64, weights.shape)


@settings(max_examples=examples(300))
@given(
    routes(), st.sets(st.integers(0, 8)), st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.integers(1, 5),
)  # fmt: skip
def test_drop_cold_is_what_a_loop_does(
    route: tuple[np.ndarray, np.ndarray],
    resident: set[int],
    share: float,
    active: int,
) -> None:
    weights, ids = keep_strongest(*route, active, renormalise=True)
    before = weights.copy(), ids.copy()
    rows = list(zip(weights, ids.tolist(), strict=True))
    read: set[int] = set()
    weak_slots = []
    for row, names in rows:
        slots = [slot for slot, expert in enumerate(names) if expert != DROPPED]
        limit = share * (row.sum() / np.float32(len(slots))) * np.float32(1 - 1e-5)
        weak = {slot for slot in slots if row[slot] < limit and slot != int(row.argmax())}
        read |= {names[slot] for slot in slots if slot not in weak}
        weak_slots.append(weak)
    expected_weights, expected_ids = [], []
    for (row, names), weak in zip(rows, weak_slots, strict=True):
        gone = {slot for slot in weak if names[slot] not in read | resident}
        after = [0.0 if slot in gone else float(weight) for slot, weight in enumerate(row)]
        expected_weights.append(after)
        expected_ids.append([DROPPED if slot in gone else e for slot, e in enumerate(names)])
    found, chosen = drop_cold(weights, ids, resident.__contains__, share)
    assert chosen.tolist() == expected_ids
    assert found.tolist() == expected_weights
    assert (found.dtype, chosen.dtype, found.shape) == (np.float32, np.int64, weights.shape)
    assert (chosen >= 0).any(axis=1).all()
    assert np.array_equal(weights, before[0])
    assert np.array_equal(ids, before[1])


def test_numbers_that_are_none_are_not_dropped() -> None:
    weights = np.array([[np.nan, 0.1, np.nan]], np.float32)
    _, ids = drop_cold(weights, np.array([[0, 1, 2]]), lambda _: False, 1.0)
    assert ids.tolist() == [[0, 1, 2]]


@given(routes(), st.integers(1, 5))
def test_groups_leave_out_what_is_dropped(
    routes: tuple[np.ndarray, np.ndarray], active: int
) -> None:
    weights, ids = keep_strongest(*routes, active, renormalise=False)
    expected: dict[int, list[tuple[int, float]]] = {}
    for token, (row, names) in enumerate(zip(weights.tolist(), ids.tolist(), strict=True)):
        for weight, expert in zip(row, names, strict=True):
            if expert != DROPPED:
                expected.setdefault(expert, []).append((token, weight))
    routing = route(weights, ids)
    assert routing.starts[0] == 0
    assert len(routing.tokens) == len(routing.weights) == routing.starts[-1]
    found = {}
    for index, expert in enumerate(routing.experts):
        part = routing.part(index, index + 1)
        found[expert] = list(zip(part.tokens.tolist(), part.weights.tolist(), strict=True))
    assert found == expected
    assert list(found) == sorted(expected)


def test_a_chunk_without_any_expert_has_no_groups() -> None:
    routing = route(np.zeros((2, 2), np.float32), np.full((2, 2), DROPPED))
    assert routing.experts == []
    assert routing.starts.tolist() == [0]


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> ModelSpec:
    return read_manifest(tiny_bundle).spec


def top_k(spec: ModelSpec) -> int:
    return max(layer.router.top_k for layer in spec.layers if layer.router is not None)


class TestChoice:
    def test_by_default_nothing_is_touched(self, spec: ModelSpec) -> None:
        for options in ((), (None, 0.0), (top_k(spec), 0.0)):
            choice = ExpertChoice(spec, *options)
            weights, ids = np.ones((1, 2), np.float32), np.array([[3, 4]])
            found = choice.choose(1, weights, ids, lambda _: False)
            assert found[0] is weights
            assert found[1] is ids
            assert choice.names == ()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"active_experts": 0}, "choose 1 to 2"),
            ({"active_experts": 3}, "3 active experts are out of range.*choose 1 to 2"),
            ({"active_experts": True}, "out of range"),
            ({"skip_cold": -0.1}, "share of an even split from 0"),
            ({"skip_cold": 1.5}, "skip cold 1.5"),
            ({"skip_cold": float("nan")}, "nan"),
            ({"active_experts": 1, "skip_cold": 0.5}, "no effect"),
        ],
    )
    def test_what_is_refused(
        self, options: dict[str, float], words: str, spec: ModelSpec, tiny_bundle: Path
    ) -> None:
        with pytest.raises(InputError, match=words):
            ExpertChoice(spec, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=words):
            pocketmoe.open(tiny_bundle, **options)  # type: ignore[arg-type]

    def test_a_model_without_routed_experts(self) -> None:
        from pocketmoe.bench.lib.shapes import SHAPES, with_layers
        from pocketmoe.model.families import find_family

        config = with_layers(SHAPES["llama-3.1-8b"], 2)
        dense = find_family(config).read_config(config)
        assert ExpertChoice(dense).names == ()
        for options in ({"active_experts": 1}, {"skip_cold": 0.5}):
            with pytest.raises(InputError, match="no effect"):
                ExpertChoice(dense, **options)  # type: ignore[arg-type]


def decode(session: pocketmoe.Session) -> np.ndarray:
    return np.concatenate([session.forward([token]) for token in TOKENS])


class TestSession:
    def test_fewer_active_experts_are_those_of_a_bundle_compiled_so(
        self, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        from pocketmoe.compiler.compile import compile_bundle

        manifest = read_manifest(tiny_bundle)
        from pocketmoe.targets import find_target

        compiled = tmp_path / "bundle"
        compile_bundle(
            tiny_checkpoint, compiled, target=find_target("cpu"), precision=manifest.precision,
            active_experts=1,
        )  # fmt: skip
        with pocketmoe.open(compiled) as session:
            expected = session.forward(TOKENS)
            lossy = session.stats.lossy
            requests = session.stats.page_hits + session.stats.page_misses
        with pocketmoe.open(tiny_bundle, active_experts=1) as session:
            found = session.forward(TOKENS)
            assert session.stats.lossy == lossy == ("active experts 2 → 1",)
            assert session.stats.page_hits + session.stats.page_misses == requests
        with pocketmoe.open(tiny_bundle) as session:
            whole = session.forward(TOKENS)
            assert session.stats.lossy == ()
        assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5
        assert np.abs(found - whole).max() / np.abs(whole).max() > 1e-3

    def test_skipping_cold_ones_reads_less_and_differs(self, tiny_bundle: Path) -> None:
        pages = read_manifest(tiny_bundle).num_pages // 2
        with open_with_pages(tiny_bundle, pages) as session:
            whole, before = decode(session), session.stats
        assert before.skipped_experts == 0
        with open_with_pages(tiny_bundle, pages, skip_cold=1.0) as session:
            found, after = decode(session), session.stats
        assert after.lossy == ("skip cold 1",)
        assert after.skipped_experts > 0
        assert after.bytes_read < before.bytes_read
        requests = after.page_hits + after.page_misses + after.skipped_experts
        assert requests == before.page_hits + before.page_misses
        assert np.isfinite(found).all()
        assert found.tobytes() != whole.tobytes()

    def test_nothing_is_skipped_once_all_pages_are_there(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            whole = decode(session)
        with pocketmoe.open(tiny_bundle, skip_cold=1e-30) as session:
            session.forward(TOKENS)
            session.reset()
            before = session.stats.skipped_experts
            assert decode(session).tobytes() == whole.tobytes()
            assert session.stats.skipped_experts == before

    def test_steps_of_an_evaluation(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            recorded = Recorded(session, TOKENS, 32, tmp_path)
            windows = cut_windows(TOKENS, 32)
            result = evaluate(session, windows, recorded.logits, step=1)
            assert (result.kl_mean, result.top1_agreement, result.lossy) == (0, 1, ())
            assert result.tokens == 58
            chunked = evaluate(session, windows)
            assert result.perplexity == pytest.approx(chunked.perplexity, rel=1e-2)
            with pytest.raises(InputError, match="step"):
                evaluate(session, windows, step=0)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestCommands:
    @pytest.fixture
    def commands(self, tiny_bundle: Path, tmp_path: Path) -> list[list[object]]:
        data = tmp_path / "text.py"
        data.write_text("def main():\n    return 0\n" * 9, encoding="utf-8")
        return [
            ["run", tiny_bundle, "--prompt", "x", "--max-tokens", "4", "--stats"],
            ["bench", tiny_bundle, "--prompt-tokens", "9", "--new-tokens", "5"],
            ["eval", tiny_bundle, "--data", data],
        ]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--active-experts", "0"], "--active-experts"),
            (["--active-experts", "3"], "choose 1 to 2"),
            (["--skip-cold", "1.1"], "--skip-cold"),
            (["--skip-cold", "-0.1"], "--skip-cold"),
            (["--skip-cold", "nan"], "--skip-cold"),
            (["--active-experts", "1", "--skip-cold", "0.5"], "no effect"),
        ],
    )
    def test_bad_options(
        self, options: list[str], words: str, commands: list[list[object]]
    ) -> None:
        for command in commands:
            result = call(*command, *options)
            assert result.exit_code == 2
            assert result.stdout == ""
            assert len(result.stderr.splitlines()) == 1
            assert words in result.stderr

    def test_they_are_named_lossy(self, commands: list[list[object]]) -> None:
        for command in commands:
            plain = call(*command)
            assert plain.exit_code == 0
            assert "active experts" not in plain.output
            assert "skip cold" not in plain.output
            result = call(*command, "--active-experts", "1")
            assert "active experts 2 → 1" in result.output
            result = call(*command, "--skip-cold", "0.75")
            assert "skip cold 0.75" in result.output

    def test_json(self, commands: list[list[object]]) -> None:
        _, bench, evaluation = commands
        report = json.loads(call(*bench, "--skip-cold", "1", "--json").stdout)
        assert report["lossy"] == ["skip cold 1"]
        assert report["skipped_experts"] >= 0
        report = json.loads(call(*evaluation, "--skip-cold", "1", "--json").stdout)
        assert report["lossy"] == ["skip cold 1"]
        report = json.loads(call(*evaluation, "--json").stdout)
        assert report["lossy"] == []
