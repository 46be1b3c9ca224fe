"""`export`: a bundle and its runtime as one file, for a device without a network."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from ..sizes import format_size
from .arguments import JSON
from .console import ProgressDisplay, print_facts, print_json

_log = logging.getLogger(__name__)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("export")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FILE", required=True, type=click.Path(path_type=Path),
    help="Archive to write: .tar.zst, .tar.gz or .tar.",
)  # fmt: skip
@click.option(
    "--for", "platform", metavar="PLATFORM",
    help="Of the device, such as linux-aarch64-py310.  [default: this machine and Python]",
)  # fmt: skip
@click.option(
    "--glibc",
    metavar="VERSION",
    help="The oldest that the device may have.  [default: this machine's; with --for 2.34]",
)
@click.option(
    "--extra", "extras", metavar="NAME", multiple=True, default=("cpu", "serve"),
    help="Extra of pocketmoe to include; may be given several times.",
)  # fmt: skip
@click.option(
    "--kernels", metavar="FILE", type=_FILE,
    help="The native library, compiled for the device.  [default: this machine's, if it fits]",
)  # fmt: skip
@click.option(
    "--wheels", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Take wheels from here alone, not from an index.",
)  # fmt: skip
@click.option(
    "--constraint", metavar="FILE", type=_FILE, help="Versions of packages, as pip reads them."
)
@click.option(
    "--licence", "licences", metavar="FILE", type=_FILE, multiple=True, help="Of the model."
)
@click.option("--name", help="Of the app.  [default: the bundle's]")
@click.option("--runtime-only", is_flag=True, help="Leave the bundle out: an update of the rest.")
@click.option("--bundle-only", is_flag=True, help="The bundle alone: an update of the model.")
@click.option("--force", is_flag=True, help="Replace the archive.")
@JSON
def export_command(
    bundle: Path | None,
    output: Path,
    platform: str | None,
    glibc: str | None,
    extras: tuple[str, ...],
    kernels: Path | None,
    wheels: Path | None,
    constraint: Path | None,
    licences: tuple[Path, ...],
    name: str | None,
    runtime_only: bool,
    bundle_only: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write one file that a device without a network installs and runs.

    It holds the bundle, the runtime's wheels, an installer, checksums, licences and a systemd unit.
    """
    from ..export.app import ExportRequest, export_app

    request = ExportRequest(
        bundle, name, runtime_only, bundle_only, platform, glibc, extras, kernels, wheels,
        constraint, licences, force,
    )  # fmt: skip
    with ProgressDisplay() as progress:
        done = export_app(request, output, progress)
    for text in done.notes:
        _log.warning("%s", text)
    if as_json:
        print_json(done)
        return
    rows = [
        ("unpacks to", f"{done.folder}/"),
        ("size", format_size(done.size)),
        ("sha256", done.sha256),
        ("content", done.identity),
    ]
    if done.platform is not None:
        rows += [
            ("for", done.platform),
            ("wheels", f"{len(done.wheels)}, {format_size(done.installed_bytes)} installed"),
            ("native kernels", "yes" if done.kernels else "no"),
        ]
    if done.model is not None:
        rows.append(("bundle", f"{done.model}; {format_size(done.bundle_bytes)}"))
    if done.unlicensed:
        rows.append(("no licence text", ", ".join(done.unlicensed)))
    print_facts(f"app {done.path}", rows)
