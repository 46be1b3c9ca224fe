"""Tool calls, in the forms that models write: a file for each, and their list in `forms.py`."""
