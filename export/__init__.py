"""One file of a bundle and all that runs it, for a device without a network."""
