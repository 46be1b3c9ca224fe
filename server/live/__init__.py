"""The model as it runs, over HTTP."""
