"""Engines put into a bundle: whole or not at all, whoever else builds, whatever is killed."""

import random as random_numbers
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pocketmoe.bundle.damage import find_damage
from pocketmoe.bundle.manifest import (
    FileRecord,
    Manifest,
    hash_file,
    read_manifest,
    write_manifest,
)
from pocketmoe.engines.build import add_engines
from pocketmoe.engines.libraries import RTX
from pocketmoe.errors import BundleError, EngineError, InputError
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx
from pocketmoe.tests.support.gpu.sample_graphs import (
    FLOAT,
    node,
    save,
    value,
)
from pocketmoe.tests.support.waiting import PATIENCE
from pocketmoe.tests.support.watched import Watched

pytestmark = needs_rtx


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
            "from pocketmoe.engines import build as engines\n"
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
        run = subprocess.run([sys.executable, "-c", code, str(bundle), place], timeout=PATIENCE)
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


def test_sample_graphs_keep_the_manifest(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(bundle, manifest)
    assert read_manifest(bundle) == manifest
