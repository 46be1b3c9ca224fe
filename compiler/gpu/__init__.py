"""Graphs for GPUs, in standard ONNX."""
