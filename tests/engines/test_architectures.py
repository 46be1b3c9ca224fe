"""Compute capabilities: how they are written, and what each is refused."""

from dataclasses import replace

import pytest

from pocketmoe.bundle.manifest import (
    Precision,
)
from pocketmoe.engines.architectures import (
    RTX_CAPABILITIES,
    check_capability,
    parse_capability,
    plan_engines,
    portable_capabilities,
)
from pocketmoe.engines.libraries import RTX
from pocketmoe.errors import EngineError, InputError, TargetError
from pocketmoe.targets import find_target
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx

INT4 = Precision("int4", "int8", "int8", 32)


class TestArchitectures:
    def test_names(self) -> None:
        assert [parse_capability(t) for t in ("sm89", "SM120", "8.7", "75", "sm_110")] == [
            "8.9", "12.0", "8.7", "7.5", "11.0"
        ]  # fmt: skip
        for text in ("ada", "sm", "8", "sm1234"):
            with pytest.raises(InputError, match="write it as sm89"):
                parse_capability(text)

    def test_what_is_refused(self) -> None:
        with pytest.raises(EngineError, match="no engines for sm87; it does for sm75, sm80"):
            check_capability("8.7", INT4)
        with pytest.raises(EngineError, match=r"sm75 has no int4.*it needs sm80 or newer"):
            check_capability("7.5", INT4)
        with pytest.raises(EngineError, match=r"sm86 has no fp8.*it needs sm89"):
            check_capability("8.6", replace(INT4, experts="fp8"))
        for capability in RTX_CAPABILITIES:
            check_capability(capability, replace(INT4, experts="int8"))

    def test_portable_says_what_it_leaves_out(self, caplog: pytest.LogCaptureFixture) -> None:
        assert portable_capabilities(INT4) == ("8.0", "8.6", "8.9", "12.0", "12.1")
        assert [record.message for record in caplog.records] == ["no engines for sm75 (no int4)"]
        assert portable_capabilities(replace(INT4, experts="fp8")) == ("8.9", "12.0", "12.1")

    @needs_rtx
    def test_what_compile_plans(self) -> None:
        cpu = find_target("cpu")
        assert plan_engines(cpu, INT4, portable=False) == ()
        with pytest.raises(TargetError, match="--portable has no effect for target cpu"):
            plan_engines(cpu, INT4, portable=True)
        card = replace(cpu, name="card", toolchain=RTX, compute_capability="8.9")
        assert plan_engines(card, INT4, portable=False) == ("8.9",)
        assert len(plan_engines(card, INT4, portable=True)) == 5
        with pytest.raises(EngineError, match="sm75 has no int4"):
            plan_engines(replace(card, compute_capability="7.5"), INT4, portable=False)
