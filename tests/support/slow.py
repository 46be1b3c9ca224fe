"""Cases that `make test` leaves out."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case of a parametrized test that is in `make test-all` alone."""
    return pytest.param(*values, marks=pytest.mark.slow)
