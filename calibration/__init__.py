"""Text in, a CalibrationRecord out: expert usage, routes and activation statistics.

Calibrated quantization plugs in where `compiler.quantize` rounds to nearest.
"""
