"""Progress of a build, and its end by Ctrl-C."""

import os
import signal
import threading
from pathlib import Path

import pytest

from pocketmoe.bundle.gpu_graphs import GpuGraphs
from pocketmoe.engines.build import build_engines
from pocketmoe.engines.libraries import RTX
from pocketmoe.engines.monitor import BuildProgress, stoppable
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx
from pocketmoe.tests.support.watched import Watched


class TestStopping:
    @needs_rtx
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
