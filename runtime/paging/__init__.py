"""The pager: which expert's page is in memory, and how it gets there."""
