"""Traces of segments in a folder, so that the tests make each of them once, in whichever process
and run: one takes seconds, and hundreds of tests compile a model."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from pocketmoe.compiler.graphs.trace import SegmentModule
from pocketmoe.tests.support.paths import ROOT

_KEPT = 3  # states of the sources


def traces_folder(cache: Path) -> Path:
    """The folder in `cache` for the sources as they are: whatever could change a trace."""
    digest = hashlib.sha256(sys.version.encode())
    for package in ("torch", "onnx", "onnxscript"):
        digest.update(version(package).encode())
    for path in sorted([*ROOT.glob("model/**/*.py"), *ROOT.glob("compiler/**/*.py")]):
        digest.update(path.read_bytes())
    folder = cache / digest.hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    for old in sorted(cache.iterdir(), key=os.path.getmtime)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


@contextlib.contextmanager
def share_traces(folder: Path) -> Iterator[None]:
    """While it is open, what this process exports comes from `folder`, or goes there."""
    export = torch.onnx.export

    def export_once(module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        if not isinstance(module, SegmentModule):
            return export(module, *arguments, **options)
        # All that is exported follows from these, and nothing from what is left out.
        alike = {"eos_token_ids": (), "max_position_embeddings": 1}
        what = (replace(module.spec, **alike), module.plan)
        path = folder / hashlib.sha256(repr(what).encode()).hexdigest()
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it
            if not path.exists():
                made = export(module, *arguments, **options).model_proto
                path.with_suffix(".new").write_bytes(made.SerializeToString())
                os.replace(path.with_suffix(".new"), path)
        return SimpleNamespace(model_proto=onnx.load_from_string(path.read_bytes()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export_once)
        yield
