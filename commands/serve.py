"""`serve`: a bundle over HTTP, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError
from ..sizes import format_size
from .arguments import (
    ACTIVE_EXPERTS,
    BUDGET,
    BUNDLE,
    CONTEXT,
    POSITIVE,
    PREFETCH,
    SIZE,
    SKIP_COLD,
    FiniteRange,
    gpu_options,
    with_opening,
)
from .console import print_note

if TYPE_CHECKING:
    from ..runtime.options import OpenOptions


_SECONDS = FiniteRange(min=0, max=86400)
_SOME_SECONDS = FiniteRange(min=0, min_open=True, max=86400)


@click.command()
@BUNDLE
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 takes a free one.")
@click.option(
    "--api-key-file", metavar="FILE", type=click.Path(path_type=Path),
    help="Keys that clients must show, one per line.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="Of the model.  [default: the bundle's]")
@click.option(
    "--parallel", metavar="N", type=POSITIVE, default=1, help="Requests that run at once."
)
@click.option(
    "--queue", metavar="N", type=click.IntRange(min=0), default=32,
    help="Requests that may wait; more are refused.",
)  # fmt: skip
@click.option(
    "--timeout", metavar="SECONDS", type=_SOME_SECONDS, default=600.0,
    help="Time that a request may take, waiting included.",
)  # fmt: skip
@click.option(
    "--grace", metavar="SECONDS", type=_SECONDS, default=30.0,
    help="Time for what runs when the server is told to stop.",
)  # fmt: skip
@click.option(
    "--max-body", metavar="SIZE", type=SIZE,
    help="Of a request.  [default: 64 bytes per token of context, from 1MiB to 8MiB]",
)  # fmt: skip
@click.option(
    "--allow-host", "hosts", metavar="NAME", multiple=True,
    help="Another name by which clients may call a server on a loopback address.",
)  # fmt: skip
@click.option(
    "--cors-origin", "origins", metavar="ORIGIN", multiple=True,
    help="Web pages that may ask, such as https://example.org; * for all.",
)  # fmt: skip
@BUDGET
@gpu_options
@CONTEXT
@PREFETCH
@ACTIVE_EXPERTS
@SKIP_COLD
@with_opening
def serve(
    bundle: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    name: str | None,
    parallel: int,
    queue: int,
    timeout: float,
    grace: float,
    max_body: int | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    opening: OpenOptions,
) -> None:
    """Answer requests over HTTP, as OpenAI's API does.

    It listens on this machine alone; elsewhere it needs --api-key-file.
    """
    # All that the server needs is loaded before the bundle is, so that the budget counts it.
    from ..server.application import Access, make_application
    from ..server.http.guard import check_access
    from ..server.http.key_file import read_keys
    from ..server.http.listening import bind, is_local, make_server, run_server, url_of
    from ..server.service import Limits, Service
    from ..server.sessions import open_sessions

    check_access(hosts, origins)
    if name is not None and not name.strip():
        raise InputError("--name is empty; leave it out for the bundle's")
    keys = None if api_key_file is None else read_keys(api_key_file)
    listener = bind(host, port)
    with ExitStack() as ends:
        ends.callback(listener.close)
        local = is_local(listener)
        if not local and keys is None:
            raise InputError(
                f"others can reach {host}; give the keys of those who may ask in --api-key-file, "
                "or listen at 127.0.0.1"
            )
        sessions = open_sessions(bundle, parallel, max_body, opening)
        for session in sessions:
            ends.callback(session.close)
        limits = Limits(body=max_body, queue=queue, timeout=timeout, grace=grace)
        service = Service(sessions, bundle.resolve().name if name is None else name, limits)
        known = [host.lower(), *(item.lower() for item in hosts)] if local else None
        application = make_application(service, Access(known, origins, keys))

        def ready() -> None:
            budget = sessions[0].stats.budget_bytes
            memory = "" if budget is None else f", in {format_size(budget)}"
            print_note(f"serving {service.name} at {url_of(listener)}/v1{memory}; Ctrl-C ends it")

        server = make_server(application, service, print_note)
        with server.signals(), ends.pop_all():
            if not asyncio.run(run_server(server, listener, ready)):
                os._exit(1)  # somebody insisted, and a thread still computes
            service.close()
    if server.force_exit and server.cut_off:
        raise SystemExit(1)
