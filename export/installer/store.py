"""The folder of an installed app, and the one step that changes what runs: the link `current`.

ROOT/app.json                 the app's name
ROOT/runtimes/ID/             venv/, licences/, install.pyz; complete once `complete` is there
ROOT/bundles/ID/              NAME/, the bundle; licences/
ROOT/versions/N/              runtime and bundle, links to one of each; the scripts
ROOT/current                  link to a version
ROOT/run, ROOT/manage, ROOT/NAME.service    links to files of the current version
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .console import note
from .errors import InstallError

_NEW = ".new-"  # begins the name of what is not finished
_COMPLETE = "complete"
_LOCK = ".lock"
PARTS = {"runtime": "runtimes", "bundle": "bundles"}
_HARMLESS = {"lost+found", "service.env"}  # of a disk of its own; the user's, for the service


@dataclass(frozen=True)
class Version:
    """Which runtime and bundle belong together; before: the version that it took the place of.
    python: the interpreter, where one was chosen. system_packages: the runtime sees them."""

    number: int
    runtime: str
    bundle: str | None
    model: str | None
    before: int | None
    installed: str
    python: str | None = None
    system_packages: bool = False


class Store:
    """root: the app's folder; it need not exist yet. lock: a file descriptor, while it is held."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.lock: int | None = None

    @contextlib.contextmanager
    def locked(self, seconds: float = 60.0) -> Iterator[None]:
        """Keeps others from changing the app. Programs that are started with `lock` hold it too,
        until they end, should this one be killed.

        Raises:
            InstallError: the folder cannot be written to, holds files that are no app's, or another
                installation is under way.
        """
        self._need_own()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InstallError(
                f"cannot write to {self.root} ({error.strerror}); choose another --to"
            ) from error
        try:
            self._wait(self.lock, seconds)
            yield
        finally:
            os.close(self.lock)
            self.lock = None

    def _need_own(self) -> None:
        """What is no app's is never swept away: a folder is one's from the first lock on."""
        if os.path.lexists(self.root / _LOCK) or os.path.lexists(self.root / "app.json"):
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if others := sorted(set(os.listdir(self.root)) - _HARMLESS):
                raise InstallError(
                    f"{self.root} holds {others[0]!r}, which is no app's; choose another --to"
                )

    def _wait(self, lock: int, seconds: float) -> None:
        end, told = time.monotonic() + seconds, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InstallError(
                        f"another installation is under way in {self.root}; try again later"
                    ) from None
            if not told:
                note(f"waiting for another installation in {self.root}")
                told = True
            time.sleep(0.1)

    def place(self, part: str, part_id: str) -> Path:
        return self.root / PARTS[part] / part_id

    def parts(self, version: Version) -> list[Path]:
        """The folders of its runtime and its bundle."""
        known = (("runtime", version.runtime), ("bundle", version.bundle))
        return [self.place(part, part_id) for part, part_id in known if part_id is not None]

    def has(self, part: str, part_id: str) -> bool:
        return (self.place(part, part_id) / _COMPLETE).is_file()

    def complete(self, part: str, part_id: str) -> None:
        """Says of a runtime or a bundle that all of it is on the disk."""
        os.sync()
        (self.place(part, part_id) / _COMPLETE).touch()

    @property
    def name(self) -> str | None:
        try:
            return str(json.loads((self.root / "app.json").read_text(encoding="utf-8"))["name"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InstallError(f"{self.root} holds no app that can be read ({error})") from error

    def versions(self) -> list[Version]:
        """By number; without those whose runtime or bundle is not there, or which a power cut has
        left without their text."""
        found = []
        for path in (self.root / "versions").glob("[0-9]*/version.json"):
            try:
                version = Version(**json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                continue
            if self.has("runtime", version.runtime) and (
                version.bundle is None or self.has("bundle", version.bundle)
            ):
                found.append(version)
        return sorted(found, key=lambda version: version.number)

    def current(self) -> Version | None:
        try:
            number = int(os.path.basename(os.readlink(self.root / "current")))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return next((item for item in self.versions() if item.number == number), None)

    def staging(self) -> Path:
        """A new folder for what is not checked yet."""
        return Path(tempfile.mkdtemp(prefix=_NEW, dir=self.root))

    def sweep(self) -> None:
        """Takes away what interrupted installations have left, and parts that no version needs."""
        for path in [*self.root.glob(f"{_NEW}*"), *self.root.glob(f"versions/{_NEW}*")]:
            _remove(path)
        kept = self.versions()
        current = self.root / "current"
        if current.is_symlink() and self.current() is None:
            raise InstallError(f"{current} leads to no version; choose another --to")
        for path in (self.root / "versions").glob("[0-9]*"):
            if path.name not in {str(version.number) for version in kept}:
                _remove(path)
        needed = {("runtimes", version.runtime) for version in kept}
        needed |= {("bundles", version.bundle) for version in kept if version.bundle}
        for folder in PARTS.values():
            for path in (self.root / folder).glob("*"):
                if (folder, path.name) not in needed:
                    _remove(path)

    def add_version(self, version: Version, app: str, scripts: dict[str, tuple[str, int]]) -> None:
        """app: its name, which the bundle's folder has too. scripts: their text and mode."""
        folder = self.root / "versions"
        folder.mkdir(exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=_NEW, dir=folder))
        path.chmod(0o755)
        os.symlink(f"../../runtimes/{version.runtime}", path / "runtime")
        if version.bundle is not None:
            os.symlink(f"../../bundles/{version.bundle}/{app}", path / "bundle")
        for name, (text, mode) in scripts.items():
            (path / name).write_text(text, encoding="utf-8")
            (path / name).chmod(mode)
        text = json.dumps(vars(version), indent=1) + "\n"
        (path / "version.json").write_text(text, encoding="utf-8")
        os.sync()  # a name must not be on the disk before what it stands for
        os.replace(path, folder / str(version.number))
        if self.name is None:
            new = self.root / f"{_NEW}app.json"
            new.write_text(json.dumps({"name": app}) + "\n", encoding="utf-8")
            os.sync()
            os.replace(new, self.root / "app.json")

    def switch(self, version: Version, scripts: Sequence[str]) -> None:
        """From here on `version` is what runs. scripts: those of a version that ROOT links to."""
        os.sync()
        for name in scripts:
            if not (self.root / name).is_symlink():
                self._link(f"current/{name}", name)
        self._link(f"versions/{version.number}", "current")
        os.sync()

    def _link(self, target: str, name: str) -> None:
        new = self.root / f"{_NEW}{name}"
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        os.symlink(target, new)
        os.replace(new, self.root / name)

    def drop(self, versions: list[Version]) -> None:
        """Takes versions away, and what only they needed."""
        for version in versions:
            _remove(self.root / "versions" / str(version.number))
        self.sweep()


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
