"""One measured run of llama.cpp; compare_llama_cpp.py starts it in a process of its own.

    python bench/peers/llama_cpp_run.py '{"model": "x.gguf", "threads": 2, "context": 1024, …}'

Prints one line of JSON. Needs numpy and llama-cpp-python alone, so that it can run in another
environment than pocketmoe. The request is a `SideRequest` of side_runs.py, or a `TextRequest` of
llama_cpp_files.py, which has "windows".
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

# Both sides draw the same token ids from the same seed; `draw` of side_runs.py is its twin.
BATCH = 512  # tokens of one call, llama.cpp's own default for a micro-batch
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR


def draw(seed: int, vocab_size: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


@llama_cpp.llama_log_callback
def show_errors(level: int, text: bytes, _: Any) -> None:
    """llama.cpp tells a lot; its errors alone go to stderr."""
    if level == ERROR_LEVEL:
        sys.stderr.write(text.decode(errors="replace"))


class LlamaModel:
    """A model and its context; the file stays mapped unless its weights are repacked."""

    def __init__(
        self, path: str, *, threads: int, context: int, repack: bool, exact_cache: bool = False
    ):
        """exact_cache: keys and values in float32, not in float16 as by default."""
        llama_cpp.llama_log_set(show_errors, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            sys.exit(f"error: llama.cpp cannot load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        if exact_cache:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            sys.exit("error: llama.cpp cannot make a context")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.nbytes = int(llama_cpp.llama_model_size(self._model))  # of all tensors
        self.parameters = int(llama_cpp.llama_model_n_params(self._model))
        self._position = 0

    def tokenize(self, text: bytes) -> np.ndarray:
        ids = np.zeros(len(text) + 1, np.int32)
        start = ids.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token))
        count = llama_cpp.llama_tokenize(
            self._vocab, text, len(text), start, len(ids), False, False
        )
        if count < 0:
            sys.exit(f"error: llama_tokenize returned {count}")
        return ids[:count]

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._position = 0

    def forward(self, ids: list[int], *, every: bool = False) -> np.ndarray:
        """Logits float32 `[1, V]` of the last token, or `[T, V]` of every one."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, token in enumerate(ids):
                batch.token[index], batch.pos[index] = token, self._position + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = every or index == len(ids) - 1
            code = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if code != 0:
            sys.exit(f"error: llama_decode returned {code}")
        self._position += len(ids)
        rows = len(ids) if every else 1
        start = llama_cpp.llama_get_logits(self._context)
        address = ctypes.cast(start, ctypes.c_void_p).value or 0
        numbers = (ctypes.c_float * (rows * self.vocab_size)).from_address(address)
        return np.frombuffer(numbers, np.float32).reshape(rows, self.vocab_size).copy()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Times in seconds; keys that the request did not ask for are missing."""
    began = time.perf_counter()
    model = LlamaModel(
        request["model"],
        threads=request["threads"],
        context=request["context"],
        repack=request["repack"],
    )
    result: dict[str, Any] = {"open_seconds": time.perf_counter() - began}
    if request["logits"]:
        ids = draw(request["seed"], model.vocab_size, request["prompt"])
        np.save(request["logits"], model.forward(ids, every=True))
        return result
    for _ in range(2 if request["warm"] else 1):  # the last one counts
        result |= run(model, request)
    return result


def run_windows(request: dict[str, Any]) -> dict[str, Any]:
    """Writes all logits of each window, float32 `[windows, length, V]`, each from an empty context;
    and the ids of a text, if one is asked for."""
    stored = np.load(request["windows"])
    ids, lengths = stored["ids"], stored["lengths"]
    model = LlamaModel(
        request["model"], threads=request["threads"], context=ids.shape[1], repack=False,
        exact_cache=True,
    )  # fmt: skip
    if request["text"]:
        np.save(request["tokens"], model.tokenize(Path(request["text"]).read_bytes()))
    if request["logits"]:
        shape = (*ids.shape, model.vocab_size)
        logits = np.lib.format.open_memmap(request["logits"], "w+", np.float32, shape)
        for window, length in enumerate(lengths):
            model.reset()
            for first in range(0, length, BATCH):
                part = ids[window, first : min(first + BATCH, length)]
                found = model.forward(part.tolist(), every=True)
                logits[window, first : first + len(part)] = found
        logits.flush()
    return {"bytes": model.nbytes, "parameters": model.parameters}


def run(model: LlamaModel, request: dict[str, Any]) -> dict[str, Any]:
    """The long prompt, then the short one and the tokens that follow it."""
    result: dict[str, Any] = {}
    seed = request["seed"]
    if request["long_prompt"]:
        model.reset()
        ids = draw(seed + 1, model.vocab_size, request["long_prompt"])
        start = time.perf_counter()
        for first in range(0, len(ids), BATCH):
            model.forward(ids[first : first + BATCH])
        result["long_prompt_seconds"] = time.perf_counter() - start
    if request["new"]:
        model.reset()
        ids = draw(seed, model.vocab_size, request["prompt"] + request["new"])
        start = time.perf_counter()
        model.forward(ids[: request["prompt"]])
        result["prompt_seconds"] = time.perf_counter() - start
        result |= {"steps": 0, "decode_seconds": 0.0}
        start = time.perf_counter()
        for token in ids[request["prompt"] :]:
            model.forward([token])
            result["steps"] += 1
            result["decode_seconds"] = time.perf_counter() - start
            if result["decode_seconds"] > request["most_seconds"]:
                break
    return result


def main() -> None:
    request = json.loads(sys.argv[1])
    if not Path(request["model"]).is_file():
        sys.exit(f"error: {request['model']} does not exist")
    print(json.dumps((run_windows if "windows" in request else measure)(request)))


if __name__ == "__main__":
    main()
