"""Size of the installed runtime: the packages of an app, without a bundle.

    python bench/memory/installed_size.py
    python bench/memory/installed_size.py --for linux-aarch64-py310 --extra cpu

For this machine it is installed into an empty virtual environment without an index, as an app is,
and `pocketmoe --version` runs there; for others the wheels' content is added up, before Python
compiles it.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
from pathlib import Path

import click

from pocketmoe.commands.console import ProgressDisplay, print_table
from pocketmoe.export.app import ExportRequest, export_app
from pocketmoe.export.installer.main import main as install

MB = 1_000_000


@click.command(help="Measure the size of the installed runtime.")
@click.option("--for", "platforms", multiple=True, help="Platform; several may be given.")
@click.option("--extra", "extras", multiple=True, default=("cpu", "serve"), show_default=True)
def main(platforms: tuple[str, ...], extras: tuple[str, ...]) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for platform in platforms or (None,):
            path = Path(folder) / f"{platform}.tar"
            request = ExportRequest(None, runtime_only=True, platform=platform, extras=extras)
            with ProgressDisplay() as progress:
                done = export_app(request, path, progress)
            on_disk, largest = "", ""
            if platform is None:
                root = Path(folder) / "app"
                with contextlib.redirect_stdout(io.StringIO()):
                    if install(["install", str(path), "--to", str(root)], root):
                        raise SystemExit(1)
                site = next(root.glob("runtimes/*/venv/lib/python3*/site-packages"))
                on_disk = f"{size_of(site) / MB:.0f} MB"
                sizes = {item.name: size_of(item) for item in site.iterdir() if item.is_dir()}
                names = sorted(sizes, key=lambda name: -sizes[name])[:4]
                largest = ", ".join(f"{name} {sizes[name] / MB:.0f}" for name in names)
                python = site.parents[2] / "bin/python"
                subprocess.run([python, "-I", "-m", "pocketmoe", "--version"], check=True)
            rows.append([
                f"{done.platform}", f"{len(done.wheels)}", f"{done.size / MB:.0f} MB",
                f"{done.installed_bytes / MB:.0f} MB", on_disk, largest,
            ])  # fmt: skip
    columns = ["", "wheels", "archive", "unpacked", "site-packages", "largest"]
    print_table(f"the runtime with {', '.join(extras)}", columns, rows)


def size_of(path: Path) -> int:
    """Bytes of all files below, with what Python has compiled."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


if __name__ == "__main__":
    main()
