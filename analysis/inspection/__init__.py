"""What a checkpoint or a bundle is made of."""
