"""The parts of a checkpoint or a bundle."""
