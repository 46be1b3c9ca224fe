"""The command line of the installer."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from shlex import quote

from .console import note, print_error, say
from .errors import InstallError
from .install import Choices, install
from .manifest import is_name, read_manifest
from .processes import users_of
from .source import open_source
from .store import Store, Version

_HOME = "~/.local/share/pocketmoe-apps"
_SYSTEM = "/opt"


def main(arguments: list[str], beside: Path) -> int:
    """Returns the exit code. beside: the folder of the installer, which may be an unpacked app.

    `--manage ROOT` before all else is how an app's own script calls it: that app is meant then.
    """
    app = None
    if arguments[:1] == ["--manage"]:
        app, arguments = arguments[1], arguments[2:]
    parser = _parser(app)
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


def _parser(app: str | None) -> argparse.ArgumentParser:
    """app: the folder of the one that is managed."""
    parser = argparse.ArgumentParser(
        prog="install.pyz" if app is None else "manage",
        description="Installs apps of `pocketmoe export`, and goes back to earlier versions.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: object, text: str, default: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(action=action)
        default = default if app is None else f"default {app}"
        added.add_argument(
            "--to", metavar="DIR", type=_folder, default=app,
            help=f"folder of the app; {default}",
        )  # fmt: skip
        return added

    one = command(
        "install", _install, "check an app, install it, and make it the one that runs",
        f"default {_SYSTEM}/NAME for root, else {_HOME}/NAME",
    )  # fmt: skip
    if app is None:
        one.add_argument("app", nargs="?", type=Path, help="archive or folder; default: this one")
    else:
        one.add_argument("app", type=Path, help="archive, or the folder that one was unpacked to")
    one.add_argument("--expect", metavar="SHA256", help="refuse other content than this")
    python = "interpreter; default: the one that was named before, or one that fits"
    one.add_argument("--python", metavar="FILE", help=python)
    one.add_argument("--name", help="of the app, where the archive gives it none")
    one.add_argument(
        "--system-site-packages", action=argparse.BooleanOptionalAction,
        help="let the runtime see the system's packages, such as JetPack's TensorRT; default: as "
        "before",
    )  # fmt: skip
    command("status", _status, "show the versions that are installed", "must be given")
    back = command("rollback", _rollback, "go back to the version before", "must be given")
    back.add_argument("version", nargs="?", type=int, help="its number, if it is another")
    prune = command("prune", _prune, "remove versions that do not run", "must be given")
    prune.add_argument("--keep", type=int, default=0, metavar="N", help="but the newest N of them")
    return parser


def _folder(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no name for a folder")
    return text


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
        unit = f"{store.name}.service"
        run, manage, service = (quote(str(store.root / name)) for name in ("run", "manage", unit))
        say(f"  {run} --prompt 'Hello'")
        say(f"  {manage} status")
        say(f"  sudo cp {service} /etc/systemd/system/ && sudo systemctl enable --now {unit}")
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
        old = others[: len(others) - given.keep] if given.keep < len(others) else []
        gone = [version for version in old if not _in_use(store, version, current)]
        store.drop(gone)
    say(f"removed {len(gone)} of {len(others) + (current is not None)} versions")
    return 0


def _in_use(store: Store, version: Version, current: Version | None) -> bool:
    """Whether a program would lose what it runs with; then it is told."""
    kept = [] if current is None else store.parts(current)
    users = users_of([place for place in store.parts(version) if place not in kept])
    if users:
        note(f"version {version.number} is kept: process {users[0]} runs it; stop that first")
    return bool(users)


def run() -> None:
    sys.exit(main(sys.argv[1:], Path(sys.argv[0]).resolve().parent))
