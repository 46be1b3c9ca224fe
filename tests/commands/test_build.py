"""`build`, and what `inspect` shows of engines."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pocketmoe.analysis.inspection import engine_facts
from pocketmoe.bundle.manifest import check_file, read_manifest, write_manifest
from pocketmoe.cli import main
from pocketmoe.engines import architectures, hardware
from pocketmoe.engines.hardware import Gpu
from pocketmoe.engines.libraries import RTX
from pocketmoe.errors import BundleError, EngineError
from pocketmoe.runtime.gpu.backends import choose_engines
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.tests.support.gpu.host_device import HostDevice
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx
from pocketmoe.tests.support.gpu.sample_graphs import add_sample_graphs
from pocketmoe.tests.support.waiting import PATIENCE

ORIN = Gpu("Orin", "8.7", 8 << 30, True)
CARD = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, False)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, path)
    add_sample_graphs(path)
    write_manifest(path, replace(read_manifest(path), target="rtx-4090"))
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@needs_rtx
class TestBuild:
    def test_for_the_target(self, bundle: Path) -> None:
        result = call("build", bundle)
        assert result.exit_code == 0, result.stderr
        assert f"{bundle}: 5 engines for sm89, " in result.stdout
        assert [item.compute_capability for item in read_manifest(bundle).engines] == ["8.9"]
        assert call("verify", bundle).exit_code == 0

    def test_for_others(self, bundle: Path) -> None:
        assert call("build", bundle, "--arch", "sm86", "--arch", "8.0").exit_code == 0
        capabilities = [item.compute_capability for item in read_manifest(bundle).engines]
        assert capabilities == ["8.6", "8.0"]

    def test_portable(self, bundle: Path) -> None:
        result = call("build", bundle, "--portable")
        assert "5 engines for sm80, sm86, sm89, sm120, sm121, " in result.stdout
        assert "warning: no engines for sm75 (no int4)" in result.stderr

    def test_what_is_refused(self, bundle: Path, tiny_bundle: Path) -> None:
        assert "builds no engines for sm87; it does for sm75" in refused(
            "build", bundle, "--arch", "sm87"
        )
        assert "sm75 has no int4" in refused("build", bundle, "--arch", "sm75")
        assert "there is no architecture 'ada'" in refused("build", bundle, "--arch", "ada")
        assert "compile it with --target of a GPU" in refused("build", tiny_bundle)
        portable = ["build", bundle, "--portable", "--arch"]
        assert "--arch and --portable contradict each other" in refused(*portable, "sm86")
        assert "there is no architecture 'ada'" in refused(*portable, "ada")

    def test_what_is_there_is_not_built_again(self, bundle: Path) -> None:
        call("build", bundle, "--portable")
        before = read_manifest(bundle)
        assert (
            "has its engines for sm86 of tensorrt-rtx"
            in call("build", bundle, "--arch", "86").stdout
        )
        assert read_manifest(bundle) == before
        assert "5 engines for sm86" in call("build", bundle, "--arch", "86", "--force").stdout
        assert read_manifest(bundle) != before

    def test_removing(self, bundle: Path) -> None:
        call("build", bundle, "--arch", "sm86")
        call("build", bundle, "--arch", "sm89")
        assert f"{bundle} has no engines for sm80" in refused("build", bundle, "--remove", "sm80")
        assert "leave out the other" in refused("build", bundle, "--remove", "all", "--portable")
        assert "removed engines for sm86" in call("build", bundle, "--remove", "sm86").stdout
        assert [item.capability_name for item in read_manifest(bundle).engines] == ["sm89"]
        assert len(os.listdir(bundle / "engines")) == 1
        assert "removed engines for sm89" in call("build", bundle, "--remove", "all").stdout
        assert os.listdir(bundle / "engines") == []
        assert call("verify", bundle).exit_code == 0

    def test_a_file_in_the_way_and_files_of_others(self, bundle: Path) -> None:
        (bundle / "engines").touch()
        assert f"{bundle}/engines is no folder" in call("build", bundle).stderr
        (bundle / "engines").unlink()
        call("build", bundle)
        note = bundle / read_manifest(bundle).engines[0].folder / "note.txt"
        note.touch()
        call("build", bundle, "--force")
        assert os.listdir(note.parent) == ["note.txt"]
        assert call("verify", bundle).exit_code == 0

    @pytest.mark.parametrize(
        ("number", "told"),
        [
            (errno.EROFS, "cannot be written (read-only file system); copy it to where it can be"),
            (errno.ENOSPC, "has no room for engines (no space left on device): they take about"),
            (errno.EFBIG, "has no room for engines (file too large): they take about"),
        ],
    )
    def test_what_the_system_refuses(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number), "somewhere")

        monkeypatch.setattr("pocketmoe.engines.build.tempfile.mkdtemp", fails)
        assert f"{bundle} {told}" in call("build", bundle).stderr.splitlines()[-1]

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
    def test_stopped_by_a_signal(self, bundle: Path, sent: signal.Signals) -> None:
        before = sorted(bundle.rglob("*"))
        child = subprocess.Popen(
            [sys.executable, "-m", "pocketmoe", "build", str(bundle), "--portable"],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(1000):
            if list(bundle.glob(".engines.*")):
                break
            time.sleep(0.01)
        child.send_signal(sent)
        out, err = child.communicate(timeout=PATIENCE)
        assert out == ""
        assert child.returncode == 130
        assert err.splitlines()[-1] == "interrupted"
        assert sorted(path for path in bundle.rglob("*") if path.name != "engines") == before


class TestWithoutALibrary:
    @pytest.fixture(autouse=True)
    def _none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(toolchain: str) -> None:
            raise EngineError(f"{toolchain} is not installed: pip install it")

        monkeypatch.setattr(architectures, "load_tensorrt", missing)
        monkeypatch.setattr("pocketmoe.engines.build.load_tensorrt", missing)
        monkeypatch.setattr("pocketmoe.engines.present.load_tensorrt", missing)

    def test_build(self, bundle: Path) -> None:
        assert refused("build", bundle).endswith("is not installed: pip install it")
        assert not (bundle / "engines").exists()

    def test_compile_says_how_to_go_without(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        line = refused("compile", tiny_checkpoint, "--target", "rtx-4090", "-o", tmp_path / "out")
        assert "tensorrt-rtx is not installed" in line
        assert "or compile with --no-engines" in line


class TestOnADevice:
    def test_the_gpu_that_is_here(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardware, "find_gpu", lambda: ORIN)
        for option in (["--arch", "sm89"], ["--portable"]):
            line = refused("build", bundle, "--toolchain", "tensorrt", *option)
            assert (
                f"{option[0]} is for tensorrt-rtx, and tensorrt builds for the GPU that is" in line
            )

    def test_engines_that_are_built_on_the_device(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_manifest(bundle, replace(read_manifest(bundle), target="jetson-orin-nano-8gb"))
        shown = call("inspect", bundle).stdout
        assert "none; 'pocketmoe build' makes them on jetson-orin-nano-8gb" in shown
        monkeypatch.setattr(architectures, "is_installed", lambda toolchain: toolchain == RTX)
        line = refused("build", bundle)
        assert "engines for jetson-orin-nano-8gb are built on the device, with TensorRT" in line
        assert "--arch is for tensorrt-rtx" in refused("build", bundle, "--arch", "sm87")

    def test_no_gpu(self, bundle: Path) -> None:
        if engine_facts.gpu_here() is not None:
            pytest.skip("this machine has a GPU")
        line = refused("build", bundle, "--toolchain", "tensorrt")
        assert "driver" in line or "no NVIDIA GPU" in line or "cuda-python" in line


@needs_rtx
class TestInspectEngines:
    def facts(self, bundle: Path) -> dict[str, object]:
        result = call("inspect", bundle, "--json")
        assert result.exit_code == 0, result.stderr
        return dict(json.loads(result.stdout))

    def test_graphs_without_engines(self, bundle: Path) -> None:
        assert "none; 'pocketmoe build' makes them" in call("inspect", bundle).stdout
        assert self.facts(bundle)["engines"] == []

    def test_engines(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pocketmoe.analysis.inspection.inspect.gpu_here", lambda: CARD)
        call("build", bundle)
        (built,) = read_manifest(bundle).engines
        shown = call("inspect", bundle).stdout
        assert f"tensorrt-rtx {built.version}" in shown
        assert "runs them" in shown
        assert "engines for sm89" in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("expert_000.engine")]
        size = (bundle / built.folder / "expert_000.engine").stat().st_size
        assert f"{size / 1024:.1f} KiB" in line
        assert "9: 2 float32, 1 int64, 3 int4, 3 float16" in line
        assert line.endswith("int4")
        (line,) = [line for line in shown.splitlines() if line.startswith("segment_000.engine")]
        assert line.rstrip().endswith("inside")
        assert re.search(r"^engine context +256 positions$", shown, re.M)
        facts = self.facts(bundle)
        (item,) = facts["engines"]  # type: ignore[misc]
        assert item["here"] is True
        assert item["engines"][0]["inputs"][0] == {
            "name": "hidden", "dtype": "float32", "shape": [-1, 64]
        }  # fmt: skip
        assert facts["gpu"] == "NVIDIA GeForce RTX 4090 (sm89)"

    def test_engines_for_another_device(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call("build", bundle, "--arch", "sm86")
        monkeypatch.setattr("pocketmoe.analysis.inspection.inspect.gpu_here", lambda: ORIN)
        shown = call("inspect", bundle).stdout
        assert "is another" in shown
        assert "for sm86, and this machine's GPU is Orin (sm87): 'pocketmoe build'" in shown
        monkeypatch.setattr("pocketmoe.analysis.inspection.inspect.gpu_here", lambda: None)
        assert "has no GPU" in call("inspect", bundle).stdout

    def test_sets_that_share_their_files(self, bundle: Path) -> None:
        call("build", bundle, "--portable")
        shown = call("inspect", bundle).stdout
        assert "engines for sm80, sm86, sm89, sm120, sm121" in shown
        assert shown.count("combine_000.engine") == 1
        facts = self.facts(bundle)
        assert len(facts["engines"]) == 5  # type: ignore[arg-type]
        sets = shown[shown.index("engine sets") : shown.index("engines for sm80")]
        assert sets.count("tensorrt-rtx") == 1  # a row for the one folder
        assert os.listdir(bundle / "engines") == [
            Path(read_manifest(bundle).engines[0].folder).name
        ]


@needs_rtx
class TestMissingEngines:
    """A bundle serves without its engines, and `build` makes them anew."""

    def test_a_missing_file(self, bundle: Path) -> None:
        assert call("build", bundle, "--arch", "sm86", "--arch", "sm89").exit_code == 0
        folder = bundle / read_manifest(bundle).engines[0].folder
        (folder / "token_000.engine").unlink()
        (folder / "expert_000.engine").write_bytes(b"cut")
        remedy = f"'pocketmoe build {bundle} --arch sm86 --arch sm89' makes them anew"
        line = call("verify", bundle).stderr.splitlines()[-1]
        assert "token_000.engine (missing, or not whole)" in line
        assert line.endswith(remedy)
        told = json.loads(call("inspect", bundle, "--json").stdout)["incomplete_engines"]
        assert ".engine and 1 more missing, or not whole" in told
        assert told.endswith(remedy)
        assert "none; 'pocketmoe build' makes them" in call("inspect", bundle).stdout
        with pytest.raises(EngineError, match="has no engines that are whole for"):
            choose_engines(RTX, "1.0", bundle, read_manifest(bundle), HostDevice())
        assert call("build", bundle, "--arch", "sm86", "--arch", "sm89").exit_code == 0
        assert len(read_manifest(bundle).engines) == 2
        assert call("verify", bundle).exit_code == 0

    def test_all_are_gone(self, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert call("build", bundle).exit_code == 0
        shutil.rmtree(bundle / "engines")
        with open_bundle(bundle, backend="cpu") as session:
            assert list(session.generate("def", max_new_tokens=1))
        (message,) = caplog.messages
        assert message.endswith(f"'pocketmoe build {bundle} --arch sm89' makes them anew")
        assert call("build", bundle).exit_code == 0
        assert call("verify", bundle).exit_code == 0

    def test_a_damaged_file(self, bundle: Path) -> None:
        assert call("build", bundle).exit_code == 0
        path = bundle / read_manifest(bundle).engines[0].folder / "token_000.engine"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        line = call("verify", bundle).stderr.splitlines()[-1]
        assert line.endswith(f"'pocketmoe build {bundle} --arch sm89' makes them anew")
        with pytest.raises(
            BundleError, match=r"token_000\.engine is damaged.*build .* --arch sm89"
        ):
            check_file(bundle, read_manifest(bundle), path.relative_to(bundle).as_posix())
        assert call("build", bundle).exit_code == 0
        assert call("verify", bundle).exit_code == 0


@needs_rtx
class TestCompile:
    def test_engines_of_a_model(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        """Every graph of it, and their inputs are what the manifest says."""
        out = tmp_path / "out"
        result = call("compile", tiny_checkpoint, "--target", "rtx-4090", "-o", out, "--block",
                      "32", "--context", "128")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert "; engines for sm89" in result.stdout
        manifest = read_manifest(out)
        assert manifest.graphs is not None
        assert manifest.graphs.context == 128
        (built,) = manifest.engines
        assert [engine.graph for engine in built.engines] == list(manifest.graphs.files())
        assert call("verify", out).exit_code == 0

    def test_no_engines_and_build_later(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = call("compile", tiny_checkpoint, "--target", "rtx-2080-ti", "-o", out, "--block",
                      "32", "--precision", "experts=int8", "--no-engines")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert "; no engines yet: 'pocketmoe build' makes them" in result.stdout
        assert read_manifest(out).engines == ()
        assert call("build", out).exit_code == 0
        assert [item.compute_capability for item in read_manifest(out).engines] == ["7.5"]

    def test_for_a_jetson(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = ["compile", tiny_checkpoint, "--target", "jetson-orin-nano-8gb", "-o", out]
        assert "--portable has no effect" in refused(*arguments, "--portable")
        result = call(*arguments, "--block", "32")
        assert "'pocketmoe build' makes them on jetson-orin-nano-8gb" in result.stdout
        assert read_manifest(out).engines == ()

    def test_what_contradicts(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ["compile", tiny_checkpoint, "-o", tmp_path / "out", "--target"]
        assert "contradict" in refused(*arguments, "rtx-4090", "--portable", "--no-engines")
        assert "--no-engines has no effect for target cpu" in refused(
            *arguments, "cpu", "--no-engines"
        )
        assert "--context has no effect for target cpu" in refused(
            *arguments, "cpu", "--context", "64"
        )
