"""The sessions that a server runs on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ..bundle.manifest import read_manifest
from ..errors import InputError
from ..runtime.context import choose_context
from ..runtime.generation.template import load_chat_template
from ..runtime.opening import open_with
from ..runtime.options import OpenOptions
from ..runtime.session import Session
from .bodies import ROOMS, usual_body

# Beside bodies: what is read from them, tokenizing, and what waits unsent.
_REQUEST_BYTES = 8 << 20


def open_sessions(
    bundle: Path, parallel: int, body: int | None, options: OpenOptions
) -> list[Session]:
    """As many sessions as requests are to run at once, on one model. body: see Limits.

    Raises:
        PocketMoEError: see open_with, and Session.another.
    """
    manifest = read_manifest(bundle)
    seen = choose_context(options.context, manifest.spec, str(bundle))
    room = _REQUEST_BYTES + ROOMS * (body or usual_body(seen))
    template = load_chat_template(bundle, manifest)
    if template is not None:
        template.prepare()  # before the bundle is opened, so that the budget counts it
    with ExitStack() as undo:
        first = open_with_room(bundle, room, options)
        undo.callback(first.close)
        if first.tokenizer is None:
            raise InputError(f"{bundle} has no tokenizer, which a server needs")
        first.model.need_room([first.context] * parallel)  # an error names what all of them need
        sessions = [first]
        for _ in range(parallel - 1):
            session = first.another()
            undo.callback(session.close)
            sessions.append(session)
        undo.pop_all()
    return sessions


def open_with_room(bundle: Path, room: int, options: OpenOptions) -> Session:
    """Opens a bundle so that its budget leaves room for requests, in bytes."""
    # The budget counts what the process holds when the bundle is opened. Bytes that are not zero,
    # as the system gives zeros no memory.
    held = b"\1" * room
    try:
        return open_with(bundle, options)
    finally:
        del held
