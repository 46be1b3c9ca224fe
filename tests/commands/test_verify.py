"""`verify`; every failure is one line on stderr and exit code 2."""

import json
import shutil
from pathlib import Path

from pocketmoe.tests.support.command import call, refused


def copied(bundle: Path, to: Path) -> Path:
    shutil.copytree(bundle, to)
    return to


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x10
    file.write_bytes(data)


class TestVerify:
    def test_a_good_bundle(self, tiny_bundle: Path) -> None:
        assert "every hash is right" in call("verify", tiny_bundle).stdout
        report = json.loads(call("verify", tiny_bundle, "--json").stdout)
        assert report["damaged"] == []
        assert report["differences"] is None

    def test_against_the_checkpoint(self, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
        arguments = ["verify", tiny_bundle, "--against", tiny_checkpoint]
        report = json.loads(call(*arguments, "--json").stdout)
        assert "logits" in [item["where"] for item in report["differences"]]
        table = call(*arguments).stdout
        assert "logits" in table
        assert "relative" in table

    def test_a_flipped_byte(self, tiny_bundle: Path, tmp_path: Path) -> None:
        bundle = copied(tiny_bundle, tmp_path / "bundle")
        flip_byte(bundle / "experts/layer_001/pages.bin")
        line = "experts/layer_001/pages.bin (layer 1, expert "
        result = call("verify", bundle)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert line in result.stderr.splitlines()[-1]
        result = call("verify", bundle, "--json")
        assert result.exit_code == 2
        assert line in json.loads(result.stdout)["damaged"][0]

    def test_a_missing_bundle(self, tmp_path: Path) -> None:
        refused(call("verify", tmp_path / "none"), "does not exist")
