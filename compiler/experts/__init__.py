"""Experts as pages and as graphs."""
