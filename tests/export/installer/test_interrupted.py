"""Kills, Ctrl-C and two at once leave an app whole."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.export.installer.install import Choices, install
from pocketmoe.export.installer.main import main
from pocketmoe.export.installer.source import open_source
from pocketmoe.export.installer.store import Store
from pocketmoe.export.installer_zip import make_installer
from pocketmoe.tests.support.app_folder import says, snapshot
from pocketmoe.tests.support.waiting import PATIENCE

INSTALL = [sys.executable, "-m", "pocketmoe.export.installer", "install"]


class TestInterrupted:
    @pytest.mark.slow
    def test_a_power_cut_left_a_version_without_its_text(
        self, root: Path, second: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (root / "versions/2").mkdir()
        (root / "versions/2/version.json").touch()
        assert main(["status", "--to", str(root)], root) == 0
        with contextlib.ExitStack() as ends:
            version, changed = install(open_source(second, ends), Store(root), Choices())
        assert (version.number, changed) == (2, True)

    @pytest.mark.slow
    def test_two_at_once(self, root: Path, second: Path) -> None:
        """The second waits for the first, and finds its work done."""
        command = [*INSTALL, second, "--to", root]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        told = sorted(process.communicate(timeout=PATIENCE)[0] for process in both)
        assert [process.returncode for process in both] == [0, 0]
        assert "is installed already" in told[0]
        assert "version 2 runs from now on" in told[1]

    def test_a_lock_that_is_held(self, root: Path, second: Path) -> None:
        from pocketmoe.export.installer.errors import InstallError

        refused = pytest.raises(InstallError, match="another installation")
        with Store(root).locked(), refused, Store(root).locked(0.2):
            pass
        with contextlib.ExitStack() as ends:
            version, changed = install(open_source(second, ends), Store(root), Choices())
        assert (version.number, changed) == (2, True)

    @pytest.mark.slow
    def test_killed_at_any_moment(self, root: Path, second: Path) -> None:
        """After each kill the old version runs, or the new one; in the end the new one."""
        command = [*INSTALL, second, "--to", root]
        command = [str(word) for word in command]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        whole = time.monotonic() - began
        chance, ends = random.Random(7), set()
        for number in range(12):
            back = [*command[:3], "rollback", "1", "--to", str(root)]
            subprocess.run(back, check=True, capture_output=True, timeout=PATIENCE)
            prune = [*command[:3], "prune", "--to", str(root)]
            subprocess.run(prune, check=True, capture_output=True, timeout=PATIENCE)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(whole * (number + chance.random()) / 11)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            said = says(root)
            assert said in ("1.0 run one", "2.0 run two")
            ends.add(said)
        assert "1.0 run one" in ends
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        assert says(root) == "2.0 run two"
        assert not list(root.glob("**/.new-*"))
        assert len(list((root / "runtimes").iterdir())) == 2

    @pytest.mark.parametrize("moment", [0.0, 0.002, 0.01, 0.05])
    def test_ctrl_c(self, root: Path, second: Path, moment: float) -> None:
        before = snapshot(root)
        command = [*INSTALL, second, "--to", root]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "checking and copying\n"
        assert process.stderr.readline() == "installing the runtime\n"
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().endswith("error: interrupted; nothing was changed\n")
        assert process.wait(PATIENCE) == 130
        assert snapshot(root) == before

    def test_ctrl_c_while_a_command_is_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What has been started is ended, though nobody had hold of it yet."""
        from pocketmoe.export.installer import environment

        started = []

        class Popen(subprocess.Popen[str]):
            def __init__(self, *given: Any, **options: Any):
                super().__init__(*given, **options)
                started.append(self)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(subprocess, "Popen", Popen)
        store = Store(tmp_path)
        with store.locked(), pytest.raises(KeyboardInterrupt):
            environment._run([sys.executable, "-c", "import time; time.sleep(60)"], store.lock or 0)
        assert [process.returncode for process in started] == [-signal.SIGKILL]

    def test_ctrl_c_while_it_switches(
        self,
        root: Path,
        second: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """That is finished, and said."""
        switch = Store.switch

        def interrupted(*given: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            switch(*given)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Store, "switch", interrupted)
        assert main(["install", str(second), "--to", str(root)], root) == 0
        assert "version 2 runs from now on" in capsys.readouterr().out
        assert says(root) == "2.0 run two"

    def test_ctrl_c_while_the_installer_is_loaded(self, tmp_path: Path) -> None:
        text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
        (tmp_path / "argparse.py").write_text(text)
        (tmp_path / "install.pyz").write_bytes(make_installer())
        done = subprocess.run(
            [sys.executable, tmp_path / "install.pyz", "status"], capture_output=True, text=True,
            timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(tmp_path)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
