"""The installer of exported apps: what tampering, kills and full disks leave of an app, which is
all of it. The runtime is a small package made up for it; tests/test_export.py has the real one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pocketmoe.export.archive import write_archive
from pocketmoe.export.contents import Content, of_bytes, of_file, sizes_of
from pocketmoe.export.device import manifest as places
from pocketmoe.export.device.install import Choices, install
from pocketmoe.export.device.main import main
from pocketmoe.export.device.manifest import App, Runtime, write_manifest
from pocketmoe.export.device.source import open_source
from pocketmoe.export.device.store import Store
from pocketmoe.export.installer import make_installer
from pocketmoe.export.platforms import find_platform
from pocketmoe.progress import Silent
from pocketmoe.tests.wheelhouse import invent, repack

PROGRAM = """
import sys
from pathlib import Path
from importlib.metadata import version
command = sys.argv[1]
if command == "--version":
    print(version("pocketmoe"))
else:
    text = (Path(sys.argv[2]) / "text").read_text()
    if text == "unreadable":
        sys.exit("error: this bundle is too new")
    print(version("pocketmoe"), command, text, *sys.argv[3:])
"""
UNIT = Path(__file__).parents[1] / "export" / "app.service"
Parts = dict[str, Content]
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Makes an archive: `runtime` is the version of the runtime in it, `text` the bundle's."""
    pip = repack("pip", tmp_path_factory.mktemp("pip"))

    def make(
        out: Path,
        runtime: str | None,
        text: str | None,
        *,
        name: str | None = "app",
        change: Callable[[Parts], None] = lambda parts: None,
        **facts: object,
    ) -> Path:
        parts: Parts = {places.INSTALLER: of_bytes(make_installer())}
        about = None
        if runtime is not None:
            folder = tmp_path_factory.mktemp("wheels")
            needs = ["helper"] if facts.pop("helper", True) else ["nowhere"]
            files = {"pocketmoe/__init__.py": "", "pocketmoe/__main__.py": PROGRAM}
            own = invent(folder, "pocketmoe", runtime, files=files, requires=needs)
            for wheel in (own, invent(folder, "helper", files={"helper.py": ""}), pip):
                parts[f"{places.WHEELS}{wheel.name}"] = of_file(wheel)
            parts[f"{places.LICENCES}helper-1.0/LICENSE"] = of_bytes(b"do as you like")
            parts[places.UNIT] = of_file(UNIT)
            here = find_platform(None, None)
            known = {
                "version": runtime, "machine": here.machine, "python": here.python_text,
                "glibc": "2.17", "extras": (), "installed_bytes": 10_000, "kernels": False,
            }  # fmt: skip
            about = Runtime(**{**known, **facts})  # type: ignore[arg-type]
        if text is not None:
            parts[f"{places.BUNDLE}text"] = of_bytes(text.encode())
            parts[f"{places.BUNDLE}experts/pages.bin"] = of_bytes(
                random.Random(0).randbytes(1 << 20)
            )
            parts[f"{places.MODEL_LICENCES}LICENSE"] = of_bytes(b"the model's")
        app = App(name, about, None if text is None else "a model", sizes_of(parts))
        data = write_manifest(app)
        first = {
            places.MANIFEST: of_bytes(data),
            places.SUMS: of_bytes(places.sums_text(app, data)),
        }
        change(parts)
        write_archive(out, "app", {**first, **parts}, Silent(), force=True)
        return out

    return make


@pytest.fixture(scope="module")
def first(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("archives") / "first.tar.zst", "1.0", "one")


@pytest.fixture(scope="module")
def second(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("archives") / "second.tar.zst", "2.0", "two")


