"""The virtual environment of a runtime, made without an index."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from .errors import InstallError
from .interrupts import held
from .manifest import Runtime

_ENV = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PIP_", "PYTHON")) and name != "VIRTUAL_ENV"
}
# The user's and the machine's settings for pip are not the app's: they can send files elsewhere.
_ENV["PIP_CONFIG_FILE"] = os.devnull
_OWN_PIP = "pip-"


def check_fits(runtime: Runtime) -> None:
    """Raises InstallError where the machine is not one that the runtime was exported for."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower())
    if (machine or platform.machine()) != runtime.machine or sys.platform != "linux":
        raise InstallError(
            f"the app is for linux-{runtime.machine}, this is {sys.platform}-{platform.machine()}; "
            "export it with --for this one"
        )
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (OSError, ValueError):
        glibc = ""  # another C library
    if not glibc or _numbers(glibc) < _numbers(runtime.glibc):
        raise InstallError(
            f"the app needs glibc {runtime.glibc} or newer, this machine has {glibc or 'another'}; "
            "export it with --glibc"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def find_python(runtime: Runtime, chosen: str | None) -> str:
    """The interpreter for the runtime: `chosen`, this one, or one in the path."""
    wanted = runtime.python
    base = getattr(sys, "_base_executable", "") or sys.executable
    found = ""
    for candidate in [chosen] if chosen else [base, f"python{wanted}", "python3"]:
        path = shutil.which(candidate)
        found = _version_of(path) if path is not None else ""
        if path is not None and found == wanted:
            return path
    other = f"{chosen} is " + (f"Python {found}" if found else "no Python")
    raise InstallError(
        f"the app needs Python {wanted}, and {other if chosen else 'none was found'}; install it, "
        "name it with --python, or export the app with --for the version that is here"
    )


def fits(runtime: Runtime, python: str) -> bool:
    """Whether an interpreter that was chosen for an earlier runtime will do for this one."""
    path = shutil.which(python)
    return path is not None and _version_of(path) == runtime.python


def private_folder(python: str) -> Path | None:
    """The folder because of which other users cannot run an interpreter; None where they can."""
    path = Path(os.path.realpath(python))
    closed = (folder for folder in path.parents if not folder.stat().st_mode & 0o001)
    return next(closed, None)


def _version_of(python: str) -> str:
    """Empty where it is none."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, check=False, env=_ENV
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def make_environment(
    python: str, wheels: Path, venv: Path, lock: int, *, system_packages: bool
) -> None:
    """Installs all of the folder `wheels` into a new environment. The pip that does it is among
    them and stays outside; so the system needs neither pip nor ensurepip.

    lock: a file descriptor that what is started keeps open.
    """
    files = sorted(wheels.glob("*.whl"))
    pips = [path for path in files if path.name.startswith(_OWN_PIP)]
    if not pips:
        raise InstallError("the app's wheels lack pip; export it again")
    command = [python, "-I", "-m", "venv", "--without-pip"]
    _run([*command, *["--system-site-packages"] * system_packages, str(venv)], lock)
    inside = [str(venv / "bin/python"), "-I", str(pips[0] / "pip")]
    rest = [str(path) for path in files if path not in pips]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    _run([*inside, "install", "--no-index", "--no-deps", *quiet, *rest], lock)
    if not system_packages:  # whose state is not the app's
        _run([*inside, "check", "--disable-pip-version-check"], lock)


def try_out(venv: Path, bundle: Path | None, kernels: bool, lock: int) -> str | None:
    """Runs the runtime, and has it read the bundle. Returns what is worth telling.

    Raises:
        InstallError: it does not run, or this runtime does not read this bundle.
    """
    python = [str(venv / "bin/python"), "-I"]
    _run([*python, "-m", "pocketmoe", "--version"], lock)
    if bundle is not None:
        _run([*python, "-m", "pocketmoe", "inspect", str(bundle), "--json"], lock)
    if kernels:
        code = "import sys; from pocketmoe.runtime.native.library import available as a"
        if _ended([*python, "-c", f"{code}; sys.exit(not a())"], lock).returncode:
            return (
                "the native kernels do not load on this machine; ONNX Runtime computes, more slowly"
            )
    return None


def _run(command: list[str], lock: int) -> None:
    done = _ended(command, lock)
    if done.returncode:
        told = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in told if line.lower().startswith("error")]
        said = (errors or told[-1:] or [f"exit code {done.returncode}"])[0]
        raise InstallError(f"{' '.join(command[2:4])} failed: {said}")


def _ended(command: list[str], lock: int) -> subprocess.CompletedProcess[str]:
    """An interrupt ends the command too. An own `subprocess.run`, as that one knows nothing of a
    process when the interrupt comes while it is started: it would go on writing."""
    process = None
    try:
        with held():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, errors="replace", env=_ENV, cwd="/", pass_fds=[lock],
            )  # fmt: skip
        out, err = process.communicate()
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
