"""Experts quantized with what a calibration recorded."""
