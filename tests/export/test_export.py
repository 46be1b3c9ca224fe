"""`export`: what goes into the archive, and an app that is installed without an index and runs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from pocketmoe.cli import main
from pocketmoe.errors import BundleError, ExportError, InputError
from pocketmoe.export.app import ExportRequest, export_app
from pocketmoe.export.installer.manifest import read_manifest
from pocketmoe.export.kernels import find_kernels
from pocketmoe.export.licences import collect_licences, licence_of, model_licences
from pocketmoe.export.own_wheel import package_files, write_wheel
from pocketmoe.export.platforms import Platform, find_platform, this_machine
from pocketmoe.export.project import project_metadata
from pocketmoe.export.requirements import closure, gather_wheels, read_wheel
from pocketmoe.progress import Silent
from pocketmoe.runtime.native.library import library_path
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.waiting import PATIENCE
from pocketmoe.tests.support.wheelhouse import invent, repack, repack_closure

ARM = Platform("aarch64", (3, 10), (2, 34))
INTEL = Platform("x86_64", (3, 12), (2, 34))
needs_kernels = pytest.mark.skipif(library_path() is None, reason="no native kernels here")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels by the names of the runtime's dependencies, empty but for two; and pip itself."""
    folder = tmp_path_factory.mktemp("house")
    repack("pip", folder)
    for text in Parser().parsestr(project_metadata()[0]).get_all("Requires-Dist", []):
        wanted = Requirement(text)
        extras = [extra for extra in ("", "serve", "structured")
                  if wanted.marker is None or wanted.marker.evaluate({"extra": extra})]  # fmt: skip
        if extras and wanted.name not in ("tokenizers", "pocketmoe"):
            oldest = next(item.version for item in wanted.specifier if item.operator == ">=")
            invent(folder, wanted.name, oldest)
    for machine in ("x86_64", "aarch64"):
        for python in (310, 311, 312, 313):
            tag = f"cp{python}-cp{python}-manylinux_2_28_{machine}"
            invent(folder, "onnxruntime", "1.23.0", tag=tag,
                   files={"onnxruntime/LICENSE": "MIT, as it were"})  # fmt: skip
    requires = ['old-hub>=1; python_version < "3.11"', 'new-hub; python_version >= "3.11"']
    invent(folder, "tokenizers", "0.21.0", requires=requires)
    invent(folder, "old-hub", "1.0")
    invent(folder, "new-hub", "1.0", requires=['never; sys_platform == "win32"'])
    return folder


def names_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


