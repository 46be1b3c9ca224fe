"""Workers: the same results in the same order whoever works, and whoever dies on the way."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.cli import main
from pocketmoe.compiler.calibrated import workers as workers_module
from pocketmoe.compiler.calibrated.workers import (
    Processes,
    RayCluster,
    ThisProcess,
    open_workers,
    suggest_count,
)
from pocketmoe.errors import InputError
from pocketmoe.model.spec import Activation
from pocketmoe.runtime.memory.host_memory import HostMemory
from pocketmoe.tests.calibration.test_calibrate import TEXT
from pocketmoe.tests.support.worker_tasks import add, die, die_once

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order(count: int) -> None:
    with closing(open_workers(str(count))) as workers:
        assert isinstance(workers, ThisProcess if count == 1 else Processes)
        for size in (2, 5):  # what is shared is of the latest layer
            shared = workers.share({"a": np.ones(size, np.float32)})
            found = list(workers.map(add, ((number, shared) for number in range(9))))
            assert found == [number + size for number in range(9)]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = str(tmp_path / "died")
    with closing(Processes(2)) as workers:
        found = list(workers.map(die_once, ((number, marker) for number in range(8))))
    assert found == list(range(8))
    assert "a worker died" in caplog.text


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error() -> None:
    with closing(Processes(2)) as workers, pytest.raises(InputError, match="fewer --workers"):
        list(workers.map(die, range(4)))


@pytest.mark.parametrize("choice", ["0", "-1", "many", "1.5", ""])
def test_what_is_no_number_of_workers(choice: str) -> None:
    with pytest.raises(InputError, match="--workers is a number of processes"):
        open_workers(choice)


def test_as_many_processes_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    small = PageFormat("int4", 32, 256, 256, False, Activation("silu"))
    large = replace(small, hidden_size=4096, intermediate_size=14336)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def with_free(free: int) -> None:
        memory = HostMemory(free, free, "a test")
        monkeypatch.setattr(workers_module, "read_host_memory", lambda: memory)

    with_free(64 << 30)
    assert suggest_count([small] * 32) == 1  # it is done before processes have started
    assert suggest_count([small] * 1024) == 8
    assert 1 < suggest_count([large] * 256) < 8
    with_free(6 << 30)
    assert suggest_count([large] * 256) == 1
    assert suggest_count([]) == 1


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray() -> None:
    with pytest.raises(InputError, match=r"pocketmoe\[ray\]"):
        open_workers("ray://localhost:10001")


@pytest.mark.slow
@needs_ray
def test_a_cluster_of_ray_gives_the_same(tmp_path: Path) -> None:
    with closing(RayCluster("ray")) as workers:
        shared = workers.share({"a": np.ones(4, np.float32)})
        found = list(workers.map(add, ((number, shared) for number in range(5))))
        assert found == [number + 4 for number in range(5)]
        marker = str(tmp_path / "died")
        assert list(workers.map(die_once, [(n, marker) for n in range(5)])) == list(range(5))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["4", pytest.param("ray", marks=needs_ray)])
def test_the_bundle_does_not_depend_on_how_many_work(
    workers: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.py").write_text(TEXT)
    commands = [
        ["calibrate", "--data", tmp_path / "text.py", "--tokens", "1024", "--seq-len", "64"],
        ["compile", "--target", "cpu", "--block", "32", "--calibration", tmp_path / "cal"],
        ["compile", "--target", "cpu", "--block", "32", "--calibration", tmp_path / "cal",
         "--workers", workers],
    ]  # fmt: skip
    for (name, *options), out in zip(commands, ("cal", "one", "many"), strict=True):
        command = [name, tiny_checkpoint, *options, "-o", tmp_path / out]
        done = CliRunner().invoke(main, [str(part) for part in command])
        assert done.exit_code == 0, done.stderr
    assert read_manifest(tmp_path / "one").files == read_manifest(tmp_path / "many").files
