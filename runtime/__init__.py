"""Runs bundles. Imports no torch, onnx or transformers."""
