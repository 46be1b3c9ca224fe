"""quantization_config: what published ones say is read, what changes the weights is refused."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.errors import ConfigError
from pocketmoe.model.checkpoint.encodings import find_encoding
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.quantized import AWQ, FP8, GPTQ, MXFP4, Config, compressed


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ([], ["quantization_config = []"]),
        ({}, ["quant_method = None", "fp8", "gptq"]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["quant_method = 'bitsandbytes'"]),
        ({"quant_method": ["fp8"]}, ["quant_method = ['fp8']"]),
        ({**FP8, "fmt": "e5m2"}, ["quantization_config.fmt = 'e5m2'", "e4m3"]),
        ({**FP8, "weight_block_size": [128]}, ["weight_block_size = [128]"]),
        ({**FP8, "weight_block_size": [0, 128]}, ["weight_block_size = [0, 128]"]),
        ({**FP8, "expert_dtype": "fp4"}, ["expert_dtype = 'fp4'"]),
        ({**FP8, "rotation": "hadamard"}, ["quantization_config.rotation = 'hadamard'"]),
        ({**MXFP4, "block_size": 16}, ["quantization_config.block_size = 16"]),
        ({**GPTQ, "bits": 3}, ["quantization_config.bits = 3", "4 or 8"]),
        ({**GPTQ, "group_size": 0}, ["group_size = 0"]),
        ({**GPTQ, "checkpoint_format": "marlin"}, ["checkpoint_format = 'marlin'"]),
        ({**GPTQ, "format": "bitblas"}, ["format = 'bitblas'"]),
        ({**GPTQ, "is_marlin_format": True}, ["is_marlin_format = True"]),
        ({**GPTQ, "dynamic": {"+:.*down": {"bits": 8}}}, ["dynamic = "]),
        *(({**scheme, "dynamic": value}, [f"dynamic = {value!r}", "an object whose keys"])
          for scheme in (GPTQ, AWQ)
          for value in (True, 0, 2.5, "-:", ["-:.*gate$"], {"-:a": {}, "b": {"bits": 8}})),
        ({**GPTQ, "adapter": {"path": "x"}}, ["adapter = "]),
        ({**GPTQ, "packing_format": "auto_round:gptqmodel"}, ["packing_format = "]),
        ({**GPTQ, "data_type": "mx_fp"}, ["data_type = 'mx_fp'"]),
        ({**AWQ, "checkpoint_format": "gemv_fast"}, ["checkpoint_format = 'gemv_fast'"]),
        ({**GPTQ, "pack_dtype": "int16"}, ["pack_dtype = 'int16'"]),
        ({**AWQ, "bits": 8}, ["quantization_config.bits = 8"]),
        ({**AWQ, "version": "gemv"}, ["version = 'gemv'"]),
        ({**AWQ, "zero_point": False}, ["zero_point = False"]),
        ({**AWQ, "clip": 0.5}, ["quantization_config.clip = 0.5"]),
        (compressed({}, "nvfp4-pack-quantized"), ["format = 'nvfp4-pack-quantized'"]),
        (compressed({}, "marlin-24"), ["format = 'marlin-24'"]),
        (compressed({"num_bits": 3}), ["group_0.weights.num_bits = 3"]),
        (compressed({"type": "float"}), ["weights.type = 'float'"]),
        (compressed({"strategy": "tensor_group"}), ["strategy = 'tensor_group'"]),
        (compressed({"group_size": None}), ["strategy = 'group'"]),
        (compressed({"strategy": []}), ["strategy = []"]),
        (compressed({"strategy": {"name": "group"}}), ["strategy = {"]),
        (compressed({"strategy": "block", "block_structure": [0, 32]}), ["strategy = 'block'"]),
        (compressed({"dynamic": True}), ["weights.dynamic = True"]),
        (compressed({"codebook": 3}), ["weights.codebook = 3"]),
        (compressed({}, sparsity_config={"format": "sparse-24-bitmask"}), ["sparsity_config = "]),
        (compressed({}, transform_config={"config_groups": {"R1": {}}}), ["transform_config = "]),
        (compressed({}, config_groups={}), ["config_groups = {}"]),
        (compressed({}, config_groups={"group_0": ["Linear"]}), ["config_groups.group_0 = "]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_refusals(section: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        find_encoding({"quantization_config": section})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


PUBLISHED: list[Config] = [
    # Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4
    {"batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True,
     "damp_percent": 0.01, "dataset": None, "desc_act": False, "exllama_config": {"version": 1},
     "group_size": 128, "max_input_length": None, "model_seqlen": None,
     "module_name_preceding_first_block": None,
     "modules_in_block_to_quantize": [["self_attn.q_proj"]], "pad_token_id": None,
     "quant_method": "gptq", "sym": True, "tokenizer": None, "true_sequential": True,
     "use_cuda_fp16": False, "use_exllama": True},
    {"bits": 4, "checkpoint_format": "gptq", "desc_act": True, "dynamic": None, "group_size": 128,
     "lm_head": False, "meta": {"quantizer": ["gptqmodel:1.4.4"]}, "pack_dtype": "int32",
     "quant_method": "gptq", "sym": True, "true_sequential": True},
    {"bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq",
     "version": "gemm", "zero_point": True},
    # What GPTQModel writes of each method.
    {"bits": 4, "checkpoint_format": "gptq_v2", "desc_act": False, "format": "gptq_v2",
     "group_size": 128, "gptaq_memory_device": "auto", "lm_head": False,
     "meta": {"quantizer": ["gptqmodel:4.2.0"]}, "mock_quantization": False,
     "pack_dtype": "int32", "quant_method": "gptq", "sym": False, "v2": True, "v2_alpha": 0.25,
     "vram_strategy": "exclusive"},
    {"bits": 4, "checkpoint_format": "gemm", "desc_act": False, "dynamic": {"-:.*mlp.gate$": {}},
     "format": "gemm", "group_size": 128, "lm_head": False, "pack_dtype": "int32",
     "meta": {"quantizer": ["gptqmodel:5.4.0"]}, "quant_method": "awq", "sym": True,
     "zero_point": True},
    # AutoRound, in the format of AutoGPTQ
    {"amp": True, "autoround_version": "0.5.1", "batch_size": 8, "bits": 4, "damp_percent": 0.01,
     "data_type": "int", "desc_act": False, "enable_minmax_tuning": True,
     "enable_quanted_input": True, "gradient_accumulate_steps": 1, "group_size": 128, "iters": 200,
     "low_gpu_mem_usage": False, "lr": 0.005, "minmax_lr": 0.005, "nsamples": 128,
     "packing_format": "auto_round:auto_gptq", "quant_method": "gptq",
     "scale_dtype": "torch.float16",
     "seqlen": 2048, "sym": True, "to_quant_block_names": None, "true_sequential": False},
    # DeepSeek-V3.1
    {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
     "weight_block_size": [128, 128]},
    {"config_groups": {"group_0": {
        "input_activations": None, "output_activations": None, "targets": ["Linear"],
        "weights": {"actorder": "weight", "block_structure": None, "dynamic": False,
                    "group_size": 128, "num_bits": 4, "observer": "minmax", "observer_kwargs": {},
                    "strategy": "group", "symmetric": True, "type": "int"}}},
     "format": "pack-quantized", "global_compression_ratio": 1.4, "ignore": ["lm_head"],
     "kv_cache_scheme": None, "quant_method": "compressed-tensors",
     "quantization_status": "compressed", "sparsity_config": {}, "transform_config": {},
     "version": "0.10.3.dev10"},
]  # fmt: skip


@pytest.mark.parametrize("section", PUBLISHED, ids=lambda section: section["quant_method"])
def test_configs_as_published(section: Config) -> None:
    found = find_encoding({"quantization_config": section})
    assert found is not None
    assert found.name == section["quant_method"]


def test_what_changes_no_weight_is_accepted() -> None:
    dynamic = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    section = compressed({"num_bits": 8, "type": "float", "strategy": "channel",
                          "group_size": None}, "float-quantized")  # fmt: skip
    section["config_groups"]["group_0"]["input_activations"] = dynamic
    section["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    assert find_encoding({"quantization_config": section}) is not None
    skipped = {**GPTQ, "dynamic": {"-:.*mlp.gate$": {}}, "meta": {"quantizer": ["gptqmodel:2.0"]}}
    assert find_encoding({"quantization_config": skipped}) is not None
    assert find_encoding({"quantization_config": None}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["group", "gemm", "gptq", "int", "-:x", "pack-quantized"]),
    lambda values: st.lists(values, max_size=3)
    | st.dictionaries(st.text(max_size=5) | st.just("-:x"), values, max_size=3),
    max_leaves=6,
)  # fmt: skip
FURTHER_KEYS = """
    activation_scheme checkpoint_format data_type dequantize dynamic expert_dtype fmt format
    is_marlin_format method pack_dtype packing_format sparsity_config transform_config version
    weight_block_size zero_point block_structure
""".split()


def places(section: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every key of an object and of those within it, and keys that it might have."""
    for key in [*section, *FURTHER_KEYS]:
        yield section, key
        if isinstance(section.get(key), dict):
            yield from places(section[key])


@pytest.mark.slow
@pytest.mark.parametrize(
    "section", [FP8, MXFP4, GPTQ, AWQ, compressed({})], ids=lambda section: section["quant_method"]
)
@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(section: Config, data: st.DataObject) -> None:
    changed = copy.deepcopy(section)
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from(list(places(changed))))
        where[key] = data.draw(JSON)
    try:
        found = find_encoding({"quantization_config": changed})
    except ConfigError:
        return
    assert found is not None
    # What is accepted can be asked for a matrix, of which there is nothing here.
    assert found.find("w.weight", (64, 96), {}) is None
