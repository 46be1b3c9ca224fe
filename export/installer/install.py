"""Installing an app, or one of its parts: all is checked before anything is switched."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .console import Advance, note
from .environment import check_fits, find_python, fits, make_environment, private_folder, try_out
from .errors import InstallError
from .interrupts import ignored
from .manifest import (
    BUNDLE,
    INSTALLER,
    LICENCES,
    MODEL_LICENCES,
    UNIT,
    WHEELS,
    App,
    Runtime,
    read_manifest,
)
from .receive import receive
from .scripts import MANAGE, RUN, unit_text
from .source import AppSource
from .store import Store, Version

_RESERVE = 64 << 20  # bytes that stay free on the disk


@dataclass(frozen=True)
class Choices:
    """expect: the identity that the app must have. name: of the app, where it has none of its own.
    python: the interpreter; system_packages: whether the runtime sees them. Where these are None,
    they are what they were for the version that runs."""

    expect: str | None = None
    python: str | None = None
    name: str | None = None
    system_packages: bool | None = None

    def after(self, current: Version | None, runtime: Runtime) -> Choices:
        """What holds for a runtime that is installed after `current`."""
        python, packages = self.python, self.system_packages
        if python is not None:
            python = os.path.abspath(shutil.which(python) or python)
        if current is not None:
            if python is None and current.python is not None and fits(runtime, current.python):
                python = current.python
            packages = current.system_packages if packages is None else packages
        return replace(self, python=python, system_packages=bool(packages))

    @property
    def kind(self) -> str:
        """Ends the name of a runtime: the same wheels, installed otherwise, are another one."""
        own = ""
        if self.python is not None:
            place = os.fsencode(os.path.realpath(self.python))
            own = "-" + hashlib.sha256(place).hexdigest()[:8]
        return own + "-system" * bool(self.system_packages)


def install(source: AppSource, store: Store, choices: Choices) -> tuple[Version, bool]:
    """Returns the version that runs now, and whether it is another than before.

    Raises:
        InstallError: the app is what it was before.
    """
    app = read_manifest(source.manifest)
    if choices.expect and choices.expect.lower().removeprefix("sha256:") != app.identity:
        raise InstallError(f"the app's content is {app.identity}, not what --expect says")
    python = ""
    if app.runtime is not None:
        check_fits(app.runtime)
        choices = choices.after(store.current(), app.runtime)
        python = find_python(app.runtime, choices.python)
    with store.locked():
        store.sweep()
        return _Installation(source, app, store, choices, python).run()


class _Installation:
    """One, under the lock."""

    def __init__(self, source: AppSource, app: App, store: Store, choices: Choices, python: str):
        self._source, self._app, self._store, self._python = source, app, store, python
        self._choices = choices
        self._current = store.current()
        self._name = self._choose_name(choices.name)
        self._parts = {}
        if app.runtime is not None:
            self._parts["runtime"] = app.part_id("runtime") + choices.kind
        if app.model is not None:
            self._parts["bundle"] = app.part_id("bundle")
        if "runtime" not in self._parts and self._current is None:
            raise InstallError(f"{store.root} has no runtime; install one before a bundle alone")
        self._missing = {part for part, known in self._parts.items() if not store.has(part, known)}

    def _choose_name(self, chosen: str | None) -> str:
        there, new = self._store.name, self._app.name or chosen
        if there is not None and new is not None and there != new:
            raise InstallError(
                f"{self._store.root} holds the app {there}, not {new}; choose another --to, or "
                f"export it with --name {there}"
            )
        return there or new or "app"

    def run(self) -> tuple[Version, bool]:
        wanted = {name for part in self._missing for name in self._app.part(part)}
        self._check_space(wanted)
        staged = self._store.staging()
        try:
            note("checking and copying")
            total = sum(item.size for item in self._app.files.values())
            receive(self._source, self._app, staged, wanted, Advance(total))
            if "bundle" in self._missing:
                self._take_bundle(staged)
            if "runtime" in self._missing:
                self._make_runtime(staged)
            version = self._combine()
            self._try(version)
        except KeyboardInterrupt:
            self._take_back()
            raise KeyboardInterrupt("nothing was changed") from None
        except BaseException:
            self._take_back()
            raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if self._current is not None and _same(version, self._current):
            return self._current, False
        with ignored():  # a moment's work, which is finished
            self._switch(version)
        return version, True

    def _take_back(self) -> None:
        for part in self._missing:
            place = self._store.place(part, self._parts[part])
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # others are there
                place.parent.rmdir()

    def _check_space(self, wanted: set[str]) -> None:
        need = _RESERVE + sum(self._app.files[name].size for name in wanted)
        if "runtime" in self._missing and self._app.runtime is not None:
            need += self._app.runtime.installed_bytes * 3 // 2  # with what Python compiles
        free = shutil.disk_usage(self._store.root).free
        if free < need:
            raise InstallError(
                f"{self._store.root} has {free / 1e6:.0f} MB free, and the app takes "
                f"{need / 1e6:.0f} MB; free some space or choose another --to"
            )

    def _make_runtime(self, staged: Path) -> None:
        """In its place at once, as an environment cannot be moved; it counts once it is marked."""
        place = self._store.place("runtime", self._parts["runtime"])
        place.mkdir(parents=True)
        note("installing the runtime")
        lock = self._store.lock
        assert lock is not None
        if os.geteuid() == 0 and (folder := private_folder(self._python)):
            note(
                f"note: {self._python} lies in {folder}, which only its owner may enter: no other "
                "user, and not the service, can run the app; choose an interpreter with --python"
            )
        make_environment(
            self._python, staged / WHEELS, place / "venv", lock,
            system_packages=bool(self._choices.system_packages),
        )  # fmt: skip
        for name in (INSTALLER, UNIT, LICENCES):
            if (staged / name).exists():
                os.replace(staged / name, place / name)

    def _take_bundle(self, staged: Path) -> None:
        place = self._store.place("bundle", self._parts["bundle"])
        place.mkdir(parents=True)
        os.replace(staged / BUNDLE, place / self._name)
        if (staged / MODEL_LICENCES).exists():
            os.replace(staged / MODEL_LICENCES, place / "licences")

    def _combine(self) -> Version:
        number = max((version.number for version in self._store.versions()), default=0) + 1
        before = self._current
        bundle, model = self._parts.get("bundle"), self._app.model
        if bundle is None and before is not None:
            bundle, model = before.bundle, before.model
        runtime, choices = self._parts.get("runtime"), self._choices
        if runtime is None and before is not None:
            runtime = before.runtime
            choices = replace(choices, python=before.python, system_packages=before.system_packages)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        previous = None if before is None else before.number
        return Version(
            number, runtime or "", bundle, model, previous, when,
            python=choices.python, system_packages=bool(choices.system_packages),
        )  # fmt: skip

    def _try(self, version: Version) -> None:
        lock = self._store.lock
        assert lock is not None
        bundle = None
        if version.bundle is not None:
            bundle = self._store.place("bundle", version.bundle) / self._name
        venv = self._store.place("runtime", version.runtime) / "venv"
        kernels = self._app.runtime is not None and self._app.runtime.kernels
        if told := try_out(venv, bundle, kernels, lock):
            note(f"note: {told}")
        for part in self._missing:
            self._store.complete(part, self._parts[part])

    def _switch(self, version: Version) -> None:
        store, name = self._store, self._name
        template = store.place("runtime", version.runtime) / UNIT
        unit = unit_text(template.read_text(encoding="utf-8"), store.root, name)
        scripts = {
            "run": (RUN, 0o755), "manage": (MANAGE, 0o755), f"{name}.service": (unit, 0o644),
        }  # fmt: skip
        store.add_version(version, name, scripts)
        store.switch(version, list(scripts))


def _same(version: Version, other: Version) -> bool:
    return (version.runtime, version.bundle) == (other.runtime, other.bundle)
