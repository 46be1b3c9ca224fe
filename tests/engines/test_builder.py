"""Engines, built for real with TensorRT for RTX, which needs no GPU for it."""

import logging
import os
import random as random_numbers
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pocketmoe.bundle.damage import find_damage
from pocketmoe.bundle.gpu_graphs import GpuGraphs, page_inputs, plain_file
from pocketmoe.bundle.manifest import (
    FileRecord,
    Manifest,
    Precision,
    hash_file,
    read_manifest,
    write_manifest,
)
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.compiler.gpu.experts import expert_graph, token_graph
from pocketmoe.engines import build as engines
from pocketmoe.engines.architectures import (
    RTX_CAPABILITIES,
    check_capability,
    parse_capability,
    plan_engines,
    portable_capabilities,
)
from pocketmoe.engines.build import add_engines, build_engines
from pocketmoe.engines.builder import BuiltEngine, EngineBuilder
from pocketmoe.engines.hardware import Gpu
from pocketmoe.engines.libraries import RTX, STOCK
from pocketmoe.engines.monitor import BuildProgress, stoppable
from pocketmoe.engines.profiles import OpenInput, profiles_of
from pocketmoe.errors import BundleError, EngineError, InputError, TargetError
from pocketmoe.targets import find_target
from pocketmoe.tests.support.rtx_library import needs_rtx
from pocketmoe.tests.support.sample_graphs import (
    BLOCK,
    FILES,
    FLOAT,
    HALF,
    HIDDEN,
    INNER,
    INT64,
    TOP_K,
    add_sample_graphs,
    node,
    page_tensors,
    save,
    value,
    write_sample_graphs,
)

pytestmark = needs_rtx
INT4 = Precision("int4", "int8", "int8", 32)
SEGMENT = "device/segment_000.onnx"


class Watched:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: list[int] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))
        self.done.append(0)

    def advance(self, nbytes: int) -> None:
        assert nbytes > 0
        self.done[-1] += nbytes


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GpuGraphs]:
    root = tmp_path_factory.mktemp("graphs")
    return root, write_sample_graphs(root)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with GPU graphs, which are not its own model's."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, path)
    add_sample_graphs(path)
    return path


def one_graph(root: Path, *parts: object) -> GpuGraphs:
    """A single graph as the only segment."""
    (root / "device").mkdir()
    save(root, "odd", *parts)  # type: ignore[arg-type]
    return GpuGraphs(("device/odd.onnx",), (), chunk=32, batch=64, context=256)


def test_profiles_have_room_for_the_rows_between_terms() -> None:
    graphs = GpuGraphs((SEGMENT,), (), chunk=32, batch=64, context=256)
    for hidden, step in ((64, 1), (96, 2), (33, 64)):
        places = OpenInput("places", (-1, 2), ("batch", None))
        terms = OpenInput("terms", (-1, hidden), ("terms", None))
        (profile,) = profiles_of(graphs, "device/combine_000.onnx", [terms, places])
        assert profile.span("terms").most == 64 * 2 * step
    for file in (SEGMENT, plain_file(SEGMENT)):
        assert len(profiles_of(graphs, file, [OpenInput("hidden", (-1, 8), ("tokens", None))])) == 2


