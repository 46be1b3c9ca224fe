"""Memory: what the machine has, and how a budget is spent."""
