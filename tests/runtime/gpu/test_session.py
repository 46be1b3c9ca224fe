"""Sessions on a device without hardware, whose streams are threads: the same bytes from any tier,
and the PyTorch module's numbers."""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketmoe.analysis.planning.policies import Lfu, Lru
from pocketmoe.bundle.gpu_graphs import plain_file
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.errors import BudgetError, BundleError, ContextError, EngineError, InputError
from pocketmoe.model.attention import KeyValueCache
from pocketmoe.model.module import Decoder
from pocketmoe.runtime.gpu.backends import onnx_backend
from pocketmoe.runtime.gpu.host_slots import SharedSlots
from pocketmoe.runtime.gpu.kv import device_kv_bytes
from pocketmoe.runtime.gpu.loading import TierSizes
from pocketmoe.runtime.gpu.onnx_executor import OnnxLoader
from pocketmoe.runtime.gpu.slots import DeviceSlots
from pocketmoe.runtime.paging.next_use import NextUse
from pocketmoe.runtime.paging.policy import CachePolicy
from pocketmoe.runtime.recording.routes import read_routes
from pocketmoe.runtime.session import Session
from pocketmoe.tests.compiler.test_segments import CALLS as SHORT
from pocketmoe.tests.compiler.test_segments import SPECS, decoder_logits, make_decoder
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.gpu.bundles import (
    CALLS,
    HALF,
    INT4,
    LATENT,
    MIXED,
    TOKENS,
    TOP_K,
    open_here,
    ragged,
    run,
    write_bundle,
)
from pocketmoe.tests.support.gpu.device_session import open_on_device
from pocketmoe.tests.support.gpu.host_device import HostDevice
from pocketmoe.tests.support.slow import slow as slow_case
from pocketmoe.tests.support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("one_thread")
POLICIES: list[Callable[[], CachePolicy]] = [lambda: NextUse(4), Lru, Lfu]
SOON = CALLS[1:]  # shorter, for what is run often


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return make_decoder(MIXED)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> Path:
    return write_bundle(tmp_path_factory.mktemp("device") / "mixed", MIXED, decoder, HALF)


@pytest.fixture(scope="module")
def resident(mixed: Path) -> np.ndarray:
    with open_here(mixed) as session:
        return run(session)


@pytest.fixture(scope="module")
def resident_soon(mixed: Path) -> np.ndarray:
    with open_here(mixed) as session:
        return run(session, SOON)


@torch.no_grad()
def module_logits(model: Decoder) -> np.ndarray:
    cache = KeyValueCache()
    return np.concatenate([model(torch.tensor([call]), cache)[0].numpy() for call in CALLS])


def test_logits_are_those_of_the_module_in_half_precision(
    resident: np.ndarray, decoder: Decoder
) -> None:
    assert_alike(resident, module_logits(decoder))


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """A rounded score may choose another expert, for a few tokens."""
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert np.mean(error > 6e-3) <= 0.03


@settings(
    max_examples=examples(12),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    slots=st.integers(TOP_K, 48),
    host_slots=st.integers(1, 48),
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 99),
)
def test_paged_logits_are_the_resident_ones(
    mixed: Path,
    resident_soon: np.ndarray,
    slots: int,
    host_slots: int,
    policy: Callable[[], CachePolicy],
    seed: int,
) -> None:
    with open_here(
        mixed, slots=slots, host_slots=host_slots, policy=policy, delay=ragged(seed)
    ) as session:
        assert np.array_equal(run(session, SOON), resident_soon)
        session.reset()
        assert np.array_equal(run(session, SOON), resident_soon)


def test_a_prompt_of_several_batches_is_paged_too(mixed: Path, resident: np.ndarray) -> None:
    with open_here(mixed, slots=TOP_K, host_slots=1, delay=ragged(3)) as session:
        assert np.array_equal(run(session), resident)
        stats = session.stats
        assert stats.page_misses > stats.num_pages
        assert stats.link_bytes > session.manifest.expert_bytes
        assert stats.gpu_slots == TOP_K
        assert stats.cache_slots == 1
        session.reset()
        last = session.forward(CALLS[0], last_only=True)
        assert np.array_equal(last, resident[len(CALLS[0]) - 1 : len(CALLS[0])])


