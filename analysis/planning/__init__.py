"""What a budget gives before anything runs: pages that fit, hits, speed."""
