"""Sample graphs, alone and in a bundle."""

import shutil
from pathlib import Path

import pytest

from pocketmoe.bundle.gpu_graphs import GpuGraphs
from pocketmoe.tests.support.gpu.sample_graphs import (
    add_sample_graphs,
    write_sample_graphs,
)


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
