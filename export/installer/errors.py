"""The errors of the installer."""


class InstallError(Exception):
    """One line: what is wrong, where, what to do. Nothing was changed."""
