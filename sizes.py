"""Sizes in bytes, as people write and read them."""

import re
from fractions import Fraction

from .errors import InputError

_UNITS = {
    "b": 1,
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
}
_SIZE = re.compile(r"\s*([0-9]{0,20}\.?[0-9]{1,20})\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)
_LARGEST = 2**63 - 1  # what a file offset holds


def parse_size(text: str) -> int:
    """Return the bytes that `text` stands for: `512MiB`, `1.5 GB`, `4096`; rounded down.

    Raises InputError if it is no positive size.
    """
    shown = repr(text if len(text) <= 40 else text[:37] + "...")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(
            f"size {shown} is not a positive number with a unit; write it like 512MiB or 1.5GB"
        )
    number, unit = match.groups()
    if not unit and "." in number:
        raise InputError(f"size {shown} is a fraction without a unit; write it like {number}GiB")
    scale = _UNITS.get(unit.lower() or "b")
    if scale is None:
        raise InputError(
            f"size {shown} has an unknown unit {unit!r}; "
            "use KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of 1000)"
        )
    nbytes = int(Fraction(number) * scale)
    if not 1 <= nbytes <= _LARGEST:
        bound = "less than one byte" if nbytes < 1 else "more than a file can hold"
        raise InputError(f"size {shown} is {bound}; write it like 512MiB or 1.5GB")
    return nbytes


def format_size(nbytes: int) -> str:
    """Return `nbytes` (0 or more) in binary units with one decimal: `512 B`, `1.5 GiB`."""
    if nbytes < 1024:
        return f"{nbytes} B"
    power = 1
    # Compared as rounded, so that 1023.99 KiB reads 1.0 MiB and not 1024.0 KiB.
    while power < 4 and round(nbytes / 1024**power, 1) >= 1024:
        power += 1
    return f"{nbytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"
