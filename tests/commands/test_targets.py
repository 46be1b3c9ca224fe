"""`targets`; every failure is one line on stderr and exit code 2."""

import json

from pocketmoe.tests.support.command import call, refused


class TestTargets:
    def test_all(self) -> None:
        assert "cpu" in call("targets").stdout
        assert json.loads(call("targets", "--json").stdout)[0]["name"] == "cpu"

    def test_one(self) -> None:
        assert "toolchain" in call("targets", "cpu").stdout
        assert json.loads(call("targets", "cpu", "--json").stdout)["toolchain"] == "onnxruntime"

    def test_unknown(self) -> None:
        refused(call("targets", "cpus"), "did you mean cpu?")
