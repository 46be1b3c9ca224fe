"""What a model is: its specification, its checkpoint, and a PyTorch reference module."""
