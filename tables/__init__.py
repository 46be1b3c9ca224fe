"""Facts as rows of tables, for the command line and the report."""
