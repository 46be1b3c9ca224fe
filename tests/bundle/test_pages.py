"""Places of tensors in a page, in this version of the format and in the one before."""

from __future__ import annotations

import pytest

from pocketmoe.bundle.pages import PRECISIONS, PageFormat, page_format_from_json
from pocketmoe.errors import BundleError


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_lie_where_tensorrt_takes_them(precision: str) -> None:
    page = PageFormat(precision, 32, 96, 160, bias=True)
    assert all(place.offset % 256 == 0 for place in page.tensors())
    assert page_format_from_json(page.to_json()) == page


def test_pages_of_version_2_are_where_they_were() -> None:
    data = PageFormat("int4", 32, 64, 96, bias=True).to_json()
    del data["alignment"]
    old = page_format_from_json(data)
    # gate 96 · 64 / 2, scales 96 · 2 · 2, bias 96 · 4, each at a multiple of 64.
    assert [place.offset for place in old.tensors()][:4] == [0, 3072, 3456, 3840]
    with pytest.raises(BundleError, match="not a page format"):
        page_format_from_json({**data, "alignment": 100})
