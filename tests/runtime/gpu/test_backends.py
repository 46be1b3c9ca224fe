"""Which backend runs a bundle, why, and what it says where it cannot; how memory is shared out."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import pocketmoe
from pocketmoe.bundle.gpu_graphs import EngineSet, plain_file
from pocketmoe.bundle.manifest import Manifest, read_manifest, write_manifest
from pocketmoe.cli import main
from pocketmoe.engines import hardware
from pocketmoe.engines.hardware import CudaPythonError
from pocketmoe.errors import BudgetError, EngineError, InputError
from pocketmoe.runtime.gpu import backends, loading
from pocketmoe.runtime.gpu.backends import (
    Backend,
    choose_engines,
    find_backend,
    onnx_backend,
    plain_for_cuda,
)
from pocketmoe.runtime.gpu.cuda_device import CudaDevice
from pocketmoe.runtime.gpu.loading import TierSizes
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.tests.compiler.test_segments import make_decoder
from pocketmoe.tests.support.gpu.bundles import HALF, MIXED, TOKENS, TOP_K, run, write_bundle
from pocketmoe.tests.support.gpu.cuda_stand_in import CudaStandIn
from pocketmoe.tests.support.gpu.device_session import open_on_device
from pocketmoe.tests.support.gpu.host_device import HostDevice

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = [TOKENS[:30], [1], [2]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backends") / "bundle"
    return write_bundle(path, MIXED, make_decoder(MIXED), HALF, context=256)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    """A GPU with ONNX Runtime alone, as far as opening a bundle can tell."""
    found = HostDevice(64 << 20)

    def make(name: str, root: Path, manifest: Manifest, *_: Any) -> Backend:
        if name != "cuda":
            raise EngineError(f"{name} is not installed")
        assert manifest.graphs is not None
        return replace(onnx_backend(root, manifest.graphs, manifest, found), name="cuda")

    monkeypatch.setattr(backends, "start_cuda", CudaStandIn)
    monkeypatch.setattr(hardware, "start_cuda", CudaStandIn)
    monkeypatch.setattr(backends, "_make", make)
    yield found
    found.close()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise EngineError("no NVIDIA driver was found")

    monkeypatch.setattr(backends, "start_cuda", missing)


class TestChoice:
    def test_a_bundle_for_cpus_runs_there(self, tiny_bundle: Path) -> None:
        with pocketmoe.open(tiny_bundle) as session:
            stats = session.stats
        assert (stats.backend, stats.gpu) == ("cpu", "")
        assert stats.backend_reason == "the bundle has nothing for GPUs"
        with pytest.raises(EngineError, match=r"nothing for GPUs; compile it again .*--target"):
            open_bundle(tiny_bundle, backend="cuda")

    @pytest.mark.usefixtures("no_gpu")
    def test_without_a_gpu_the_cpu_runs_it_and_says_why(
        self, bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "pocketmoe"), open_bundle(bundle) as session:
            stats = session.stats
        assert stats.backend == "cpu"
        assert stats.backend_reason == "no NVIDIA driver was found"
        assert "backend cpu: no NVIDIA driver was found" in caplog.messages
        assert not [r for r in caplog.records if r.levelno > logging.INFO]
        with pytest.raises(EngineError, match="no NVIDIA driver"):
            open_bundle(bundle, backend="tensorrt-rtx")

    @pytest.mark.parametrize("name", ["cuda", "tensorrt", "tensorrt-rtx"])
    def test_what_to_install_is_that_of_the_backend(
        self, bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing() -> None:
            raise CudaPythonError("cuda-python is not installed")

        monkeypatch.setattr(backends, "start_cuda", missing)
        monkeypatch.setattr(backends, "find_onnxruntime", lambda: "onnxruntime")
        first = "pip uninstall -y onnxruntime, then " if name == "cuda" else ""
        with pytest.raises(EngineError) as error:
            open_bundle(bundle, backend=name)
        assert str(error.value) == (
            f"cuda-python is not installed: {first}pip install 'pocketmoe[{name}]'"
        )

    def test_the_best_that_works_is_taken(self, bundle: Path, device: HostDevice) -> None:
        with open_bundle(bundle) as session:
            stats = session.stats
            found = run(session, CALLS)
        assert stats.backend == "cuda"
        assert stats.gpu == "host memory"
        assert "tensorrt-rtx: tensorrt-rtx is not installed; tensorrt:" in stats.backend_reason
        assert stats.gpu_memory_bytes > 0
        with open_bundle(bundle, backend="cuda", gpu_memory="20MiB", host_memory="auto") as session:
            assert session.stats.backend_reason == "it was asked for"
            assert np.array_equal(run(session, CALLS), found)
        with open_bundle(bundle, backend="cpu") as session:
            assert session.stats.backend == "cpu"
            close = run(session, CALLS)
        assert np.abs(close - found).max() < 0.01 * np.abs(close).max()

    def test_what_fails_while_it_loads_is_passed_over(
        self, bundle: Path, device: HostDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise EngineError("cuDNN is missing")

        monkeypatch.setattr(loading, "load_on_gpu", fails)
        with open_bundle(bundle) as session:
            assert session.stats.backend == "cpu"
            assert "cuda: cuDNN is missing" in session.stats.backend_reason
        with pytest.raises(EngineError, match="cuDNN is missing"):
            open_bundle(bundle, backend="cuda")

    def test_sizes_and_kernels_of_the_other_side_are_refused(
        self, bundle: Path, tiny_bundle: Path, device: HostDevice
    ) -> None:
        with pytest.raises(InputError, match=r"a memory budget is of one memory.*GPU memory"):
            open_bundle(bundle, memory_budget="1GiB")
        for size in ("gpu_memory", "host_memory"):
            with pytest.raises(InputError, match=r"memory has no effect with the CPU backend"):
                open_bundle(tiny_bundle, **{size: "1GiB"})  # type: ignore[arg-type]
        with pytest.raises(InputError, match="kernels have no effect with the backend cuda"):
            open_bundle(bundle, backend="cuda", kernels="native")
        with open_bundle(bundle, kernels="onnxruntime") as session:
            assert session.stats.backend_reason == "kernels 'onnxruntime' were asked for"
        with pytest.raises(InputError, match=r"backend must be one of auto, .*, not vulkan"):
            open_bundle(bundle, backend="vulkan")
        with pytest.raises(InputError, match="GPU memory must be more than 0"):
            open_bundle(bundle, gpu_memory=0)

    def test_prefetch_on_has_no_effect_and_says_so(
        self, bundle: Path, device: HostDevice, caplog: pytest.LogCaptureFixture
    ) -> None:
        open_bundle(bundle, prefetch="on").close()
        assert any("prefetch on has no effect" in message for message in caplog.messages)

    def test_on_the_command_line(self, bundle: Path, device: HostDevice) -> None:
        result = CliRunner().invoke(
            main,
            [
                "bench",
                str(bundle),
                "--prompt-tokens",
                "20",
                "--new-tokens",
                "4",
                "--backend",
                "cpu",
            ],
        )
        assert result.exit_code == 0, result
        assert "it was asked for" in result.stdout
        result = CliRunner().invoke(
            main, ["bench", str(bundle), "--prompt-tokens", "20", "--new-tokens", "4"]
        )
        assert result.exit_code == 0, result
        for words in ("GPU page hits", "host memory, ", "tensorrt is not installed", "per token"):
            assert words in result.stdout
        result = CliRunner().invoke(
            main, ["bench", str(bundle), "--backend", "cpu", "--gpu-memory", "1GiB"]
        )
        assert result.exit_code == 2
        assert "a size of GPU memory has no effect with the CPU backend" in result.stderr
        for option in ("--gpu-memory", "--host-memory"):
            arguments = ["--prompt", "def", "--max-tokens", "1", "--backend", "cpu", option, "auto"]
            result = CliRunner().invoke(main, ["run", str(bundle), *arguments])
            assert "has no effect" not in result.stderr
        result = CliRunner().invoke(main, ["bench", str(bundle), "--backend", "tensorrt"])
        assert result.exit_code == 2
        assert "tensorrt is not installed" in result.stderr


class TestEngines:
    def engines(self, version: str, capability: str, device: str | None = None) -> EngineSet:
        return EngineSet("tensorrt", version, capability, device, ())

    def test_those_of_this_gpu_and_version_are_taken(
        self, bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        right = self.engines("10.3.0", "8.7", "Orin")
        manifest = replace(
            read_manifest(bundle),
            engines=(self.engines("10.3.0", "11.0"), self.engines("10.16.0", "8.7"), right),
        )
        device = HostDevice(compute_capability="8.7")
        assert choose_engines("tensorrt", "10.3.0", bundle, manifest, device) is right
        assert "was built on Orin, and this is host memory" in caplog.text

    def test_both_sides_are_named_where_they_differ(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        device = HostDevice(compute_capability="8.9")
        with pytest.raises(
            EngineError,
            match=r"has no engines for TensorRT 10.3.0 on host memory \(sm89\); .*`pocketmoe build",
        ):
            choose_engines("tensorrt", "10.3.0", bundle, manifest, device)
        other = replace(
            manifest, engines=(self.engines("10.16.0", "8.7", "Orin"), self.engines("10.3", "8.6"))
        )
        with pytest.raises(
            EngineError,
            match=r"has engines for TensorRT 10.16.0 on Orin, TensorRT 10.3 on sm86, and this is "
            r"TensorRT 10.3.0 on host memory \(sm89\)",
        ):
            choose_engines("tensorrt", "10.3.0", bundle, other, device)

    def test_onnx_runtime_without_cuda_says_what_to_install(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backends, "start_cuda", CudaStandIn)
        with pytest.raises(EngineError, match=r"has no CUDA provider: .*pocketmoe\[cuda\]"):
            find_backend("cuda", bundle, read_manifest(bundle))
        device = CudaDevice(CudaStandIn())
        assert device.info.name == "Stand-in 4090"

    def test_cuda_takes_plain_graphs_where_blocks_are_int8(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        graphs = manifest.graphs
        assert graphs is not None
        assert plain_for_cuda(graphs, manifest) == set()  # all is fp16
        last, expert = graphs.segments[-1], graphs.layers[0].expert
        record = next(iter(manifest.files.values()))
        files = {**manifest.files, **{plain_file(name): record for name in (last, expert)}}

        def stored(precision: str) -> Manifest:
            layers = tuple(
                replace(layer, formats=(replace(layer.format, precision=precision),))
                for layer in manifest.experts
            )
            return replace(manifest, experts=layers, files=files)

        assert plain_for_cuda(graphs, stored("int4")) == {last}
        assert plain_for_cuda(graphs, stored("int8")) == {last, expert}
        with pytest.raises(EngineError, match="computes no experts in fp8; use tensorrt-rtx"):
            plain_for_cuda(graphs, stored("fp8"))


class TestMemory:
    def smallest(self, error: BaseException) -> int:
        match = re.search(r"smallest that works is (\d+)MiB", str(error))
        assert match is not None, error
        return int(match[1]) << 20

    def test_the_smallest_gpu_memory_is_named_and_works(self, bundle: Path) -> None:
        with pytest.raises(BudgetError, match=r"GPU memory 1.0 MiB is too small for") as caught:
            open_on_device(bundle, HostDevice(), sizes=TierSizes(gpu=1 << 20))
        smallest = self.smallest(caught.value)
        device = HostDevice()
        with open_on_device(bundle, device, sizes=TierSizes(gpu=smallest)) as session:
            few = run(session, CALLS)
            assert device.memory()[1] - device.memory()[0] <= smallest
            assert session.stats.gpu_slots > TOP_K
        with open_on_device(bundle, HostDevice()) as session:
            assert np.array_equal(run(session, CALLS), few)
            assert session.stats.gpu_slots == session.stats.num_pages
            assert session.stats.cache_slots < session.stats.num_pages

    def test_a_gpu_too_small_for_all_but_pages(self, bundle: Path) -> None:
        with pytest.raises(
            BudgetError, match=r"does not fit into the GPU .*is needed; .*--context"
        ):
            open_on_device(bundle, HostDevice(1 << 19))
        with open_on_device(bundle, HostDevice()) as session:
            taken = session.stats.gpu_memory_bytes
            page = session.manifest.page_bytes
            everything = taken - session.stats.gpu_slots * page
        with pytest.raises(BudgetError, match=r"too small .*end other programs") as caught:
            open_on_device(bundle, HostDevice(everything + page))
        assert self.smallest(caught.value) >= everything

    def test_all_is_given_back_where_it_does_not_fit(self, bundle: Path) -> None:
        device = HostDevice(1 << 19)
        with pytest.raises(BudgetError):
            open_on_device(bundle, device)
        device.close()

    def test_the_smallest_host_memory_is_named_and_works(self, bundle: Path) -> None:
        with pytest.raises(BudgetError, match=r"host memory 1\.0 MiB is too small") as caught:
            open_on_device(bundle, HostDevice(), sizes=TierSizes(slots=TOP_K + 1, host=1 << 20))
        sizes = TierSizes(slots=TOP_K + 1, host=self.smallest(caught.value) + (32 << 20))
        with open_on_device(bundle, HostDevice(), sizes=sizes) as session:
            run(session, CALLS)
            assert not session.plan.auto

    def test_unified_memory_has_one_budget(self, bundle: Path) -> None:
        device = HostDevice(unified=True)
        with pytest.raises(BudgetError, match=r"memory budget 1\.0 MiB is too small"):
            open_on_device(bundle, device, sizes=TierSizes(whole=1 << 20))
        sizes = TierSizes(whole="auto")
        with open_on_device(bundle, HostDevice(unified=True), sizes=sizes) as session:
            assert session.plan.auto
            assert session.plan.backbone == session.stats.gpu_memory_bytes


def test_pages_of_older_bundles_are_refused(bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(bundle, tmp_path / "copy")
    manifest = read_manifest(root)
    experts = tuple(
        replace(layer, formats=(replace(layer.format, alignment=64),)) for layer in manifest.experts
    )
    write_manifest(root, replace(manifest, experts=experts))
    with pytest.raises(pocketmoe.errors.BundleError, match="pages that no GPU takes"):
        open_on_device(root, HostDevice())
