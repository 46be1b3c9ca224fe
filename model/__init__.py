"""A model: its specification, its checkpoint, and a PyTorch reference module."""
