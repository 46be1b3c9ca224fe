"""Writing a graph node by node, under names with a prefix of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class GraphWriter:
    """Collects nodes and constants; the methods return the name of what they make."""

    def __init__(self, prefix: str = ""):
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node whose output is called `output`, with the prefix."""
        return self.add_as(operator, inputs, f"{self.prefix}{output}", **attributes)

    def add_as(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """The same without the prefix."""
        node = helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        name = f"{self.prefix}{name}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def shape(self, name: str, *sizes: int) -> str:
        """An int64 constant, as Reshape and Slice take it."""
        return self.constant(name, np.array(sizes, np.int64))
