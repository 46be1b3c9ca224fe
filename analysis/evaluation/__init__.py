"""Quality of a bundle beside its checkpoint: perplexity, divergence, errors by layer."""
