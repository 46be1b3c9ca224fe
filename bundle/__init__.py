"""The bundle's format: what the compiler writes and the runtime reads."""