@pytest.mark.parametrize("spec", ["latent", slow_case("int4")])
def test_latent_attention_and_quantized_pages(spec: str, tmp_path: Path) -> None:
    chosen = LATENT if spec == "latent" else MIXED
    model = make_decoder(chosen)
    root = write_bundle(tmp_path / "bundle", chosen, model, HALF if spec == "latent" else INT4)
    with open_here(root) as session:
        whole = run(session, SOON)
    with open_here(root, slots=TOP_K + 1, host_slots=2, delay=ragged(1)) as session:
        assert np.array_equal(run(session, SOON), whole)
    with open_here(root, unified=True, host_slots=TOP_K + 1, delay=ragged(2)) as session:
        assert np.array_equal(run(session, SOON), whole)
    assert np.isfinite(whole).all()


def test_graphs_that_take_bytes_serve_the_same_pages(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", MIXED, make_decoder(MIXED), INT4)
    with open_here(root) as session:
        whole = run(session, SOON)
    manifest = read_manifest(root)
    assert manifest.graphs is not None
    device = HostDevice()
    backend = onnx_backend(root, manifest.graphs, manifest, device)

    names = {name for name in manifest.graphs.files() if plain_file(name) in manifest.files}
    assert manifest.graphs.segments[-1] in names  # the head is int8
    plain = replace(
        backend, loader=lambda stream, threads: OnnxLoader(root, device, stream, threads, names)
    )
    sizes = TierSizes(slots=TOP_K, host_slots=1)
    with open_on_device(root, device, backend=plain, sizes=sizes) as session:
        found = run(session, SOON)
    error = np.abs(found - whole).max(axis=1) / np.abs(whole).max()
    assert 0 < np.median(error) < 5e-3  # rounded otherwise, so some tokens go to other experts


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_whatever_a_spec_expresses(name: str, tmp_path: Path) -> None:
    model = make_decoder(SPECS[name])
    root = write_bundle(tmp_path / "bundle", SPECS[name], model, HALF, context=256)
    with open_here(root) as session:
        whole = run(session, SHORT)
    top_k = max(layer.router.top_k for layer in SPECS[name].layers if layer.router is not None)
    with open_here(root, slots=top_k, host_slots=1, delay=ragged(4)) as session:
        assert np.array_equal(run(session, SHORT), whole)
    assert_alike(whole, decoder_logits(model))


def test_unified_memory_has_one_tier(mixed: Path, resident_soon: np.ndarray) -> None:
    with open_here(mixed, unified=True, host_slots=TOP_K + 1, delay=ragged(5)) as session:
        assert isinstance(session._runner._tier, SharedSlots)  # type: ignore[attr-defined]
        assert np.array_equal(run(session, SOON), resident_soon)
        assert session.stats.link_bytes == 0
        assert session.stats.page_misses > session.stats.num_pages


def slow(kind: str) -> Callable[[str, int], float]:
    """Of pages, where it is uploads."""
    seconds = {"upload": 0.015, "run": 0.004}[kind]
    return lambda what, nbytes: seconds if what == kind and not 0 < nbytes < 8192 else 0.0


def unordered(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, **options: Any
) -> np.ndarray:
    """With a wait taken out, and what it waits for slow."""
    with monkeypatch.context() as patch:
        patch.setattr(DeviceSlots, name, lambda *_: None)
        with open_here(mixed, delay=slow(kind), **options) as session:
            return run(session, SOON[:1] + SOON[-2:])


@pytest.mark.parametrize(
    ("wait", "kind", "sizes"),
    [
        ("_need", "upload", {"slots": 8}),  # the computing stream, for a copy
        ("_mark_used", "run", {"slots": 4}),  # the copies, for what reads their slot
        ("_keep", "upload", {"slots": 8, "host_slots": 1}),  # the pager, for the copies
    ],
)
def test_a_wait_that_is_missing_shows(
    wait: str,
    kind: str,
    sizes: dict[str, int],
    mixed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the device is as asynchronous as it has to be, and these tests would find it."""
    calls = SOON[:1] + SOON[-2:]
    with open_here(mixed, delay=slow(kind), **sizes) as session:
        right = run(session, calls)
    assert np.isfinite(right).all()
    found = unordered(mixed, monkeypatch, wait, kind, **sizes)
    assert not np.array_equal(found, right)


def test_an_interrupt_leaves_a_session_that_works(
    mixed: Path, resident_soon: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_here(mixed, slots=5, host_slots=2) as session:
        take = DeviceSlots._take
        calls = 0

        def interrupted(self: DeviceSlots, pinned: Any) -> Any:
            nonlocal calls
            calls += 1
            slot = take(self, pinned)
            if calls == 3:
                signal.raise_signal(signal.SIGINT)
            return slot

        with monkeypatch.context() as patch:
            patch.setattr(DeviceSlots, "_take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.forward(TOKENS[:40])
        assert session.position == 0
        assert np.array_equal(run(session, SOON), resident_soon)


def test_a_page_that_cannot_be_read_is_an_error_after_which_it_goes_on(
    mixed: Path, resident_soon: np.ndarray, tmp_path: Path
) -> None:
    root = shutil.copytree(mixed, tmp_path / "copy")
    layer = read_manifest(root).experts[1]
    whole = (root / layer.file).read_bytes()
    damaged = bytearray(whole)
    for offset in layer.offsets:
        damaged[offset] ^= 1
    (root / layer.file).write_bytes(damaged)
    with open_here(root, slots=TOP_K + 1, host_slots=2) as session:
        with pytest.raises(BundleError, match="is damaged"):
            session.forward(TOKENS[:40])
        assert session.position == 0
        (root / layer.file).write_bytes(whole)
        assert np.array_equal(run(session, SOON), resident_soon)


def test_what_is_observed_and_recorded(mixed: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, np.ndarray]]] = []
    routes, trace = tmp_path / "routes.csv", tmp_path / "trace.json"
    with open_here(mixed, slots=6, record_routes=routes, trace=trace) as session:
        logits = session.forward(
            TOKENS[:40],
            observe=lambda index, out: seen.append(
                (index, {name: array.copy() for name, array in out.items()})
            ),
        )
        session.forward([3])
    assert [index for index, _ in seen] == list(range(5))
    assert np.array_equal(seen[-1][1]["logits"], logits)
    first = seen[0][1]
    assert first["expert_ids"].shape == (40, TOP_K)
    assert not first["moe_base"].any()
    assert seen[1][1]["moe_base"].any()
    assert np.isfinite(first["hidden_out"]).all()
    visits = read_routes(routes).visits
    assert [visit.layer for visit in visits[:4]] == [0, 1, 3, 4]
    assert set(visits[0].experts) == set(first["expert_ids"].ravel().tolist())
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"backbone 0", "experts 3", "last layers and head", "prompt", "token"} <= names


def test_lossy_options_bind_what_is_there(mixed: Path) -> None:
    """A token with fewer experts has a page of another, at no weight."""
    with open_here(mixed, active_experts=1) as session:
        whole = run(session, SOON)
        assert session.stats.lossy == (f"active experts {TOP_K} → 1",)
    with open_here(mixed, active_experts=1, slots=TOP_K, host_slots=1) as session:
        assert np.array_equal(run(session, SOON), whole)
    with open_here(mixed, skip_cold=0.9, slots=TOP_K + 1, host_slots=2) as session:
        assert np.isfinite(run(session, SOON)).all()
        assert session.stats.skipped_experts > 0


def test_host_pages_can_be_made_fewer_while_it_is_open(
    mixed: Path, resident_soon: np.ndarray
) -> None:
    with open_here(mixed, slots=TOP_K + 1, host_slots=20, delay=ragged(8)) as session:
        assert np.array_equal(run(session, SOON), resident_soon)
        plan = session.plan
        session.set_memory_budget(plan.fixed + 3 * plan.page)
        assert session.stats.cache_slots == 3
        session.reset()
        assert np.array_equal(run(session, SOON), resident_soon)


def test_a_context_beyond_that_of_the_graphs(mixed: Path) -> None:
    with pytest.raises(
        ContextError, match=r"context 2000 is more than the 1024 tokens .*--context"
    ):
        open_here(mixed, context=2000)
    with open_here(mixed) as session:
        assert session.context == 1024
    with open_here(mixed, context=50) as session:
        session.forward(TOKENS[:50])
        with pytest.raises(ContextError, match="51 tokens are more"):
            session.forward([1])


def test_all_memory_is_given_back(mixed: Path) -> None:
    for unified in (False, True):
        device = HostDevice(unified=unified)
        with open_on_device(mixed, device) as session:
            run(session, SOON)
            taken = session.stats.gpu_memory_bytes
            assert taken == device.memory()[1] - device.memory()[0]
        device.close()
        assert device.memory()[0] == device.memory()[1]


def test_a_size_of_memory_that_the_device_does_not_have_is_refused(mixed: Path) -> None:
    size = 1 << 30
    shared, own = (TierSizes(gpu=size), TierSizes(host=size)), (TierSizes(whole=size),)
    for unified, sizes in [(True, sizes) for sizes in shared] + [(False, sizes) for sizes in own]:
        with pytest.raises(InputError, match="memory budget"):
            open_on_device(mixed, HostDevice(unified=unified), sizes=sizes)


def test_routers_that_name_no_expert_are_an_error(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from an engine that does not compute what it should."""
    with open_here(mixed) as session:
        runner: Any = session._runner
        with monkeypatch.context() as patch:
            ids = runner._buffers.ids
            patch.setattr(runner._segments, "run", lambda *_: ctypes.memset(ids, 77, 8 * TOP_K))
            with pytest.raises(EngineError, match=r"layer 0 chose an expert .*--backend"):
                session.forward([1])
        assert np.isfinite(session.forward([1])).all()


def test_a_damaged_graph_is_found(mixed: Path, tmp_path: Path) -> None:
    root = shutil.copytree(mixed, tmp_path / "copy")
    path = root / "device" / "expert_000.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"expert_000.onnx is damaged"):
        open_here(root)


@pytest.mark.parametrize("unified", [False, True])
def test_several_sessions_give_what_each_gives_alone(
    mixed: Path, resident_soon: np.ndarray, unified: bool
) -> None:
    device = HostDevice(unified=unified, delay=ragged(3))
    sizes = TierSizes(slots=40, host_slots=12)
    with open_on_device(mixed, device, sizes=sizes) as first:
        before = device.memory()[0]
        slots = first.stats.gpu_slots
        tier: Any = first._runner._tier  # type: ignore[attr-defined]
        nbytes = device_kv_bytes(MIXED, 1024, 128, 512) + device_kv_bytes(MIXED, 800, 128, 512)
        page = first.manifest.page_bytes
        tier.spare = nbytes - 5 * page  # so that five slots have to go
        second, third = first.another(), first.another(context=800)
        found: dict[int, np.ndarray] = {}

        def work(number: int, session: Session) -> None:
            found[number] = run(session, SOON)

        threads = [
            threading.Thread(target=work, args=item)
            for item in enumerate((first, second, third))
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        for logits in found.values():
            assert np.array_equal(logits, resident_soon)
        assert len(found) == 3
        assert unified or slots - 7 <= first.stats.gpu_slots <= slots - 5
        assert first.model.usage.sum() > 0
        assert first.model.resident()
        with pytest.raises(ContextError, match="longer context"):
            first.another(context=1025)
        third.close()
        assert np.array_equal(_again(second), resident_soon)
        second.close()
        assert first.stats.gpu_slots == slots
        assert unified or device.memory()[0] == before
    device.close()
    assert device.memory()[0] == device.memory()[1]


def _again(session: Session) -> np.ndarray:
    session.reset()
    return run(session, SOON)


def test_another_session_that_leaves_too_few_slots_is_refused(mixed: Path) -> None:
    with open_here(mixed, slots=TOP_K + 1) as session:
        session._runner._tier.spare = 1000  # type: ignore[attr-defined]
        with pytest.raises(BudgetError, match="fewer sessions"):
            session.another()
        assert session.stats.gpu_slots == TOP_K + 1
        session.forward([1, 2, 3])


def test_what_was_seen_can_be_run_again(mixed: Path) -> None:
    with open_here(mixed) as session:
        whole = session.forward(TOKENS[:40])
        assert session.rewind(30) == 30
        again = session.forward(TOKENS[30:40])
        assert np.abs(again - whole[30:]).max() / np.abs(whole).max() < 6e-3
        assert session.seen == tuple(TOKENS[:40])
