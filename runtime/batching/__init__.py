"""Continuous batching: sessions of one model that decode together."""
