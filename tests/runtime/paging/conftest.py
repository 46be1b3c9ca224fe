"""Two layers of pages, and a pager over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketmoe.bundle.manifest import Manifest
from pocketmoe.runtime.paging.pager import Pager
from pocketmoe.tests.support.expert_pages import write_pages


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("pages")
    return root, write_pages(root)


@pytest.fixture
def pager(bundle: tuple[Path, Manifest]) -> Iterator[Pager]:
    pager = Pager(*bundle, slots=3)
    yield pager
    pager.close()
