"""Facts, plans and measurements of a model, a bundle and a machine."""
