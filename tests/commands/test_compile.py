"""`compile`; every failure is one line on stderr and exit code 2."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketmoe.tests.support.command import COMMAND, call, refused, spawn
from pocketmoe.tests.support.waiting import PATIENCE


def copied(bundle: Path, to: Path) -> Path:
    shutil.copytree(bundle, to)
    return to


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shard(path: Path) -> None:
    """An index of two shards, of which the second is missing."""
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="numpy") as file:
        names = list(file.keys())
    (path / "model.safetensors").rename(path / "model-1.safetensors")
    weight_map = dict.fromkeys(names, "model-1.safetensors")
    weight_map[names[-1]] = "model-2.safetensors"
    index = json.dumps({"weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "cpus"], ["did you mean cpu?"]),
        (["--target", "rtx-2080-ti"], ["no int4", "--precision experts=int8"]),
        (["--target", "rtx-2080-ti", "--precision", "int4"], ["it has int8, fp16"]),
        (["--precision", "int5"], ["int5", "int4"]),
        (["--precision", "expert=int4"], ["expert"]),
        (["--block", "48"], ["--block", "64"]),
        (["--active-experts", "0"], ["--active-experts"]),
        (["--active-experts", "3"], ["--active-experts 3", "1 to 2"]),
    ],
)
def test_bad_options(
    options: list[str], words: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused(call("compile", tiny_checkpoint, "-o", out, "--target", "cpu", *options), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: shutil.rmtree(path), ["does not exist"]),
        (lambda path: (path / "config.json").unlink(), ["config.json is missing"]),
        (lambda path: (path / "config.json").write_text("{"), ["config.json"]),
        (lambda path: (path / "config.json").write_text("[]"), ["config.json"]),
        (lambda path: edit_config(path, model_type="mixtrl"), ["did you mean mixtral?"]),
        (lambda path: edit_config(path, router_temperature=2), ["router_temperature = 2"]),
        (lambda path: edit_config(path, hidden_size=128), ["has shape", "config.json says"]),
        (lambda path: edit_config(path, num_experts="8"), ["num_experts = '8'"]),
        (lambda path: (path / "model.safetensors").unlink(), ["model.safetensors"]),
        (lambda path: os.truncate(path / "model.safetensors", 90_000), ["truncated"]),
        (lambda path: os.truncate(path / "model.safetensors", 4), ["truncated"]),
        (lambda path: shard(path), ["model-2.safetensors is missing"]),
        (
            lambda path: (path / "tokenizer.json").write_text("{}"),
            ["checkpoint/tokenizer.json is not a tokenizer", "copy it there again, or remove it"],
        ),
    ],
)
def test_bad_checkpoints(
    damage: Callable[[Path], None],
    words: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    damage(checkpoint)
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out"
    refused(call("compile", checkpoint, "--target", "cpu", "-o", out), *words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_is_there_is_kept(force: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    note = tmp_path / "out" / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    result = call("compile", tiny_checkpoint, "--target", "cpu", "-o", note.parent, *force)
    refused(result, "exists")
    assert note.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [note.parent]


@pytest.mark.slow
def test_a_bundle_is_replaced_by_force(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = copied(tiny_bundle, tmp_path / "out")
    result = call(
        "compile", tiny_checkpoint, "--target", "cpu", "-o", out, "--force",
        "--precision", "fp16", "--precision", "experts=int8", "--active-experts", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "lossy: active experts" in result.stdout
    assert "experts, " in result.stderr
    facts = json.loads(call("inspect", out, "--json").stdout)
    assert facts["active_experts"] == [1]
    assert facts["precision"]["experts"] == "int8"
    assert facts["precision"]["backbone"] == "fp16"
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketmoe.compiler import compile as compiling

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "pages.bin")

    monkeypatch.setattr(compiling, "write_embedding", full)
    monkeypatch.setattr(compiling, "write_experts", full)
    monkeypatch.setattr(compiling, "write_backbone", full)
    result = call("compile", tiny_checkpoint, "--target", "cpu", "-o", tmp_path / "out")
    refused(result, "pages.bin: no space left on device; free some space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 10_000, 60_000])
def test_files_that_may_not_grow(limit: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails each write in the way in which a full disk does."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = spawn(
        "compile", tiny_checkpoint, "--target", "cpu", "-o", tmp_path / "out",
        preexec_fn=bound,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "compile", tiny_checkpoint, "--target", "cpu", "-o", tmp_path / "out"],
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("1. ")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_without_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pocketmoe.cli import main; "
        "main(sys.argv[1:])"
    )
    arguments = ["compile", tiny_checkpoint, "--target", "cpu", "-o", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, encoding="utf-8"
    )
    refused(done, "needs torch, which is not installed: pip install 'pocketmoe[compile]'")
