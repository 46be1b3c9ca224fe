"""install.pyz: the folder installer/ as one file that any Python from 3.10 on runs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_DATE = (1980, 1, 1, 0, 0, 0)
_NAME = "pocketmoe_installer"
# Ctrl-C while the installer is loaded ends it without a traceback.
_MAIN = f"""import signal

before = signal.getsignal(signal.SIGINT)
if before is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
from {_NAME}.main import run

signal.signal(signal.SIGINT, before)
run()
"""


def make_installer() -> bytes:
    """The same bytes for the same sources."""
    files = {"__main__.py": _MAIN.encode()}
    for path in sorted((Path(__file__).parent / "installer").glob("*.py")):
        files[f"{_NAME}/{path.name}"] = path.read_bytes()
    out = io.BytesIO(b"#!/usr/bin/env python3\n")
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name, _DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return out.getvalue()
