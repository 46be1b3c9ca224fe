"""Keys of clients."""

from pocketmoe.server.http.key_file import Keys


def test_keys() -> None:
    keys = Keys(["a" * 16, "b" * 16])
    assert keys.accept("a" * 16)
    assert keys.accept("b" * 16)
    assert not keys.accept("")
    assert not keys.accept("a" * 15 + "\udcff")
