"""The builder's code against the type stubs of both bindings.

NVIDIA ships none. For stock TensorRT the package tensorrt-stubs has some; those of TensorRT for RTX
are generated here from its module.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketmoe.engines.libraries import rtx_libraries
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx
from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.waiting import PATIENCE

CHECKED = ("engines.builder", "engines.monitor", "engines.messages")
CONFIG = """[mypy]
python_version = 3.10
check_untyped_defs = true
follow_imports = silent
ignore_missing_imports = true
[mypy-tensorrt.*]
follow_imports = silent
ignore_errors = true
"""
# Generated stubs are not always valid Python: a parameter called `in`, one without a default after
# one that has it.
MENDED = ((r"\bin: list", "in_: list"), (r"(channel_axis: [\w.]+)\)", r"\1 = ...)"))

pytest.importorskip("mypy")


def check(stubs: str, folder: Path, sources: Path = ROOT) -> str:
    """What mypy says of the builder, where `tensorrt` has these stubs."""
    for pattern, right in MENDED:
        stubs = re.sub(pattern, right, stubs)
    (folder / "stubs/tensorrt").mkdir(parents=True)
    (folder / "stubs/tensorrt/__init__.pyi").write_text(stubs, encoding="utf-8")
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "pocketmoe").symlink_to(sources)
    modules = [argument for name in CHECKED for argument in ("-m", f"pocketmoe.{name}")]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", *modules],
        cwd=folder, env={**os.environ, "MYPYPATH": str(folder / "stubs")},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    return run.stdout + run.stderr


def stock_stubs() -> str:
    found = importlib.util.find_spec("tensorrt_stubs")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-stubs is not installed")
    path = Path(found.origin).parents[1] / "tensorrt_bindings/tensorrt.pyi"
    return path.read_text(encoding="utf-8")


def rtx_stubs(folder: Path) -> str:
    """The module is loaded by another process, which finds its libraries loaded already."""
    subprocess.run(
        [sys.executable, "-c", "from mypy.stubgen import main; main()", "--inspect-mode",
         "-m", "tensorrt_rtx_bindings.tensorrt_rtx", "-o", str(folder)],
        env={**os.environ, "LD_PRELOAD": ":".join(map(str, rtx_libraries()))},
        capture_output=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    return (folder / "tensorrt_rtx_bindings/tensorrt_rtx.pyi").read_text(encoding="utf-8")


@pytest.mark.slow
def test_against_stock_tensorrt(tmp_path: Path) -> None:
    assert "Success" in check(stock_stubs(), tmp_path)


@needs_rtx
def test_against_tensorrt_for_rtx(tmp_path: Path) -> None:
    assert "Success" in check(rtx_stubs(tmp_path / "generated"), tmp_path)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("config.progress_monitor", "config.progres_monitor"),
        ("parser.parse_from_file(str(path))", "parser.parse_from_file(str(path), 1)"),
        ("error.node_operator()", "error.operator_name()"),
    ],
)
def test_a_planted_mistake_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    sources = tmp_path / "sources"
    names = [*(path.name for path in ROOT.glob("*.py")), "bundle", "engines", "model"]
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        sources.mkdir(exist_ok=True)
        copy(ROOT / name, sources / name)
    files = [sources / f"{name.replace('.', '/')}.py" for name in CHECKED]
    changed = [file for file in files if right in file.read_text(encoding="utf-8")]
    assert changed, f"nothing to plant the mistake in: {right}"
    for file in changed:
        file.write_text(file.read_text(encoding="utf-8").replace(right, wrong), encoding="utf-8")
    assert "error:" in check(rtx_stubs(tmp_path / "generated"), tmp_path, sources)
