"""Checkpoints as they are published: files, tensors, encodings."""
