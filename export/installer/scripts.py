"""The scripts of an installed version, and its systemd unit."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

RUN = """#!/bin/sh
# Runs a command of pocketmoe on the app's bundle: run --prompt TEXT (the default), chat, serve, ...
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
case "${1-}" in
    run|chat|serve|bench|eval|inspect|verify) command=$1; shift ;;
    *) command=run ;;
esac
if [ ! -e "$here/bundle" ]; then
    echo "error: the app has no bundle yet; install one" >&2
    exit 2
fi
python=$(readlink -f -- "$here/runtime")/venv/bin/python
exec "$python" -I -m pocketmoe "$command" "$(readlink -f -- "$here/bundle")" "$@"
"""

MANAGE = """#!/bin/sh
# Installs updates of the app, goes back to the version before: see --help.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
runtime=$(readlink -f -- "$here/runtime")
exec "$runtime/venv/bin/python" -I "$runtime/install.pyz" \\
    --manage "$(dirname -- "$(dirname -- "$here")")" "$@"
"""


def unit_text(template: str, root: Path, name: str) -> str:
    """The unit, for the user who owns `root`; the one of root runs as nobody in particular."""
    owner = os.stat(root).st_uid
    try:
        user = f"User={pwd.getpwuid(owner).pw_name}" if owner else "DynamicUser=yes"
    except KeyError:
        user = f"User={owner}"
    words = {
        "@NAME@": name, "@USER@": user, "@ROOT@": _escaped(str(root)),
        "@ROOT_WORDS@": str(root).replace("%", "%%"),
    }  # fmt: skip
    for word, text in words.items():
        template = template.replace(word, text)
    return template


def _escaped(text: str) -> str:
    """As systemd writes it within double quotes."""
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(char, escape)
    return text
