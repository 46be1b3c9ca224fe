"""What a session writes down: routes, a timeline, statistics."""
