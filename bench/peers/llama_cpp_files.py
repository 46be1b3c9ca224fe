"""llama.cpp's best of a checkpoint: GGUF files, an importance matrix, logits."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pocketmoe.analysis.evaluation.windows import Windows
from pocketmoe.bench.peers.compared_files import check_llama_python
from pocketmoe.bench.peers.side_runs import BENCH, parse_result
from pocketmoe.errors import InputError

TOOLS = ("llama-imatrix", "llama-quantize")
BUILD = (
    "unpack the source of llama-cpp-python, and in its vendor/llama.cpp run: cmake -B build "
    "-DLLAMA_CURL=OFF && cmake --build build --target llama-imatrix llama-quantize"
)


@dataclass(frozen=True)
class TextRequest:
    """What llama_cpp_run.py is asked for, as JSON. windows: a .npz with the ids and lengths
    of `Windows`; logits: a .npy for theirs; text: a file whose ids are to be in the .npy `tokens`.
    What is None is left out."""

    model: str
    threads: int
    windows: str
    logits: str | None = None
    text: str | None = None
    tokens: str | None = None


@dataclass(frozen=True)
class GgufLogits:
    """logits: float32 `[windows, length, V]`, mapped. bits: per weight, of all tensors."""

    logits: np.ndarray
    bits: float


@dataclass(frozen=True)
class LlamaCpp:
    """python: one with gguf and llama_cpp. tools: the folder of llama.cpp's own programs."""

    python: str
    tools: Path
    threads: int

    def check(self) -> None:
        """Raises InputError, with the remedy, where something is missing."""
        check_llama_python(self.python)
        missing = [name for name in TOOLS if not (self.tools / name).is_file()]
        if missing:
            raise InputError(f"{self.tools} has no {missing[0]}, see --llama-tools; {BUILD}")

    def write_f32(self, checkpoint: Path, out: Path) -> None:
        if not out.is_file():
            self._run(
                [self.python, str(BENCH / "gguf_file.py"), "--f32", str(checkpoint), str(out)]
            )

    def write_importance(self, model: Path, text: Path, window: int, out: Path) -> None:
        """Of all matrices, the head's too, over the whole text in windows of that many tokens."""
        self._run([
            str(self.tools / "llama-imatrix"), "-m", str(model), "-f", str(text), "-o", str(out),
            "-c", str(window), "-b", str(window), "-t", str(self.threads), "--no-ppl",
            "--process-output",
        ])  # fmt: skip

    def quantize(
        self, model: Path, kind: str, out: Path, importance: Path | None = None,
        overrides: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """overrides: a part of tensors' names and their type, as "attn=q8_0"."""
        options = ["--imatrix", str(importance)] if importance is not None else []
        options += [word for item in overrides for word in ("--tensor-type", item)]
        self._run([
            str(self.tools / "llama-quantize"), *options, str(model), str(out), kind,
            str(self.threads),
        ])  # fmt: skip

    def tokenize(self, model: Path, text: Path, folder: Path) -> np.ndarray:
        """int32 `[N]`, without marks of beginning and end."""
        out = folder / "tokens.npy"
        empty = Windows(np.zeros((1, 2), np.int64), np.full(1, 2))
        self._ask(model, empty, folder, text=str(text), tokens=str(out))
        ids: np.ndarray = np.load(out)
        return ids

    def logits(self, model: Path, windows: Windows, folder: Path) -> GgufLogits:
        out = folder / "logits.npy"
        found = self._ask(model, windows, folder, logits=str(out))
        bits = 8 * found["bytes"] / found["parameters"]
        return GgufLogits(np.load(out, mmap_mode="r"), bits)

    def _ask(self, model: Path, windows: Windows, folder: Path, **outputs: str) -> dict[str, int]:
        stored = folder / "windows.npz"
        np.savez(stored, ids=windows.ids, lengths=windows.lengths)
        request = TextRequest(str(model), self.threads, str(stored), **outputs)
        script = str(BENCH / "llama_cpp_run.py")
        return parse_result(self._run([self.python, script, json.dumps(asdict(request))]))

    def _run(self, command: Sequence[str]) -> str:
        """What it printed; raises InputError with the last line of its errors."""
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        if done.returncode:
            name = next(Path(part).name for part in command if "llama" in part or "gguf" in part)
            raise InputError(f"{name} failed: {(lines or ['without a word'])[-1]}")
        return done.stdout
