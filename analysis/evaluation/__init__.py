"""How near a bundle is to its checkpoint: perplexity, divergence, errors by layer."""
