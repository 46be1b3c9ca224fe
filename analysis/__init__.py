"""What can be found out about a model, a bundle and a machine: facts, plans, measurements."""
