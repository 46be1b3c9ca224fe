"""The installer of exported apps: what is there afterwards, updates, machines that do not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketmoe.export.installer.environment import private_folder
from pocketmoe.export.installer.main import main
from pocketmoe.export.installer.scripts import unit_text
from pocketmoe.tests.support.app_folder import UNIT, Build, members, refused, says, snapshot
from pocketmoe.tests.support.slow import slow
from pocketmoe.tests.support.waiting import PATIENCE


class TestInstalledApp:
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
        assert f'ExecStart=/bin/sh "{root}/run" serve $OPTIONS' in unit
        assert "@" not in unit

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
    @pytest.mark.parametrize(
        "name", ["app", "my app", "it's", 'a"b', "a\\b", "50%n", "$HOME", "日本"]
    )
    def test_systemd_takes_the_unit(self, name: str, tmp_path: Path) -> None:
        root, unit = tmp_path / name, tmp_path / "app.service"
        root.mkdir()
        unit.write_text(unit_text(UNIT.read_text(), root, "app"))
        command = ["systemd-analyze", "verify", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "app.service:" not in done.stderr
        unit.write_text(unit.read_text().replace("/bin/sh ", ""))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "app.service" in done.stderr  # it would tell, as that program is not there

    def test_the_same_again_changes_nothing(
        self, root: Path, first: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = snapshot(root)
        assert main(["install", str(first), "--to", str(root)], root) == 0
        assert "is installed already" in capsys.readouterr().out
        assert snapshot(root) == before

    @pytest.mark.parametrize(
        "option", [slow(["--python", sys.executable]), ["--system-site-packages"]]
    )
    def test_the_same_wheels_installed_otherwise(
        self, option: list[str], build: Build, first: Path, root: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        command = ["install", str(first), "--to", str(root), *option]
        assert main(command, root) == 0
        assert "version 2 runs from now on" in capsys.readouterr().out
        settings = (root / "current/runtime/venv/pyvenv.cfg").read_text()
        assert ("site-packages = true" in settings) == (option[0] != "--python")
        for again in (command, command[:4]):  # what was chosen holds for what follows
            assert main(again, root) == 0
            assert "version 2 is installed already" in capsys.readouterr().out
        runtime = build(tmp_path / "runtime.tar", "1.5", None, name=None)
        assert main(["install", str(runtime), "--to", str(root)], root) == 0
        settings = (root / "current/runtime/venv/pyvenv.cfg").read_text()
        assert ("site-packages = true" in settings) == (option[0] != "--python")
        assert json.loads((root / "current/version.json").read_text())["python"] == (
            sys.executable if option[0] == "--python" else None
        )
        assert main([*command[:4], "--no-system-site-packages"], root) == 0
        settings = (root / "current/runtime/venv/pyvenv.cfg").read_text()
        assert "site-packages = false" in settings

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
            capture_output=True, text=True, check=False, timeout=PATIENCE,
            env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert says(root) == "2.0 run two"

    @pytest.mark.slow
    def test_by_the_zstd_of_the_system(self, second: Path, root: Path) -> None:
        if shutil.which("zstd") is None:
            pytest.skip("there is no zstd here")
        code = (
            "import sys; sys.modules.update(dict.fromkeys(('zstandard', 'compression.zstd', "
            "'backports.zstd'))); from pocketmoe.export.installer.main import main; "
            "from pathlib import Path; sys.exit(main(sys.argv[1:], Path('.')))"
        )
        command = [sys.executable, "-c", code, "install", second, "--to", root]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
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
        subprocess.run([root / "manage", "install", second], check=True, timeout=PATIENCE)
        assert says(root) == "2.0 run two"
        subprocess.run([root / "manage", "rollback"], check=True, timeout=PATIENCE)
        assert says(root) == "1.0 run one"

    @pytest.mark.slow
    def test_the_manager_installs_elsewhere_when_told(
        self, root: Path, second: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        subprocess.run(
            [root / "manage", "install", second, "--to", other], check=True, timeout=PATIENCE
        )
        assert says(other) == "2.0 run two"
        assert says(root) == "1.0 run one"

    @pytest.mark.parametrize("arguments", [[], ["install"], ["-v"], ["status", "--to", ""]])
    def test_what_the_manager_refuses(self, arguments: list[str], root: Path) -> None:
        command = [root / "manage", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 2
        assert done.stderr.startswith("usage: manage ")
        assert str(root) not in done.stderr

    def test_prune_leaves_what_runs(
        self, root: Path, second: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bundle = os.path.realpath(root / "current/bundle")
        python = Path(os.path.realpath(root / "current/runtime")) / "venv/bin/python"
        assert main(["install", str(second), "--to", str(root)], root) == 0
        process = subprocess.Popen([python, "-c", "input()", bundle], stdin=subprocess.PIPE)
        try:
            assert main(["prune", "--to", str(root)], root) == 0
            told = capsys.readouterr()
            assert f"version 1 is kept: process {process.pid} runs it" in told.err
            assert "removed 0 of 2" in told.out
            assert main(["rollback", "--to", str(root)], root) == 0
            assert says(root) == "1.0 run one"
        finally:
            process.communicate()
        assert main(["prune", "--to", str(root)], root) == 0
        assert "removed 1 of 2" in capsys.readouterr().out

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
        assert (
            f'ExecStart=/bin/sh "{tmp_path}/robot 100%%/run"'
            in (root / "robot.service").read_text()
        )

    def test_a_bundle_that_the_runtime_does_not_read(
        self, build: Build, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bundle = build(tmp_path / "bundle.tar", None, "unreadable")
        refused(["install", bundle], capsys, "this bundle is too new", to=root)
        assert says(root) == "1.0 run one"

    @pytest.mark.slow
    def test_a_runtime_that_lacks_a_package(
        self, build: Build, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runtime = build(tmp_path / "runtime.tar", "3.0", None, helper=False)
        refused(["install", runtime], capsys, "requires nowhere", to=root)

    def test_another_app(
        self, build: Build, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = build(tmp_path / "other.tar", None, "other", name="other")
        refused(["install", other], capsys, "holds the app app, not other", "--name app", to=root)


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

    @pytest.mark.parametrize(
        ("python", "words"), [("/nowhere/python3", "is no Python"), ("/bin/sh", "is no Python")]
    )
    def test_a_python_that_is_none(
        self, python: str, words: str, root: Path, second: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(["install", second, "--python", python], capsys, f"{python} {words}", to=root)

    def test_a_folder_that_holds_no_app(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(["install", tmp_path], capsys, "holds no exported app; name an archive", to=root)

    def test_a_python_that_others_cannot_run(self, tmp_path: Path) -> None:
        python = tmp_path / "closed/bin/python3"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        found = private_folder(str(python))
        python.unlink()
        python.touch()
        python.parents[1].chmod(0o700)
        inner = private_folder(str(python))
        assert inner == python.parents[1]
        assert found != inner

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

    @pytest.mark.slow
    def test_settings_of_pip_do_not_count(
        self, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".config/pip").mkdir(parents=True)
        (tmp_path / ".config/pip/pip.conf").write_text(f"[install]\ntarget={tmp_path}/astray\n")
        from pocketmoe.export.installer import environment

        monkeypatch.setitem(environment._ENV, "HOME", str(tmp_path))
        monkeypatch.delitem(environment._ENV, "XDG_CONFIG_HOME", raising=False)
        assert main(["install", str(first), "--to", str(tmp_path / "app")], first.parent) == 0
        assert not (tmp_path / "astray").exists()
