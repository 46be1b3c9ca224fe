"""The sessions that a server runs on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runtime.bundle import read_manifest
from ..runtime.chat import load_chat_template
from ..runtime.opening import open_bundle
from ..runtime.session import Session


def open_sessions(bundle: Path, parallel: int, **settings: Any) -> list[Session]:
    """As many sessions as requests are to run at once, on one model. settings: of open_bundle.

    Raises:
        PocketMoEError: see open_bundle, and Session.another.
    """
    template = load_chat_template(bundle, read_manifest(bundle))
    if template is not None:
        template.prepare()  # before the bundle is opened, so that the budget counts it
    with ExitStack() as undo:
        first = open_bundle(bundle, **settings)
        undo.callback(first.close)
        if first.tokenizer is None:
            raise InputError(f"{bundle} has no tokenizer, which a server needs")
        sessions = [first]
        for _ in range(parallel - 1):
            session = first.another()
            undo.callback(session.close)
            sessions.append(session)
        undo.pop_all()
    return sessions