class TestBuilding:
    def test_every_graph_for_one_architecture(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        watched = Watched()
        (built,) = build_engines(
            *graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.9"], progress=watched
        )
        assert [Path(e.file).name for e in built.engines] == [f"{name}.engine" for name in FILES]
        assert [e.graph for e in built.engines] == list(graphs[1].files())
        assert {os.path.dirname(e.file) for e in built.engines} == {built.folder}
        assert built.folder == f"engines/tensorrt-rtx-{built.version}-sm89"
        assert all((tmp_path / e.file).stat().st_size > 10_000 for e in built.engines)
        assert (built.compute_capability, built.device) == ("8.9", None)
        assert watched.stages == [("engines for sm89", watched.done[0])]

    def test_what_goes_in_and_out(self, graphs: tuple[Path, GpuGraphs], tmp_path: Path) -> None:
        (built,) = build_engines(*graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.6"])
        segment, head, expert, token, combine = built.engines
        shown = {i.name: (i.dtype, i.shape) for i in segment.inputs}
        assert shown == {
            "hidden": ("float32", (-1, 64)), "past_key.0": ("float16", (-1, 2, 32)),
            "past_value.0": ("float16", (-1, 2, 32)), "mask.full": ("float32", (-1, -1)),
        }  # fmt: skip
        assert {o.name: o.dtype for o in segment.outputs} == {
            "hidden_out": "float32", "expert_input": "float32", "expert_weights": "float32",
            "expert_ids": "int64", "new_key.0": "float16", "new_value.0": "float16",
        }  # fmt: skip
        assert [i.name for i in head.inputs] == ["hidden", "moe_out", "rows"]
        assert set(page_tensors()) < set(expert.inputs)
        assert {*page_tensors(".0"), *page_tensors(".1")} < set(token.inputs)
        assert combine.outputs[0].shape == (-1, 64)

    def test_engines_for_several_architectures_share_their_files(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        """One engine holds its weights once, whatever it is for."""
        capabilities = ("8.0", "8.6", "8.9", "12.0", "12.1")
        sets = build_engines(
            *graphs, tmp_path / "all", toolchain=RTX, compute_capabilities=capabilities
        )
        alone = build_engines(
            *graphs, tmp_path / "one", toolchain=RTX, compute_capabilities=["8.9"]
        )
        assert tuple(item.compute_capability for item in sets) == capabilities
        assert len({item.engines for item in sets}) == 1
        size = sum((tmp_path / "all" / e.file).stat().st_size for e in sets[0].engines)
        assert size < 1.01 * sum(
            (tmp_path / "one" / e.file).stat().st_size for e in alone[0].engines
        )

    def test_library_messages_go_to_the_log(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG, "pocketmoe.runtime.gpu"):
            build_engines(*graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.9"])
        assert any("Int64 binding" in record.message for record in caplog.records)
        assert all(record.levelno < logging.WARNING for record in caplog.records)


class TestFailing:
    def refused(self, root: Path, graphs: GpuGraphs, capability: str = "8.9") -> str:
        with pytest.raises(EngineError) as caught:
            build_engines(root, graphs, root, toolchain=RTX, compute_capabilities=[capability])
        assert not any((root / "engines").glob("*"))
        return str(caught.value)

    def test_an_operator_that_does_not_exist(self, tmp_path: Path) -> None:
        """The parser says no."""
        nodes = [node("Relu", "x", "a"), node("Frobnicate", "a", "y")]
        sides = ([value(name, FLOAT, "tokens", 4)] for name in "xy")
        assert self.refused(tmp_path, one_graph(tmp_path, nodes, *sides)) == (
            "device/odd.onnx cannot be built for sm89: node Frobnicate_y (Frobnicate): TensorRT "
            "has no such operator, or not for these types"
        )

    def test_types_that_do_not_fit(self, tmp_path: Path) -> None:
        nodes = [node("Cast", "x", "half", to=HALF), node("Add", "x half", "y")]
        sides = ([value(name, FLOAT, "tokens", 4)] for name in "xy")
        assert self.refused(tmp_path, one_graph(tmp_path, nodes, *sides)) == (
            "device/odd.onnx cannot be built for sm89: node Add_y (Add): Add_y: "
            "ElementWiseOperation SUM must have same input types. But they are of types Float and "
            "Half"
        )

    def test_what_only_the_builder_refuses(self, tmp_path: Path) -> None:
        nodes = [node("TopK", "x k", "y i")]
        outputs = [value("y", FLOAT, "tokens", 4000), value("i", INT64, "tokens", 4000)]
        graphs = one_graph(
            tmp_path, nodes, [value("x", FLOAT, "tokens", 5000)], outputs,
            {"k": np.array([4000])},
        )  # fmt: skip
        message = self.refused(tmp_path, graphs)
        assert message.startswith("device/odd.onnx cannot be built for sm89: ")
        assert "TopK_y: K exceeds the maximum value allowed (3840)" in message
        assert "/_src/" not in message

    def test_an_architecture_without_the_type(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        shutil.copytree(graphs[0] / "device", tmp_path / "device")
        message = self.refused(tmp_path, replace(graphs[1], segments=()), "7.5")
        assert message == (
            "device/expert_000.onnx cannot be built for sm75: Cannot compile for target(s) sm75, "
            "because the model contains HW-specific datatypes: int4"
        )

    @pytest.mark.parametrize("junk", [b"hello" * 100, b"", b"\x08\x0a" * 50])
    def test_what_is_no_graph(self, tmp_path: Path, junk: bytes) -> None:
        (tmp_path / "device").mkdir()
        (tmp_path / "device/odd.onnx").write_bytes(junk)
        graphs = GpuGraphs(("device/odd.onnx",), (), chunk=32, batch=64, context=256)
        assert "device/odd.onnx cannot be built for sm89: " in self.refused(tmp_path, graphs)

    def test_a_missing_graph(self, graphs: tuple[Path, GpuGraphs], tmp_path: Path) -> None:
        assert "is missing" in self.refused(tmp_path, graphs[1])

    def test_missing_weights(self, graphs: tuple[Path, GpuGraphs], tmp_path: Path) -> None:
        shutil.copytree(graphs[0] / "device", tmp_path / "device")
        (tmp_path / "device/segment_001.bin").unlink()
        assert "device/segment_001.onnx cannot be built" in self.refused(tmp_path, graphs[1])

    def test_a_dimension_that_nobody_knows(self, tmp_path: Path) -> None:
        sides = ([value(name, FLOAT, "sideways", 4)] for name in "xy")
        message = self.refused(tmp_path, one_graph(tmp_path, [node("Relu", "x", "y")], *sides))
        assert "input x has an open dimension 'sideways'; known ones are tokens, rows" in message

    def test_an_output_that_cannot_be_bound(self, tmp_path: Path) -> None:
        graphs = one_graph(
            tmp_path, [node("Greater", "x x", "y")], [value("x", FLOAT, "tokens", 4)],
            [value("y", 9, "tokens", 4)],
        )  # fmt: skip
        assert "y is DataType.BOOL, which the runtime cannot bind" in self.refused(tmp_path, graphs)


class TestStopping:
    def test_an_interrupt_ends_the_build(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        class Interrupting(Watched):
            def advance(self, nbytes: int) -> None:
                super().advance(nbytes)
                if len(self.done) == 1:
                    self.done.append(0)
                    os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            build_engines(
                *graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.9"],
                progress=Interrupting(),
            )  # fmt: skip
        assert list((tmp_path / "engines").iterdir()) == []

    def test_work_hears_of_it_before_the_interrupt_goes_on(self) -> None:
        heard = []

        def work(stop: threading.Event) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            heard.append(stop.wait(10))

        with pytest.raises(KeyboardInterrupt):
            stoppable(work)
        assert heard == [True]


def test_progress_of_phases_within_phases() -> None:
    told: list[int] = []
    progress = BuildProgress(told.append, 1000)
    progress.start("all", None, 4)
    progress.start("first", "all", 2)
    progress.step("first")
    assert sum(told) == 125
    progress.step("first")
    progress.finish("first")
    progress.step("all")
    assert sum(told) == 250
    progress.start("second", "all", 1)  # began anew: never back
    progress.step("second")
    progress.finish("second")
    progress.step("all")
    progress.finish("all")
    assert sum(told) == 500
    progress.end()
    assert sum(told) == 1000


class TestIntoABundle:
    def test_added(self, bundle: Path) -> None:
        before = read_manifest(bundle)
        (built,) = add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        manifest = read_manifest(bundle)
        assert manifest.engines == (built,)
        assert replace(manifest, engines=(), files={}) == replace(before, files={})
        for engine in built.engines:
            record = manifest.files[engine.file]
            assert record.size == (bundle / engine.file).stat().st_size
            assert record.sha256 == hash_file(bundle / engine.file)
        assert manifest.files.items() > before.files.items()
        assert leftovers(bundle, manifest) == []

    def test_a_set_takes_the_place_of_its_like(self, bundle: Path) -> None:
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.6"])
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        (built,) = add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        manifest = read_manifest(bundle)
        assert [item.compute_capability for item in manifest.engines] == ["8.6", "8.9"]
        assert manifest.engines[1] == built
        assert len(list((bundle / "engines").iterdir())) == 2
        assert leftovers(bundle, manifest) == []

    def test_shared_files_stay_while_one_set_needs_them(self, bundle: Path) -> None:
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.6", "8.9"])
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        assert len(list((bundle / "engines").iterdir())) == 2
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.6"])
        manifest = read_manifest(bundle)
        assert sorted(path.name for path in (bundle / "engines").iterdir()) == [
            f"tensorrt-rtx-{manifest.engines[0].version}-{name}" for name in ("sm86", "sm89")
        ]
        assert find_damage(bundle, manifest) == {}

    def test_one_that_fails_leaves_nothing(self, bundle: Path) -> None:
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        manifest, path = read_manifest(bundle), bundle / "device/combine_000.onnx"
        sides = ([value(name, FLOAT, "batch", 4)] for name in "xy")
        save(bundle, "combine_000", [node("Frobnicate", "x", "y")], *sides)
        record = FileRecord(path.stat().st_size, hash_file(path))
        files = {**manifest.files, "device/combine_000.onnx": record}
        write_manifest(bundle, replace(manifest, files=files))
        before = snapshot(bundle)
        with pytest.raises(EngineError, match=r"combine_000\.onnx .* node Frobnicate_y"):
            add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        assert snapshot(bundle) == before

    def test_damaged_weights_are_not_built_in(self, bundle: Path) -> None:
        path = bundle / "device/segment_000.bin"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        with pytest.raises(BundleError, match=r"segment_000\.bin is damaged"):
            add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])

    def test_two_at_once(self, bundle: Path) -> None:
        class Building(Watched):
            tried = 0

            def advance(self, nbytes: int) -> None:
                if not self.tried:
                    self.tried += 1
                    with pytest.raises(InputError, match="another build is at work"):
                        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.6"])

        building = Building()
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"], progress=building)
        assert building.tried == 1

    @pytest.mark.slow
    def test_killed_at_any_time(self, bundle: Path) -> None:
        """The bundle opens, is whole, and the next build removes what was left."""
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        code = (
            "import sys; from pathlib import Path\n"
            "from pocketmoe.engines.build import add_engines\n"
            "print('begun', flush=True)\n"
            "while True: add_engines(Path(sys.argv[1]), toolchain='tensorrt-rtx', "
            "compute_capabilities=['8.9'])"
        )
        numbers = random_numbers.Random(0)
        seen = set()
        for _ in range(8):
            child = subprocess.Popen([sys.executable, "-c", code, str(bundle)],
                                     stdout=subprocess.PIPE)  # fmt: skip
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(numbers.uniform(0.1, 1.2))
            child.kill()
            child.wait()
            child.stdout.close()
            manifest = read_manifest(bundle)
            assert len(manifest.engines) == 1
            assert find_damage(bundle, manifest) == {}
            seen |= {path.name[:9] for path in bundle.iterdir() if path.name.startswith(".")}
        assert seen, "no kill came while engines were built"
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        assert leftovers(bundle, read_manifest(bundle)) == []

    @pytest.mark.parametrize("place", ["_put", "write_manifest", "after"])
    def test_killed_at_the_end(self, bundle: Path, place: str) -> None:
        """At the points where the bundle changes, as a kill at random rarely hits them."""
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from pocketmoe.compiler import engines\n"
            "place = sys.argv[2]\n"
            "def killing(function, *, before):\n"
            "    def run(*arguments):\n"
            "        if not before: function(*arguments)\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return run\n"
            "name = 'write_manifest' if place == 'after' else place\n"
            "setattr(engines, name, killing(getattr(engines, name), "
            "before=place == 'write_manifest'))\n"
            "engines.add_engines(Path(sys.argv[1]), toolchain='tensorrt-rtx', "
            "compute_capabilities=['8.9'])"
        )
        run = subprocess.run([sys.executable, "-c", code, str(bundle), place], timeout=60)
        assert run.returncode == -signal.SIGKILL
        manifest = read_manifest(bundle)
        assert find_damage(bundle, manifest) == {}
        assert leftovers(bundle, manifest) != []
        add_engines(bundle, toolchain=RTX, compute_capabilities=["8.9"])
        assert leftovers(bundle, read_manifest(bundle)) == []


def leftovers(bundle: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not list."""
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    hidden = [path.name for path in bundle.iterdir() if path.name.startswith(".")]
    return sorted(found - set(manifest.files) - {"manifest.json"}) + hidden


def snapshot(bundle: Path) -> dict[str, str]:
    return {str(path): hash_file(path) for path in sorted(bundle.rglob("*")) if path.is_file()}


class TestArchitectures:
    def test_names(self) -> None:
        assert [parse_capability(t) for t in ("sm89", "SM120", "8.7", "75", "sm_110")] == [
            "8.9", "12.0", "8.7", "7.5", "11.0"
        ]  # fmt: skip
        for text in ("ada", "sm", "8", "sm1234"):
            with pytest.raises(InputError, match="write it as sm89"):
                parse_capability(text)

    def test_what_is_refused(self) -> None:
        with pytest.raises(EngineError, match="no engines for sm87; it does for sm75, sm80"):
            check_capability("8.7", INT4)
        with pytest.raises(EngineError, match=r"sm75 has no int4.*it needs sm80 or newer"):
            check_capability("7.5", INT4)
        with pytest.raises(EngineError, match=r"sm86 has no fp8.*it needs sm89"):
            check_capability("8.6", replace(INT4, experts="fp8"))
        for capability in RTX_CAPABILITIES:
            check_capability(capability, replace(INT4, experts="int8"))

    def test_portable_says_what_it_leaves_out(self, caplog: pytest.LogCaptureFixture) -> None:
        assert portable_capabilities(INT4) == ("8.0", "8.6", "8.9", "12.0", "12.1")
        assert [record.message for record in caplog.records] == ["no engines for sm75 (no int4)"]
        assert portable_capabilities(replace(INT4, experts="fp8")) == ("8.9", "12.0", "12.1")

    def test_what_compile_plans(self) -> None:
        cpu = find_target("cpu")
        assert plan_engines(cpu, INT4, portable=False) == ()
        with pytest.raises(TargetError, match="--portable has no effect for target cpu"):
            plan_engines(cpu, INT4, portable=True)
        card = replace(cpu, name="card", toolchain=RTX, compute_capability="8.9")
        assert plan_engines(card, INT4, portable=False) == ("8.9",)
        assert len(plan_engines(card, INT4, portable=True)) == 5
        with pytest.raises(EngineError, match="sm75 has no int4"):
            plan_engines(replace(card, compute_capability="7.5"), INT4, portable=False)


def test_sample_graphs_keep_the_manifest(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(bundle, manifest)
    assert read_manifest(bundle) == manifest


@needs_rtx
def test_a_device_that_takes_no_int4_gets_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a TensorRT for which quantized inputs are an error; the engines are real ones."""
    page = PageFormat("int4", BLOCK, HIDDEN, INNER)
    graphs = write_sample_graphs(tmp_path)
    onnx.save(expert_graph(page, plain=True), tmp_path / plain_file(graphs.layers[0].expert))
    onnx.save(token_graph(page, TOP_K, plain=True), tmp_path / plain_file(graphs.layers[0].token))

    class WithoutInt4(EngineBuilder):
        def __init__(self, toolchain: str, capabilities: object = None):
            super().__init__(RTX, ["8.9"])

        def build(self, root: Path, file: str, *rest: Any) -> BuiltEngine:
            if file in (graphs.layers[0].expert, graphs.layers[0].token):
                raise EngineError(f"{file} cannot be built for this GPU: int4 is no input")
            return super().build(root, file, *rest)

    monkeypatch.setattr(engines, "EngineBuilder", WithoutInt4)
    gpu = Gpu("Orin", "8.7", 8 << 30, True)
    (made,) = build_engines(tmp_path, graphs, tmp_path, toolchain=STOCK, gpu=gpu)
    assert [engine.graph for engine in made.engines] == list(graphs.files())
    expert, token = made.engines[2], made.engines[3]
    assert set(page_inputs(page, plain=True)) < set(expert.inputs)
    assert set(page_inputs(page, ".1", plain=True)) < set(token.inputs)
    assert [r.getMessage() for r in caplog.records].count(
        f"{expert.graph} cannot be built for this GPU: int4 is no input; it is built of "
        "plain operators, which is slower"
    ) == 1
