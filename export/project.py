"""The package's own metadata: of its pyproject.toml in a clone, else as it was installed."""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def project_metadata() -> tuple[str, str]:
    """METADATA and entry_points.txt, as a wheel has them.

    In a clone, what was installed may be older than pyproject.toml; Python 3.10 cannot read that.
    """
    project = ROOT / "pyproject.toml"
    if project.is_file() and sys.version_info >= (3, 11):
        import tomllib

        data = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if data["name"] == "pocketmoe":
            return _metadata(data), _entry_points(data)
    installed = distribution("pocketmoe")
    texts = [installed.read_text(name) or "" for name in ("METADATA", "entry_points.txt")]
    return texts[0], texts[1]


def _metadata(data: dict[str, Any]) -> str:
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {data['name']}",
        f"Version: {data['version']}",
        f"Summary: {data['description']}",
        f"License-Expression: {data['license']}",
        *(f"License-File: {name}" for name in data["license-files"]),
        f"Requires-Python: {data['requires-python']}",
        *(f"Requires-Dist: {text}" for text in data["dependencies"]),
    ]
    for extra, requirements in data["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for text in requirements:
            requirement, _, marker = text.partition(";")
            marker = f"({marker.strip()}) and " if marker.strip() else ""
            lines.append(f'Requires-Dist: {requirement.strip()}; {marker}extra == "{extra}"')
    return "\n".join(lines) + "\n"


def _entry_points(data: dict[str, Any]) -> str:
    scripts = "".join(f"{name} = {value}\n" for name, value in data["scripts"].items())
    return f"[console_scripts]\n{scripts}"
