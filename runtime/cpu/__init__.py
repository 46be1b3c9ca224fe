"""The runner for CPUs: backbone, KV cache, experts, in native kernels or ONNX Runtime."""