@pytest.fixture(scope="module")
def installed_once(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("installed") / "app"
    assert main(["install", str(first), "--to", str(root)], first.parent) == 0
    return root


@pytest.fixture
def root(installed_once: Path) -> Iterator[Path]:
    """An installed app, as it was after its first installation. Environments cannot be moved, so
    every test has the same folder."""
    before = snapshot(installed_once)
    yield installed_once
    for part in ("versions", "runtimes", "bundles"):
        for path in (installed_once / part).iterdir():
            if not any(name.startswith(f"{part}/{path.name}/") for name in before):
                shutil.rmtree(path)
    for path in installed_once.glob(".new-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    new = installed_once / ".link"
    os.symlink("versions/1", new)
    os.replace(new, installed_once / "current")
    assert snapshot(installed_once) == before


def snapshot(root: Path) -> dict[str, str]:
    """Every file and link below `root`, but for what running Python caches, and the lock."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and "__pycache__" not in name and name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def says(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [root / "run", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def refused(
    arguments: list[str | Path], capsys: pytest.CaptureFixture[str], *words: str, to: Path
) -> None:
    """The command fails in one line, and the app is what it was."""
    before = snapshot(to)
    capsys.readouterr()
    assert main([*map(str, arguments), "--to", str(to)], to) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert snapshot(to) == before


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    import zstandard

    with zstandard.open(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return [(item, file.read()) for item in tar if (file := tar.extractfile(item))]


def rewrite(out: Path, content: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(out, "w:gz") as tar:
        for item, data in content:
            if item.isreg():
                item.size = len(data)
            tar.addfile(item, io.BytesIO(data) if item.isreg() else None)
    return out


class TestInstalled:
    def test_what_is_there(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert says(root, "--prompt", "a b") == "1.0 run one --prompt a b"
        assert says(root, "serve", "--port", "8000") == "1.0 serve one --port 8000"
        assert says(root) == "1.0 run one"
        assert main(["status", "--to", str(root)], root) == 0
        out = capsys.readouterr().out
        assert "* 1 " in out
        assert "(a model)" in out
        runtime, bundle = (Path(os.path.realpath(root / "current" / name)) for name in
                           ("runtime", "bundle"))  # fmt: skip
        assert (runtime / "licences/helper-1.0/LICENSE").read_text() == "do as you like"
        assert not (runtime / "licences/model").exists()
        assert (bundle.parent / "licences/LICENSE").read_text() == "the model's"
        assert not list(root.rglob("*.whl"))

    def test_the_unit(self, root: Path) -> None:
        unit = (root / "app.service").read_text()
        assert f'ExecStart="{root}/run" serve $OPTIONS' in unit
        assert "@" not in unit
        if shutil.which("systemd-analyze"):
            command = ["systemd-analyze", "verify", os.path.realpath(root / "app.service")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert str(root) not in done.stderr

    def test_the_same_again_changes_nothing(
        self, root: Path, first: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = snapshot(root)
        assert main(["install", str(first), "--to", str(root)], root) == 0
        assert "is installed already" in capsys.readouterr().out
        assert snapshot(root) == before

    def test_from_a_folder_with_a_python_that_has_no_zstd(
        self, second: Path, root: Path, tmp_path: Path
    ) -> None:
        """As `tar -xf` leaves it; the installer that came along does it."""
        for item, data in members(second):
            path = tmp_path / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-I", tmp_path / "app/install.pyz", "install", "--to", root],
            capture_output=True, text=True, check=False, timeout=120,
            env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert says(root) == "2.0 run two"

    def test_by_the_zstd_of_the_system(self, second: Path, root: Path) -> None:
        if shutil.which("zstd") is None:
            pytest.skip("there is no zstd here")
        code = (
            "import sys; sys.modules.update(dict.fromkeys(('zstandard', 'compression.zstd', "
            "'backports.zstd'))); from pocketmoe.export.device.main import main; "
            "from pathlib import Path; sys.exit(main(sys.argv[1:], Path('.')))"
        )
        command = [sys.executable, "-c", code, "install", second, "--to", root]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert says(root) == "2.0 run two"


class TestUpdates:
    def test_a_runtime_then_a_bundle_then_back(
        self, build: Build, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "app"
        runtime = build(tmp_path / "runtime.tar.gz", "1.5", None, name=None)
        bundle = build(tmp_path / "bundle.tar", None, "three")
        at = ["--to", str(root)]
        assert main(["install", str(first), *at], root) == 0
        assert main(["install", str(runtime), *at], root) == 0
        assert says(root) == "1.5 run one"
        assert main(["install", str(bundle), *at], root) == 0
        assert says(root) == "1.5 run three"
        assert main(["rollback", *at], root) == 0
        assert says(root) == "1.5 run one"
        assert main(["rollback", "3", *at], root) == 0
        assert says(root) == "1.5 run three"
        assert main(["prune", "--keep", "1", *at], root) == 0
        capsys.readouterr()
        assert main(["status", *at], root) == 0
        assert [line[:4] for line in capsys.readouterr().out.splitlines()[1:]] == ["  2 ", "* 3 "]
        refused(["rollback", "1"], capsys, "no such version", "installed: 2, 3", to=root)

    def test_the_manager_of_the_app_installs(self, root: Path, second: Path) -> None:
        subprocess.run([root / "manage", "install", second], check=True, timeout=120)
        assert says(root) == "2.0 run two"
        subprocess.run([root / "manage", "rollback"], check=True, timeout=60)
        assert says(root) == "1.0 run one"

    def test_a_runtime_first(
        self, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runtime = build(tmp_path / "runtime.tar.gz", "1.5", None, name=None)
        bundle = build(tmp_path / "bundle.tar", None, "three", name="robot")
        root = tmp_path / "robot 100%"
        root.mkdir()
        (root / "service.env").write_text("OPTIONS=--port 8080\n")
        refused(["install", bundle], capsys, "has no runtime", to=root)
        at = ["--to", str(root)]
        assert main(["install", str(runtime), "--name", "robot", *at], root) == 0
        assert "no bundle yet" in capsys.readouterr().out
        done = subprocess.run([root / "run"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (
            2,
            "error: the app has no bundle yet; install one\n",
        )
        assert main(["install", str(bundle), *at], root) == 0
        assert says(root) == "1.5 run three"
        assert f'ExecStart="{tmp_path}/robot 100%%/run"' in (root / "robot.service").read_text()

    def test_a_bundle_that_the_runtime_does_not_read(
        self, build: Build, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bundle = build(tmp_path / "bundle.tar", None, "unreadable")
        refused(["install", bundle], capsys, "this bundle is too new", to=root)
        assert says(root) == "1.0 run one"

    def test_a_runtime_that_lacks_a_package(
        self, build: Build, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runtime = build(tmp_path / "runtime.tar", "3.0", None, helper=False)
        refused(["install", runtime], capsys, "requires nowhere", to=root)

    def test_another_app(
        self, build: Build, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = build(tmp_path / "other.tar", None, "other", name="other")
        refused(["install", other], capsys, "holds the app app, not other", to=root)


class TestTampered:
    @pytest.mark.parametrize("seed", range(12))
    def test_a_byte_is_flipped_or_the_end_is_missing(
        self, seed: int, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """Anywhere in the compressed archive."""
        chance, data = random.Random(seed), bytearray(second.read_bytes())
        if seed % 3:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            del data[chance.randrange(len(data) - 1000) :]
        path = tmp_path / "bad.tar.zst"
        path.write_bytes(data)
        refused(["install", path], capsys, to=root)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_byte_is_flipped_in_a_file(
        self, seed: int, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """The archive itself is sound: some file of it is not."""
        chance, content = random.Random(seed), members(second)
        index = seed if seed < len(content) else chance.randrange(len(content))
        item, data = content[index]
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        content[index] = (item, bytes(changed))
        refused(["install", rewrite(tmp_path / "bad.tar.gz", content)], capsys, to=root)

    def test_a_file_is_shorter_longer_missing_twice_or_new(
        self, second: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = members(second)
        at = next(i for i, (item, _) in enumerate(content) if item.name.endswith("/text"))
        item, data = content[at]
        new = tarfile.TarInfo("app/bundle/more")
        for bad, words in (
            ([(item, data[:-1])], "text is damaged"),
            ([(item, data + b"x")], "text is damaged"),
            ([], "lacks bundle/text"),
            ([(item, data), (item, data)], "twice"),
            ([(item, data), (new, b"x")], "'bundle/more', which its manifest does not"),
        ):
            path = rewrite(tmp_path / "bad.tar.gz", [*content[:at], *bad, *content[at + 1 :]])
            refused(["install", path], capsys, words, to=root)

    @pytest.mark.parametrize(
        "name",
        [
            "../evil", "app/../evil", "app/bundle/../../../evil", "/tmp/evil", "evil",
            "app/./bundle/text", "app//bundle/text", "app/wheels/../../evil", "app/", "app",
        ],
    )  # fmt: skip
    def test_a_name_that_leads_out(
        self, name: str, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        content = [*members(second), (tarfile.TarInfo(name), b"evil")]
        refused(["install", rewrite(tmp_path / "bad.tar.gz", content)], capsys, to=root)
        assert not [path for path in tmp_path.rglob("*evil*") if path.name != "bad.tar.gz"]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                                      tarfile.CHRTYPE])  # fmt: skip
    def test_what_is_no_plain_file(
        self, kind: bytes, second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """A link to a folder outside, and then a file in it."""
        link = tarfile.TarInfo("app/bundle/link")
        link.type, link.linkname = kind, str(tmp_path)
        inside = tarfile.TarInfo("app/bundle/link/evil")
        content = members(second)
        bad = [content[0], (link, b""), (inside, b"evil"), *content[1:]]
        words = "which no exported app does"
        refused(["install", rewrite(tmp_path / "bad.tar.gz", bad)], capsys, words, to=root)
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2}, {"name": "../x"}, {"name": 3}, {"files": []}, {"files": {"../x": {}}},
            {"files": {"bundle/a/../../x": {"size": 1, "sha256": "0" * 64}}},
            {"files": {"current": {"size": 1, "sha256": "0" * 64}}},
            {"files": {"bundle/\x1b[2J": {"size": 1, "sha256": "0" * 64}}},
            {"files": {"bundle/a": {"size": -1, "sha256": "0" * 64}}},
            {"files": {"bundle/a": {"size": 1, "sha256": "x"}}},
            {"runtime": None, "model": None}, {"runtime": {"python": "3.11"}},
            {"runtime": {"python": "x"}}, {"model": 3}, {"model": "\x1b[2J"},
        ],
    )  # fmt: skip
    def test_a_manifest_that_cannot_be_trusted(
        self, change: Mapping[str, object], second: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        (item, data), *rest = members(second)
        content = [(item, json.dumps({**json.loads(data), **change}).encode()), *rest]
        refused(["install", rewrite(tmp_path / "bad.tar.gz", content)], capsys, to=root)

    def test_a_folder_with_a_link_a_new_file_or_none(
        self, second: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for item, data in members(second):
            path = tmp_path / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        app = tmp_path / "app"
        (app / "bundle/more").write_text("x")
        refused(["install", app], capsys, "'bundle/more', which its manifest", to=root)
        (app / "bundle/more").unlink()
        os.replace(app / "bundle/text", tmp_path / "text")
        refused(["install", app], capsys, "lacks bundle/text", to=root)
        os.symlink(tmp_path / "text", app / "bundle/text")
        refused(["install", app], capsys, "no plain file", to=root)

    def test_no_archive(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
        (tmp_path / "empty.tar").write_bytes(b"")
        for name in ("x.tar", "empty.tar", "missing.tar"):
            refused(["install", tmp_path / name], capsys, name, to=root)
        other = tarfile.TarInfo("a/b")
        refused(["install", rewrite(tmp_path / "y.tar.gz", [(other, b"")])], capsys,
                "does not begin with a manifest", to=root)  # fmt: skip

    def test_content_that_is_not_expected(
        self, root: Path, second: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(["install", second, "--expect", "0" * 64], capsys, "not what --expect", to=root)
        identity = hashlib.sha256(members(second)[0][1]).hexdigest()
        assert main(["install", str(second), "--to", str(root), "--expect", identity], root) == 0


class TestMachine:
    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({"machine": "riscv64"}, "the app is for linux-riscv64"),
            ({"python": "3.7"}, "needs Python 3.7"),
            ({"glibc": "2.99"}, "needs glibc 2.99"),
            ({"installed_bytes": 1 << 58}, "MB free"),
        ],
    )
    def test_another_than_it_is_for(
        self, facts: dict[str, object], words: str, build: Build, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        path = build(tmp_path / "x.tar", "4.0", None, **facts)
        refused(["install", path], capsys, words, to=root)

    def test_the_disk_is_full(
        self, root: Path, second: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        usage = shutil.disk_usage(root)._replace(free=1 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        refused(["install", second], capsys, "1 MB free", "free some space", to=root)

    def test_a_folder_of_somebody_else_is_left_alone(
        self, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is not swept, though its folders have the names of ours."""
        for number, name in enumerate(("bundles/mine/pages.bin", "versions/1.0/notes", "zoo")):
            path = tmp_path / f"own{number}" / name
            path.parent.mkdir(parents=True)
            path.write_text("precious")
            own = tmp_path / f"own{number}"
            refused(["install", first], capsys, "no app's; choose another --to", to=own)
            assert path.read_text() == "precious"
            assert len(list(own.iterdir())) == 1

    def test_settings_of_pip_do_not_count(
        self, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".config/pip").mkdir(parents=True)
        (tmp_path / ".config/pip/pip.conf").write_text(f"[install]\ntarget={tmp_path}/astray\n")
        from pocketmoe.export.device import environment

        monkeypatch.setitem(environment._ENV, "HOME", str(tmp_path))
        monkeypatch.delitem(environment._ENV, "XDG_CONFIG_HOME", raising=False)
        assert main(["install", str(first), "--to", str(tmp_path / "app")], first.parent) == 0
        assert not (tmp_path / "astray").exists()


class TestInterrupted:
    def test_a_power_cut_left_a_version_without_its_text(
        self, root: Path, second: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (root / "versions/2").mkdir()
        (root / "versions/2/version.json").touch()
        assert main(["status", "--to", str(root)], root) == 0
        with contextlib.ExitStack() as ends:
            version, changed = install(open_source(second, ends), Store(root), Choices())
        assert (version.number, changed) == (2, True)

    def test_two_at_once(self, root: Path, second: Path) -> None:
        """The second waits for the first, and finds its work done."""
        command = [sys.executable, "-m", "pocketmoe.export.device", "install", second, "--to", root]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        told = sorted(process.communicate(timeout=120)[0] for process in both)
        assert [process.returncode for process in both] == [0, 0]
        assert "is installed already" in told[0]
        assert "version 2 runs from now on" in told[1]

    def test_a_lock_that_is_held(self, root: Path, second: Path) -> None:
        from pocketmoe.export.device.errors import InstallError

        refused = pytest.raises(InstallError, match="another installation")
        with Store(root).locked(), refused, Store(root).locked(0.2):
            pass
        with contextlib.ExitStack() as ends:
            version, changed = install(open_source(second, ends), Store(root), Choices())
        assert (version.number, changed) == (2, True)

    @pytest.mark.slow
    def test_killed_at_any_moment(self, root: Path, second: Path) -> None:
        """After each kill the old version runs, or the new one; in the end the new one."""
        command = [sys.executable, "-m", "pocketmoe.export.device", "install", second, "--to", root]
        command = [str(word) for word in command]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        whole = time.monotonic() - began
        chance, ends = random.Random(7), set()
        for number in range(12):
            back = [*command[:3], "rollback", "1", "--to", str(root)]
            subprocess.run(back, check=True, capture_output=True, timeout=60)
            prune = [*command[:3], "prune", "--to", str(root)]
            subprocess.run(prune, check=True, capture_output=True, timeout=60)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(whole * (number + chance.random()) / 11)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            said = says(root)
            assert said in ("1.0 run one", "2.0 run two")
            ends.add(said)
        assert "1.0 run one" in ends
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        assert says(root) == "2.0 run two"
        assert not list(root.glob("**/.new-*"))
        assert len(list((root / "runtimes").iterdir())) == 2

    def test_ctrl_c(self, root: Path, second: Path) -> None:
        before = snapshot(root)
        command = [sys.executable, "-m", "pocketmoe.export.device", "install", second, "--to", root]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "checking and copying\n"
        assert process.stderr.readline() == "installing the runtime\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().endswith("error: interrupted; nothing was changed\n")
        assert process.wait(30) == 130
        assert snapshot(root) == before
