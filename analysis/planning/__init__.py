"""Plans of a budget before anything runs: pages that fit, hits, speed."""