class TestPlatform:
    def test_names(self) -> None:
        assert find_platform("linux-aarch64-py310", None) == ARM
        assert find_platform("Linux-ARM64-py310", "2.34") == ARM
        assert str(find_platform("linux-amd64-py313", "2.28")) == "linux-x86_64-py313"
        here = find_platform(None, None)
        assert (here.machine, here.python) == (this_machine(), sys.version_info[:2])

    def test_tags(self) -> None:
        tags = ARM.tags()
        assert tags[0] == "manylinux_2_34_aarch64"
        assert tags[-3:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"]
        assert "manylinux1_x86_64" in INTEL.tags()

    @pytest.mark.parametrize(
        ("name", "glibc", "words"),
        [
            ("linux-riscv64-py311", None, "not of the form"),
            ("win-x86_64-py311", None, "not of the form"),
            ("linux-x86_64-py27", None, "not of the form"),
            ("linux-x86_64-py39", None, "3.10 is the oldest"),
            ("linux-x86_64-py311", "3.0", "--glibc '3.0'"),
            ("linux-x86_64-py311", "2.5", "from 2.17 on"),
        ],
    )
    def test_others_are_refused(self, name: str, glibc: str | None, words: str) -> None:
        with pytest.raises(InputError, match=words):
            find_platform(name, glibc)


class TestWheels:
    def test_markers_are_those_of_the_device(self, house: Path, tmp_path: Path) -> None:
        """pip itself evaluates them for the Python that runs it."""
        for platform, hub in ((ARM, "old-hub"), (INTEL, "new-hub")):
            folder = tmp_path / str(platform)
            (folder / "found").mkdir(parents=True)
            own = write_wheel(folder, platform, None)
            wheels = gather_wheels(
                own, ["cpu", "serve"], platform, folder / "found", find_links=house, constraint=None
            )
            names = [wheel.name for wheel in wheels]
            assert (names[0], names[-1]) == ("pocketmoe", "pip")
            assert {"old-hub", "new-hub"}.intersection(names) == {hub}
            assert {"starlette", "llguidance", "onnxruntime"} < set(names)
            engine = next(wheel.path.name for wheel in wheels if wheel.name == "onnxruntime")
            assert platform.machine in engine
            assert f"cp3{platform.python[1]}" in engine

    def test_a_wheel_that_is_not_to_be_had(self, house: Path, tmp_path: Path) -> None:
        own = write_wheel(tmp_path, ARM, None)
        (tmp_path / "found").mkdir()
        with pytest.raises(ExportError, match=r"no wheels for linux-aarch64-py39.*onnxruntime"):
            gather_wheels(own, ["cpu"], Platform("aarch64", (3, 9), (2, 34)), tmp_path / "found",
                          find_links=house, constraint=None)  # fmt: skip
        with pytest.raises(ExportError, match="no extra 'gpu'"):
            gather_wheels(own, ["gpu"], ARM, tmp_path / "found", find_links=house, constraint=None)

    def test_constraints(self, house: Path, tmp_path: Path) -> None:
        own = write_wheel(tmp_path, ARM, None)
        (tmp_path / "found").mkdir()
        (tmp_path / "versions.txt").write_text("numpy==1.99\n")
        with pytest.raises(ExportError, match="numpy"):
            gather_wheels(own, ["cpu"], ARM, tmp_path / "found", find_links=house,
                          constraint=tmp_path / "versions.txt")  # fmt: skip

    def test_closure_asks_for_what_is_too_old(self, tmp_path: Path) -> None:
        first = read_wheel(invent(tmp_path, "first", requires=["second>=2", "third[more]"]))
        second = read_wheel(invent(tmp_path, "second", "1.0"))
        third = read_wheel(invent(tmp_path, "third", requires=['fourth; extra == "more"']))
        found = {wheel.name: wheel for wheel in (second, third)}
        needed, missing = closure(first, [], found, ARM)
        assert needed == {"first", "third"}
        assert sorted(missing) == ["fourth", "second>=2"]

    def test_licences(self, tmp_path: Path) -> None:
        files = {
            "a/LICENSE.txt": "one", "a/ThirdPartyNotices.txt": "two", "a/license.py": "no",
            "a-1.0.dist-info/licenses/sub/COPYING": "three", "a/authorship.txt": "no",
        }  # fmt: skip
        metadata = "Classifier: License :: OSI Approved :: MIT License\n"
        wheel = read_wheel(invent(tmp_path, "a", files=files, metadata=metadata))
        assert licence_of(wheel) == "MIT License"
        texts = collect_licences([wheel])
        said = json.loads(texts.pop("licences/licences.json"))
        assert sorted(texts.values()) == [b"one", b"three", b"two"]
        assert said[0]["licence"] == "MIT License"
        assert {f"licences/{name}" for name in said[0]["files"]} == set(texts)


class TestOwnWheel:
    def test_it_holds_what_the_project_lists(self, tmp_path: Path) -> None:
        tomllib = pytest.importorskip("tomllib")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        packages = project["tool"]["setuptools"]["packages"]
        folders = {os.path.dirname(name) for name in package_files() if name.endswith(".py")}
        listed = {name.replace(".", "/").removeprefix("pocketmoe").strip("/") for name in packages}
        assert folders == listed - {"model/demo"}
        for package, patterns in project["tool"]["setuptools"]["package-data"].items():
            folder = ROOT / package.replace(".", "/").removeprefix("pocketmoe").strip("/")
            for pattern in patterns:
                for path in filter(Path.is_file, folder.glob(pattern)):
                    name = path.relative_to(ROOT).as_posix()
                    assert name in package_files() or name.startswith("model/demo/")
        wheel = read_wheel(write_wheel(tmp_path, ARM, None))
        requires = wheel.metadata.get_all("Requires-Dist") or []
        assert (
            requires[: len(project["project"]["dependencies"])]
            == (project["project"]["dependencies"])
        )
        assert 'onnxruntime>=1.23,<2; extra == "cpu"' in requires

    @needs_kernels
    def test_it_is_whole_and_always_the_same(self, tmp_path: Path) -> None:
        here = find_platform(None, None)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        first, second = (write_wheel(tmp_path / name, here, library_path()) for name in ("a", "b"))
        assert first.name == f"pocketmoe-0.1.0-py3-none-linux_{here.machine}.whl"
        assert first.read_bytes() == second.read_bytes()
        with zipfile.ZipFile(first) as archive:
            (record,) = [name for name in archive.namelist() if name.endswith("RECORD")]
            lines = archive.read(record).decode().splitlines()
            assert len(lines) == len(archive.namelist())
            for line in lines[:-1]:
                name, digest, size = line.rsplit(",", 2)
                data = archive.read(name)
                found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
                assert (digest, size) == (f"sha256={found.decode()}", str(len(data)))

    @needs_kernels
    def test_kernels_for_another_machine(self, tmp_path: Path) -> None:
        own = library_path()
        assert own is not None
        here = find_platform(None, None)
        other = ARM if this_machine() == "x86_64" else INTEL
        assert find_kernels(None, here) == own
        assert find_kernels(None, other) is None
        data = bytearray(own.read_bytes())
        struct.pack_into("<H", data, 18, 183 if other.machine == "aarch64" else 62)
        path = tmp_path / "libpocketmoe.so"
        path.write_bytes(data)
        assert find_kernels(path, Platform(other.machine, (3, 10), (2, 99))) == path
        with pytest.raises(InputError, match=f"is for {other.machine}, and the app for linux-"):
            find_kernels(path, here)
        with pytest.raises(InputError, match="needs glibc 2"):
            find_kernels(path, Platform(other.machine, (3, 10), (2, 0)))
        with pytest.raises(ExportError, match="compiled here for glibc"):
            find_kernels(None, Platform(here.machine, (3, 10), (2, 0)))
        path.write_bytes(b"\x7fELF")
        with pytest.raises(InputError, match="no library of pocketmoe's"):
            find_kernels(path, other)


class TestArchive:
    @pytest.mark.parametrize("name", ["app.tar.zst", "app.tar.gz", "app.tar"])
    def test_the_same_bytes_again(
        self, name: str, tiny_bundle: Path, house: Path, tmp_path: Path
    ) -> None:
        licence = tmp_path / "MODEL-LICENCE"
        licence.write_text("free")
        made = []
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            copy = tmp_path / folder / "tiny"
            shutil.copytree(tiny_bundle, copy)  # with other times
            out = tmp_path / folder / name
            request = ExportRequest(
                copy, wheels=house, licences=(licence,), platform="linux-arm64-py310"
            )
            made.append((export_app(request, out, Silent()), out.read_bytes()))
            assert [path.name for path in out.parent.iterdir() if path.name[0] == "."] == []
        (first, data), (second, other) = made
        assert data == other
        assert hashlib.sha256(data).hexdigest() == first.sha256 == second.sha256
        assert first.identity == second.identity
        assert any("no native kernels for linux-aarch64-py310" in note for note in first.notes)

    def test_what_is_in_it(self, tiny_bundle: Path, house: Path, tmp_path: Path) -> None:
        out = tmp_path / "app.tar"
        done = export_app(ExportRequest(tiny_bundle, wheels=house), out, Silent())
        with tarfile.open(out) as tar:
            members = tar.getmembers()
            content = {item.name: tar.extractfile(item).read() for item in members}  # type: ignore[union-attr]
        assert {(item.uid, item.gid, item.uname, item.mtime) for item in members} == {
            (0, 0, "", 315532800)
        }
        app = read_manifest(content["tiny/manifest.json"])
        assert members[0].name == "tiny/manifest.json"
        assert app.identity == done.identity
        for name, item in app.files.items():
            data = content[f"tiny/{name}"]
            assert (len(data), hashlib.sha256(data).hexdigest()) == (item.size, item.sha256)
        assert {name.removeprefix("tiny/") for name in content} == {
            *app.files, "manifest.json", "SHA256SUMS",
        }  # fmt: skip
        there = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*")
                 if path.is_file()}  # fmt: skip
        assert {f"bundle/{name}" for name in there} <= set(app.files)
        assert b"MIT, as it were" in content.values()
        assert any("licence" in note for note in done.notes)

    def test_the_licence_of_a_checkpoint(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        from pocketmoe.compiler.output import copy_licences

        shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
        for name in ("LICENSE.txt", "NOTICE", "README.md"):
            (tmp_path / "checkpoint" / name).write_text(name)
        (tmp_path / "bundle").mkdir()
        copy_licences(tmp_path / "checkpoint", tmp_path / "bundle")
        assert set(model_licences(tmp_path / "bundle", [])) == {
            "licences/model/LICENSE.txt", "licences/model/NOTICE",
        }  # fmt: skip
        assert len(os.listdir(tmp_path / "bundle")) == 2

    def test_halves(self, tiny_bundle: Path, house: Path, tmp_path: Path) -> None:
        paths = [tmp_path / f"{name}.tar" for name in ("both", "runtime", "bundle")]
        export_app(ExportRequest(tiny_bundle, wheels=house), paths[0], Silent())
        export_app(ExportRequest(None, runtime_only=True, wheels=house), paths[1], Silent())
        export_app(ExportRequest(tiny_bundle, bundle_only=True), paths[2], Silent())
        apps = []
        for path in paths:
            with tarfile.open(path) as tar:
                first = tar.next()
                assert first is not None
                apps.append(read_manifest(tar.extractfile(first).read()))  # type: ignore[union-attr]
        both, runtime, bundle = apps
        assert runtime.part_id("runtime") == both.part_id("runtime")
        assert bundle.part_id("bundle") == both.part_id("bundle")
        assert (runtime.name, runtime.model, bundle.runtime) == (None, None, None)
        assert not any("/bundle/" in name for name in names_in(paths[1]))
        assert not any("/wheels/" in name for name in names_in(paths[2]))

    def test_a_damaged_bundle_leaves_nothing(self, tiny_bundle: Path, tmp_path: Path) -> None:
        copy, out = tmp_path / "tiny", tmp_path / "app.tar.zst"
        shutil.copytree(tiny_bundle, copy)
        path = next(copy.rglob("pages.bin"))
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"pages\.bin is not what its manifest says"):
            export_app(ExportRequest(copy, bundle_only=True), out, Silent())
        assert sorted(os.listdir(tmp_path)) == ["tiny"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-o", "x.zip"], "is to end in .tar.zst, .tar.gz or .tar"),
            (["-o", "there.tar"], "there.tar exists"),
            (["-o", "missing/x.tar", "--bundle-only"], "cannot write to"),
            (["-o", "x.tar", "--bundle-only", "--runtime-only"], "exclude each other"),
            (["-o", "x.tar", "--name", "../x"], "cannot be an app's name"),
            (["-o", "x.tar", "--for", "windows"], "--for 'windows' is not of the form"),
        ],
    )
    def test_bad_input(
        self, arguments: list[str], words: str, tiny_bundle: Path, house: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there.tar").write_text("precious")
        command = ["export", str(tiny_bundle), "--wheels", str(house), *arguments]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2
        assert words in done.output.splitlines()[-1]
        assert os.listdir(tmp_path) == ["there.tar"]
        assert (tmp_path / "there.tar").read_text() == "precious"

    def test_without_a_bundle(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["export", "-o", str(tmp_path / "x.tar")])
        assert "which bundle?" in done.output
        done = CliRunner().invoke(main, ["export", str(tmp_path), "-o", str(tmp_path / "x.tar")])
        assert "it is not a (complete) bundle" in done.output


@pytest.fixture(scope="module")
def real_house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that are installed here, as wheels."""
    folder = tmp_path_factory.mktemp("real")
    pytest.importorskip("starlette")
    names = ["numpy", "tokenizers", "jinja2", "click", "rich", "onnxruntime", "llguidance",
             "starlette", "uvicorn", "h11", "prometheus-client", "pip"]  # fmt: skip
    repack_closure(names, folder)
    return folder


@pytest.fixture(scope="module")
def root(real_house: Path, served_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app, exported, unpacked and installed as on a device."""
    folder = tmp_path_factory.mktemp("device")
    export_app(ExportRequest(served_bundle, wheels=real_house), folder / "app.tar.zst", Silent())
    with tarfile_of(folder / "app.tar.zst") as tar:
        tar.extractall(folder)
    device(folder / "tiny/install.pyz", "install", "--to", folder / "root")
    return folder / "root"


@pytest.mark.slow
class TestTheWholeWay:
    """The whole way, with the real packages."""

    def test_a_prompt_has_the_same_answer(self, root: Path, served_bundle: Path) -> None:
        told = device(root / "run", "--prompt", "def main(", "--max-tokens", "8")
        with open_bundle(served_bundle) as session:
            assert told == session.generate("def main(", max_new_tokens=8).text() + "\n"

    @needs_kernels
    def test_the_native_kernels_run(self, root: Path) -> None:
        python = next(root.glob("runtimes/*/venv/bin/python"))
        code = "from pocketmoe.runtime.native.library import instruction_sets as i; print(i())"
        assert device(python, "-I", "-c", code).strip() != "()"

    def test_nothing_of_the_compiler_is_there(self, root: Path) -> None:
        site = next(root.glob("runtimes/*/venv/lib/python3*/site-packages"))
        there = {path.name for path in site.iterdir()}
        assert not {"torch", "onnx", "safetensors", "pip"} & there
        assert not list(site.rglob("*.safetensors"))

    def test_the_server(self, root: Path) -> None:
        import re
        from urllib.request import urlopen

        command = [root / "run", "serve", "--port", "0", "--memory-budget", "auto"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=bare())
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"serving tiny at (http://127.0.0.1:\d+)/v1", line)
            assert found, line
            with urlopen(f"{found[1]}/health", timeout=PATIENCE) as answer:
                assert answer.status == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.communicate()

    def test_the_runtime_alone_is_updated(
        self, root: Path, real_house: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "runtime.tar.gz"
        export_app(ExportRequest(None, runtime_only=True, extras=("cpu",), wheels=real_house), path,
                   Silent())  # fmt: skip
        before = device(root / "run", "--prompt", "import", "--max-tokens", "4")
        device(root / "manage", "install", path)
        assert device(root / "run", "--prompt", "import", "--max-tokens", "4") == before
        assert not list((root / "current/runtime/venv").rglob("starlette"))
        device(root / "manage", "rollback")
        assert list((root / "current/runtime/venv").rglob("starlette"))


def bare() -> dict[str, str]:
    """The environment of a device: no index, nothing of the tests' own Python."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "PIP_NO_INDEX": "1", "HOME": "/nonexistent"}


def device(program: Path, *arguments: str | Path) -> str:
    command: list[str | Path] = [program, *arguments]
    if program.suffix == ".pyz":
        base = getattr(sys, "_base_executable", sys.executable)
        command = [base, "-I", *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=bare(), cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tarfile_of(path: Path) -> tarfile.TarFile:
    import zstandard

    return tarfile.open(fileobj=zstandard.open(path, "rb"), mode="r|")
