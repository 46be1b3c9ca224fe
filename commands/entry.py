"""The command group: every failure is one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import click

from ..errors import PocketMoEError, how_to_add
from .console import print_error, print_interrupted

FAILED = 2
INTERRUPTED = 130  # what shells report after Ctrl-C
BROKEN_PIPE = 141  # and after a reader that went away
# What installs a package that is no part of the base.
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "safetensors"), "compile"),
    "matplotlib": "plot",
    **dict.fromkeys(("zstandard", "packaging"), "export"),
    **dict.fromkeys(("starlette", "uvicorn", "prometheus_client", "h11"), "serve"),
}


class CommandLine(click.Group):
    """Commands whose every failure is one line on stderr and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are written, which is that of use."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            names = self.list_commands(ctx)
            near = get_close_matches(name.lower(), names)
            hint = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(names)}"
            raise click.UsageError(f"there is no command {name!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_errors(debug=ctx.params["debug"]):
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result

    def main(self, *args: Any, **extra: Any) -> Any:
        open_closed_streams()
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))
        except click.ClickException as error:
            print_error(_usage_message(error))
        except click.Abort:
            _tell_interrupted()
            sys.exit(INTERRUPTED)
        sys.exit(FAILED)


def open_closed_streams() -> None:
    """A shell can start a command with a stream closed (`>&-`): it reads as empty, and what is
    written to it is lost, as was asked for."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, stream)


@contextlib.contextmanager
def one_line_errors(*, debug: bool) -> Iterator[None]:
    """Turns what a user can put right into one line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _tell_interrupted()
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _silence_stdout()
        raise click.exceptions.Exit(BROKEN_PIPE) from None
    except (PocketMoEError, OSError, ModuleNotFoundError) as error:
        message = _message(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        print_error(message)
        if isinstance(error, OSError):
            _silence_stdout()
        raise click.exceptions.Exit(FAILED) from None
    except Exception as error:
        if not _began_with_an_interrupt(error):
            raise
        _tell_interrupted()
        raise click.exceptions.Exit(INTERRUPTED) from None


def _tell_interrupted() -> None:
    print_interrupted()
    # Once a KeyboardInterrupt has passed through an `exec` of text, as dataclasses have, CPython
    # ends by the signal whatever the exit code; another such `exec` makes it forget.
    exec("")


def _began_with_an_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C led to it: a library that is interrupted while it is imported may fail in
    ways of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _message(error: PocketMoEError | OSError | ModuleNotFoundError) -> str | None:
    """The line for an error; None where it is no user's to put right."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return None
        return f"this needs {package}, which is not installed: {how_to_add(EXTRAS[package])}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        remedy = "; free some space or write elsewhere" if error.errno == errno.ENOSPC else ""
        return f"{where}{(error.strerror or str(error)).lower()}{remedy}"
    return str(error)


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message} (see '{error.ctx.command_path} --help')"
    return message


def _silence_stdout() -> None:
    """Sends to nowhere what stdout still holds, lest Python complains about it at its exit."""
    with contextlib.suppress(OSError, ValueError):
        stdout = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
