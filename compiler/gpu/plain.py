"""Segments for what takes no int8 with a scale for each block: the CUDA provider of ONNX Runtime
dequantizes blocks of int4 alone, and TensorRT 10.3 may do the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def split_blocks(graph: onnx.GraphProto) -> bool:
    """Has each int8 matrix lie as rows of one block, dequantized along the first axis and put
    together again, in place; returns whether there is one. The weights' bytes stay as they are."""
    tensors = {item.name: item for item in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    found = False
    for node in nodes:
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != TensorProto.INT8:
            graph.node.append(node)
            continue
        found = True
        scales, (rows, columns) = tensors[node.input[1]], weight.dims
        blocks = rows * scales.dims[1]
        weight.dims[:] = [blocks, columns // scales.dims[1]]
        scales.dims[:] = [blocks]
        whole, shape = node.output[0], f"{node.output[0]}.shape"
        node.output[0] = node.name = f"{whole}.blocks"
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", 0))
        graph.initializer.append(numpy_helper.from_array(np.array([rows, columns]), shape))
        join = helper.make_node("Reshape", [node.output[0], shape], [whole], whole)
        graph.node.extend([node, join])
    return found
