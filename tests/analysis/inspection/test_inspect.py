"""`inspect` of a checkpoint says what it is made of, and reads no weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pocketmoe.analysis.inspection.inspect import inspect_path
from pocketmoe.model.checkpoint.checkpoint import SINGLE_FILE
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.parameters import parameter_shapes
from pocketmoe.sizes import format_size
from pocketmoe.tables.model import fact_rows
from pocketmoe.tests.support.quantized import GPTQ


def test_what_inspect_says_of_a_latent_and_of_dense_pages(tmp_path: Path) -> None:
    def rows(family: str) -> dict[str, str]:
        folder = tmp_path / family
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(dict(FAMILIES[family].tiny)))
        return dict(fact_rows(inspect_path(folder)))

    spec = FAMILIES["deepseek_v3"].read_config(FAMILIES["deepseek_v3"].tiny)
    assert spec.mla is not None
    latent = 4 * spec.num_hidden_layers * spec.mla.latent_dim
    heads = spec.num_attention_heads * (spec.head_dim + spec.mla.v_head_dim)
    expanded = 4 * spec.num_hidden_layers * heads
    said = rows("deepseek_v3")
    assert said["KV cache"] == (
        f"{format_size(latent)} per token, a latent; {format_size(expanded)} with all heads"
    )
    assert said["encoding"] == "none"
    said = rows("llama")
    assert ": 0 MoE, " in said["layers"]
    assert " dense, paged; " in said["layers"]
    assert said["experts"] == "none"


def test_inspecting_reads_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that repeats the embedding, and biases that GPTQ leaves unused, included."""
    config = {**FAMILIES["mixtral"].tiny, "tie_word_embeddings": True}
    family, spec = FAMILIES["mixtral"], FAMILIES["mixtral"].read_config(config)
    tensors = {}
    for parameter, shape in parameter_shapes(spec).items():
        name = family.locate(parameter).name
        if not parameter.endswith("_proj.weight"):
            tensors[name] = torch.zeros(shape)
            continue
        (rows, columns), module = shape, name.removesuffix(".weight")
        tensors |= {
            f"{module}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
            f"{module}.qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
            f"{module}.scales": torch.zeros(columns // 32, rows),
            f"{module}.bias": torch.zeros(rows),
        }
    tensors["lm_head.weight"] = torch.zeros(spec.vocab_size, spec.hidden_size)
    file = tmp_path / SINGLE_FILE
    save_file(tensors, file)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": GPTQ}))
    opened, path_open = [], Path.open

    def counting(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path.name)
        return path_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", counting)
    inspect_path(tmp_path)
    assert opened.count(SINGLE_FILE) == 1
