"""Recordings of a session: routes, a timeline, statistics."""
