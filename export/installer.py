"""install.pyz: the folder device/ as one file that any Python from 3.10 on runs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_DATE = (1980, 1, 1, 0, 0, 0)
_NAME = "pocketmoe_installer"
_MAIN = f"from {_NAME}.main import run\n\nrun()\n"


def make_installer() -> bytes:
    """The same bytes for the same sources."""
    files = {"__main__.py": _MAIN.encode()}
    for path in sorted((Path(__file__).parent / "device").glob("*.py")):
        files[f"{_NAME}/{path.name}"] = path.read_bytes()
    out = io.BytesIO(b"#!/usr/bin/env python3\n")
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name, _DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return out.getvalue()
