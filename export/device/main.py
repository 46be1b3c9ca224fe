"""The command line of the installer."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from .console import print_error, say
from .errors import InstallError
from .install import Choices, install
from .manifest import is_name, read_manifest
from .source import open_source
from .store import Store, Version

_HOME = "~/.local/share/pocketmoe-apps"
_SYSTEM = "/opt"


def main(arguments: list[str], beside: Path) -> int:
    """Returns the exit code. beside: the folder of the installer, which may be an unpacked app."""
    parser = _parser()
    given = parser.parse_args(arguments)
    os.umask(0o022)  # a service may run as another user
    try:
        return int(given.action(given, beside))
    except InstallError as error:
        print_error(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_error(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as error:
        print_error("; ".join(["interrupted", *map(str, error.args)]))
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.pyz", description="Installs an app that `pocketmoe export` has made."
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--to", metavar="DIR", help=f"folder of the app; default {_SYSTEM}/NAME "
                        f"for root, else {_HOME}/NAME")  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[shared])
        added.set_defaults(action=action)
        return added

    one = command("install", _install, "check an app, install it, and make it the one that runs")
    one.add_argument("app", nargs="?", type=Path, help="archive or folder; default: this folder")
    one.add_argument("--expect", metavar="SHA256", help="refuse other content than this")
    one.add_argument("--python", metavar="FILE", help="interpreter; default: one that fits")
    one.add_argument("--name", help="of the app, where the archive gives it none")
    system = "let the runtime see the system's packages, such as JetPack's TensorRT"
    one.add_argument("--system-site-packages", action="store_true", help=system)
    command("status", _status, "show the versions that are installed")
    back = command("rollback", _rollback, "go back to the version before")
    back.add_argument("version", nargs="?", type=int, help="its number, if it is another")
    prune = command("prune", _prune, "remove versions that do not run")
    prune.add_argument("--keep", type=int, default=0, metavar="N", help="but the newest N of them")
    return parser


def _install(given: argparse.Namespace, beside: Path) -> int:
    path = given.app or beside
    if given.name is not None and not is_name(given.name):
        raise InstallError("--name is made of letters, digits, '.', '_' and '-'")
    with contextlib.ExitStack() as ends:
        source = open_source(path, ends)
        name = read_manifest(source.manifest).name or given.name or "app"
        store = Store(_root(given.to, name))
        choices = Choices(given.expect, given.python, given.name, given.system_site_packages)
        version, changed = install(source, store, choices)
    if not changed:
        say(f"{store.root}: version {version.number} is installed already")
        return 0
    say(f"{store.root}: version {version.number} runs from now on")
    if version.bundle is None:
        say("it has no bundle yet; install one")
    elif version.before is None:
        say(f"  {store.root}/run --prompt 'Hello'")
        say(f"  {store.root}/manage status")
        unit = f"{store.name}.service"
        say(f"  sudo cp {store.root}/{unit} /etc/systemd/system/ && "
            f"sudo systemctl enable --now {unit}")  # fmt: skip
    return 0


def _root(chosen: str | None, name: str) -> Path:
    if chosen:
        return Path(chosen).expanduser()
    return Path(_SYSTEM if os.geteuid() == 0 else _HOME).expanduser() / name


def _opened(given: argparse.Namespace) -> Store:
    if not given.to:
        raise InstallError("which app? name its folder with --to")
    store = Store(Path(given.to).expanduser())
    if not store.root.is_dir() or store.name is None:
        raise InstallError(f"{store.root} holds no app")
    return store


def _status(given: argparse.Namespace, beside: Path) -> int:
    store = _opened(given)
    current = store.current()
    say(f"{store.name} in {store.root}")
    for version in store.versions():
        mark = "*" if version == current else " "
        bundle = f"bundle {version.bundle} ({version.model})" if version.bundle else "no bundle"
        say(f"{mark} {version.number}  {version.installed}  runtime {version.runtime}  {bundle}")
    return 0


def _rollback(given: argparse.Namespace, beside: Path) -> int:
    store = _opened(given)
    with store.locked():
        current = store.current()
        wanted = given.version if given.version is not None else current and current.before
        version = next((item for item in store.versions() if item.number == wanted), None)
        if version is None:
            there = ", ".join(str(item.number) for item in store.versions()) or "none"
            raise InstallError(f"there is no such version to go back to; installed: {there}")
        store.switch(version, ())
    say(f"{store.root}: version {version.number} runs from now on")
    return 0


def _prune(given: argparse.Namespace, beside: Path) -> int:
    store = _opened(given)
    if given.keep < 0:
        raise InstallError("--keep is 0 or more")
    with store.locked():
        current = store.current()
        others: list[Version] = [item for item in store.versions() if item != current]
        gone = others[: len(others) - given.keep] if given.keep < len(others) else []
        store.drop(gone)
    say(f"removed {len(gone)} of {len(others) + (current is not None)} versions")
    return 0


def run() -> None:
    sys.exit(main(sys.argv[1:], Path(sys.argv[0]).resolve().parent))
