"""What can go wrong on the device."""


class InstallError(Exception):
    """One line: what is wrong, where, what to do. Nothing was changed."""
