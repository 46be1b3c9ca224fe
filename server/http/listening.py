"""Listening, and stopping: what runs is finished first, within a limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ...errors import InputError
from ..service import Service
from .connection import Connection
from .guard import is_loopback

_log = logging.getLogger(__name__)
_LAST_SECONDS = 5.0  # for answers to be told that they end, once the time is over
_BACKLOG = 256


class _Loud(logging.Handler):
    """Tells what uvicorn reports, with the error and where it came from, in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().strip()
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            _log.info("%s", message)
            return
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = ""
        if trace is not None:
            name = os.path.basename(trace.tb_frame.f_code.co_filename)
            where = f" ({name}:{trace.tb_lineno})"
        _log.error("a request has failed: %s: %s%s", type(error).__name__, error, where)


class Server(uvicorn.Server):
    """Stops at the first SIGINT or SIGTERM, and at once at the second.

    cut_off: answers that were ended before they were whole, as the server stopped.
    """

    def __init__(self, config: uvicorn.Config, service: Service, tell: Callable[[str], None]):
        super().__init__(config)
        self.service = service
        self.cut_off = 0
        self._tell = tell
        self._stopping: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signals anew at the end. See `signals`."""
        yield

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Stops at signals, which mean nothing else until the end of it. In the main thread."""
        known = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in known}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stop_accepting()
        running, grace = self.service.running, self.service.limits.grace
        if running:
            one = running == 1
            self._tell(
                f"ending: {running} {'request has' if one else 'requests have'} {grace:g} s to "
                f"finish; a second signal ends {'it' if one else 'them'} at once"
            )
        self._stopping = asyncio.create_task(self._stop_running())
        try:
            await super().shutdown(sockets)
        finally:
            self._stopping.cancel()
            self.cut_off += self.service.stop_running()
        if self.cut_off:
            self._tell(f"ended; answers that were cut off: {self.cut_off}")

    async def _stop_running(self) -> None:
        """When the time is over, or somebody insists."""
        end = asyncio.get_running_loop().time() + self.service.limits.grace
        while asyncio.get_running_loop().time() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        self.cut_off += self.service.stop_running()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"{host} is no address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen at {host}, port {port}: {(error.strerror or str(error)).lower()}; "
            "choose another with --host or --port"
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    return is_loopback(str(listener.getsockname()[0]))


def make_server(
    application: ASGIApp, service: Service, tell: Callable[[str], None] = _log.info
) -> Server:
    """tell: what happens when it is stopped."""
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [_Loud()], False
    logger.setLevel(logging.WARNING)
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(service.limits.grace + _LAST_SECONDS),
    )
    return Server(config, service, tell)


async def run_server(server: Server, listener: socket.socket, ready: Callable[[], None]) -> bool:
    """Serves until a signal comes. ready: is called when requests are answered.

    Returns whether all threads have ended: not where a second signal came while one computed.
    """
    asyncio.get_running_loop().call_soon(ready)
    await server.serve([listener])
    while server.service.running and not server.force_exit:  # threads in the midst of a token
        await asyncio.sleep(0.02)
    return not server.service.running
