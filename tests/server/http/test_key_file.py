"""Keys of clients, and the files that hold them."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pocketmoe.cli import main
from pocketmoe.server.http.key_file import Keys


def test_keys() -> None:
    keys = Keys(["a" * 16, "b" * 16])
    assert keys.accept("a" * 16)
    assert keys.accept("b" * 16)
    assert not keys.accept("")
    assert not keys.accept("a" * 15 + "\udcff")


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        ("k" * 32, 0o644, "chmod 600"),
        ("", 0o600, "holds no key"),
        ("# nothing\n\n", 0o600, "holds no key"),
        ("short\n", 0o600, "16 characters"),
        ("k" * 20 + " " + "k" * 20, 0o600, "no spaces"),
        ("schlüssel-der-lang-ist", 0o600, "ASCII"),
    ],
)
def test_key_files(tmp_path: Path, tiny_bundle: Path, text: str, mode: int, word: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    done = CliRunner().invoke(main, ["serve", str(tiny_bundle), "--api-key-file", str(path)])
    assert done.exit_code == 2
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1
