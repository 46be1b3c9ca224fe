"""How many examples hypothesis draws."""

from hypothesis import settings


def examples(count: int) -> int:
    """`count` in `make test-all`; in `make test` the share of them that its profile has: see
    tests/conftest.py."""
    return max(5, count * settings.default.max_examples // 100)
