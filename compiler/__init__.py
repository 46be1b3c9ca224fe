"""Checkpoint and target in, bundle out."""
