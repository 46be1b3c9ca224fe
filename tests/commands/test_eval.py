"""`eval`; every failure is one line on stderr and exit code 2."""

import json
from pathlib import Path

import pytest

from pocketmoe.tests.support.command import call, refused


class TestEval:
    def test_figures(self, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
        data = tmp_path / "text.py"
        data.write_text("def main():\n    return 0\n" * 20, encoding="utf-8")
        arguments = ["eval", tiny_bundle, "--data", data]
        assert "perplexity" in call(*arguments).stdout
        report = json.loads(call(*arguments, "--json").stdout)
        assert report["perplexity"] > 1
        assert report["kl_mean"] is None
        report = json.loads(call(*arguments, "--against", tiny_checkpoint, "--json").stdout)
        assert report["kl_mean"] >= 0
        assert 0 <= report["top1_agreement"] <= 1

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, ["text.py", "no such file"]),
            (b"", ["text.py is empty"]),
            (b"x", ["1 token"]),
            (b"ab\xc3", ["text.py is not UTF-8", "0xc3 at position 2"]),
        ],
    )
    def test_bad_data(
        self, content: bytes | None, words: list[str], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        data = tmp_path / "text.py"
        if content is not None:
            data.write_bytes(content)
        refused(call("eval", tiny_bundle, "--data", data), *words)
