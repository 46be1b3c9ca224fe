"""Finding a device by its name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from ..errors import TargetError
from .devices import TARGETS, Target
from .measured import LOCAL, read_targets


def all_targets(measured: Path | None = None) -> tuple[Target, ...]:
    """The table of devices, and what the file `measured` holds.

    Raises:
        TargetError: the file cannot be read, or is not such a file.
    """
    return TARGETS if measured is None else (*TARGETS, *read_targets(measured))


def find_target(name: str, measured: Path | None = None) -> Target:
    """The target called `name`, of the table of devices or of the file `measured`.

    Raises:
        TargetError: there is none, and the nearest is named; or the file is damaged.
    """
    for target in TARGETS:  # first, so that a damaged file stands in the way of its own alone
        if target.name == name:
            return target
    by_name = {target.name: target for target in all_targets(measured)}
    if name in by_name:
        return by_name[name]
    if name == LOCAL:
        raise TargetError(
            f"target {LOCAL} is not measured yet: 'pocketmoe targets --measure' makes it"
        )
    nearest = get_close_matches(name.lower(), by_name)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise TargetError(f"no target is called {name!r}; {hint}'pocketmoe targets' lists them")
