"""Small GPU graphs, written by hand: what the tests of engines build."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from pocketmoe.bundle.gpu_graphs import GpuGraphs, GraphLayer, TensorInfo
from pocketmoe.bundle.manifest import FileRecord, hash_file, read_manifest, write_manifest

HIDDEN, INNER, HEADS, WIDTH, EXPERTS, TOP_K, VOCABULARY, BLOCK = 64, 32, 2, 32, 4, 2, 96, 32
HALF, FLOAT, INT4, INT64 = (
    TensorProto.FLOAT16,
    TensorProto.FLOAT,
    TensorProto.INT4,
    TensorProto.INT64,
)
DTYPES = {"float32": FLOAT, "float16": HALF, "int4": INT4, "int64": INT64}
FILES = ("segment_000", "segment_001", "expert_000", "token_000", "combine_000")


def write_sample_graphs(root: Path) -> GpuGraphs:
    """A layer with attention and a router, its experts, and a head."""
    (root / "device").mkdir()
    save(root, "segment_000", *segment())
    save(root, "segment_001", *head())
    save(root, "expert_000", *expert())
    save(root, "token_000", *token())
    save(root, "combine_000", *combine())
    names = [f"device/{name}.onnx" for name in FILES]
    layer = GraphLayer(0, *names[2:])
    return GpuGraphs(tuple(names[:2]), (layer,), chunk=32, batch=64, context=256)


def save(
    root: Path,
    name: str,
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
) -> None:
    tensors = [numpy_helper.from_array(array, key) for key, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(
        model, str(root / f"device/{name}.onnx"), save_as_external_data=bool(weights),
        location=f"{name}.bin", size_threshold=64,
    )  # fmt: skip


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(
        kind, inputs.split(), outputs.split(), name=f"{kind}_{outputs.split()[0]}", **attributes
    )


def value(name: str, dtype: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def random(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 0.1).astype(np.float16)


def segment() -> tuple[
    list[NodeProto], list[ValueInfoProto], list[ValueInfoProto], dict[str, np.ndarray]
]:
    """Attention with its past, and a router; norms and rotations are left out."""
    nodes = [node("Cast", "hidden", "h", to=HALF)]
    nodes += [node("MatMul", f"h w_{name}", name) for name in ("q", "k", "v")]
    nodes += [node("Reshape", "q heads", "q_heads")]
    nodes += [node("Reshape", f"{name} heads", f"new_{new}.0") for name, new in
              (("k", "key"), ("v", "value"))]  # fmt: skip
    nodes += [node("Concat", f"past_{name}.0 new_{name}.0", name, axis=0)
              for name in ("key", "value")]  # fmt: skip
    nodes += [
        node("Transpose", "q_heads", "q_t", perm=[1, 0, 2]),
        node("Transpose", "key", "k_t", perm=[1, 2, 0]),
        node("Transpose", "value", "v_t", perm=[1, 0, 2]),
        node("MatMul", "q_t k_t", "scores_half"),
        node("Cast", "scores_half", "scores", to=FLOAT),
        node("Add", "scores mask.full", "masked"),
        node("Softmax", "masked", "shares", axis=-1),
        node("Cast", "shares", "shares_half", to=HALF),
        node("MatMul", "shares_half v_t", "mixed"),
        node("Transpose", "mixed", "mixed_t", perm=[1, 0, 2]),
        node("Reshape", "mixed_t flat", "mixed_flat"),
        node("Cast", "mixed_flat", "attended", to=FLOAT),
        node("Add", "hidden attended", "hidden_out"),
        node("Identity", "hidden_out", "expert_input"),
        node("MatMul", "hidden_out w_router", "logits"),
        node("Softmax", "logits", "probabilities", axis=-1),
        node("TopK", "probabilities k_experts", "expert_weights expert_ids", axis=-1),
    ]
    cache = [value(f"past_{name}.0", HALF, "past", HEADS, WIDTH) for name in ("key", "value")]
    inputs = [value("hidden", FLOAT, "tokens", HIDDEN), *cache,
              value("mask.full", FLOAT, "tokens", "keys")]  # fmt: skip
    outputs = [
        *(value(name, FLOAT, "tokens", HIDDEN) for name in ("hidden_out", "expert_input")),
        value("expert_weights", FLOAT, "tokens", TOP_K),
        value("expert_ids", INT64, "tokens", TOP_K),
        *(value(f"new_{name}.0", HALF, "tokens", HEADS, WIDTH) for name in ("key", "value")),
    ]  # fmt: skip
    weights = {f"w_{name}": random(HIDDEN, HIDDEN) for name in ("q", "k", "v")}
    weights["w_router"] = random(HIDDEN, EXPERTS).astype(np.float32)
    weights |= {
        "heads": np.array([-1, HEADS, WIDTH]), "flat": np.array([-1, HIDDEN]),
        "k_experts": np.array([TOP_K]),
    }  # fmt: skip
    return nodes, inputs, outputs, weights


def head() -> tuple[
    list[NodeProto], list[ValueInfoProto], list[ValueInfoProto], dict[str, np.ndarray]
]:
    nodes = [
        node("Add", "hidden moe_out", "hidden_out"),
        node("Gather", "hidden_out rows", "chosen", axis=0),
        node("Cast", "chosen", "chosen_half", to=HALF),
        node("MatMul", "chosen_half w_head", "logits_half"),
        node("Cast", "logits_half", "logits", to=FLOAT),
    ]
    inputs = [value("hidden", FLOAT, "tokens", HIDDEN), value("moe_out", FLOAT, "tokens", HIDDEN),
              value("rows", INT64, "rows")]  # fmt: skip
    return (
        nodes, inputs, [value("logits", FLOAT, "rows", VOCABULARY)],
        {"w_head": random(HIDDEN, VOCABULARY)},
    )  # fmt: skip


def page(suffix: str = "") -> list[ValueInfoProto]:
    return [value(item.name, DTYPES[item.dtype], *item.shape) for item in page_tensors(suffix)]


def page_tensors(suffix: str = "") -> list[TensorInfo]:
    sizes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    return [
        tensor
        for name, (rows, columns) in sizes.items()
        for tensor in (
            TensorInfo(f"{name}{suffix}", "int4", (rows, columns)),
            TensorInfo(f"{name}_scales{suffix}", "float16", (rows, columns // BLOCK)),
        )
    ]


def gated(source: str, suffix: str = "") -> list[NodeProto]:
    """Nodes from `source`, in float16, to `y` with the suffix."""
    nodes = [
        node("DequantizeLinear", f"{name}{suffix} {name}_scales{suffix}", f"{name}_w{suffix}",
             axis=1, block_size=BLOCK)
        for name in ("gate", "up", "down")
    ]  # fmt: skip
    nodes += [node("Gemm", f"{source} {name}_w{suffix}", f"{name}_y{suffix}", transB=1)
              for name in ("gate", "up")]  # fmt: skip
    return [
        *nodes,
        node("Sigmoid", f"gate_y{suffix}", f"sigmoid{suffix}"),
        node("Mul", f"gate_y{suffix} sigmoid{suffix}", f"silu{suffix}"),
        node("Mul", f"silu{suffix} up_y{suffix}", f"inner{suffix}"),
        node("Gemm", f"inner{suffix} down_w{suffix}", f"y_half{suffix}", transB=1),
        node("Cast", f"y_half{suffix}", f"y{suffix}", to=FLOAT),
    ]


def expert() -> tuple[
    list[NodeProto], list[ValueInfoProto], list[ValueInfoProto], dict[str, np.ndarray]
]:
    nodes = [
        node("Gather", "x rows", "chosen", axis=0),
        node("Cast", "chosen", "chosen_half", to=HALF),
        *gated("chosen_half"),
        node("Unsqueeze", "weights last", "column"),
        node("Mul", "y column", "terms"),
    ]
    inputs = [value("x", FLOAT, "batch", HIDDEN), value("rows", INT64, "tokens"),
              value("weights", FLOAT, "tokens"), *page()]  # fmt: skip
    last = {"last": np.array([1])}
    return nodes, inputs, [value("terms", FLOAT, "tokens", HIDDEN)], last


def token() -> tuple[
    list[NodeProto], list[ValueInfoProto], list[ValueInfoProto], dict[str, np.ndarray]
]:
    nodes = [node("Cast", "x", "x_half", to=HALF)]
    inputs = [value("x", FLOAT, 1, HIDDEN), value("weights", FLOAT, 1, TOP_K),
              value("base", FLOAT, 1, HIDDEN)]  # fmt: skip
    total = "base"
    for i in range(TOP_K):
        nodes += [
            *gated("x_half", f".{i}"),
            node("Gather", f"weights at.{i}", f"weight.{i}", axis=1),
            node("Mul", f"y.{i} weight.{i}", f"term.{i}"),
            node("Add", f"{total} term.{i}", "out" if i == TOP_K - 1 else f"sum.{i}"),
        ]
        inputs += page(f".{i}")
        total = f"sum.{i}"
    at = {f"at.{i}": np.array([i]) for i in range(TOP_K)}
    return nodes, inputs, [value("out", FLOAT, 1, HIDDEN)], at


def combine() -> tuple[
    list[NodeProto], list[ValueInfoProto], list[ValueInfoProto], dict[str, np.ndarray]
]:
    nodes = [
        node("Gather", "terms places", "of_tokens", axis=0),
        node("ReduceSum", "of_tokens middle", "sum", keepdims=0),
        node("Add", "base sum", "out"),
    ]
    inputs = [value("terms", FLOAT, "terms", HIDDEN), value("places", INT64, "batch", TOP_K),
              value("base", FLOAT, "batch", HIDDEN)]  # fmt: skip
    return nodes, inputs, [value("out", FLOAT, "batch", HIDDEN)], {"middle": np.array([1])}


def add_sample_graphs(bundle: Path) -> None:
    """Puts them into a bundle that has none."""
    manifest = read_manifest(bundle)
    graphs = write_sample_graphs(bundle)
    records = {
        path.relative_to(bundle).as_posix(): FileRecord(path.stat().st_size, hash_file(path))
        for path in (bundle / "device").iterdir()
    }
    write_manifest(bundle, replace(manifest, graphs=graphs, files={**manifest.files, **records}))
