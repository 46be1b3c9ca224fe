"""Tool calls, in the forms that models write."""
