"""The guard: lets requests in by the host they are for, the page that asks, the key they show."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import InputError
from ..refusals import RequestError, refusal_response
from .key_file import Keys

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\sA-Z@]+")
OPEN = frozenset({"/health", "/openapi.json"})


class Guard:
    """ASGI middleware.

    hosts: names that a request may be for besides loopback addresses; None for any. It keeps out
    web pages whose name was made to resolve to this machine. origins: of web pages that may ask,
    besides the server's own. keys: None where none is needed. open_paths: that need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str] | None,
        origins: Collection[str],
        keys: Keys | None,
        open_paths: Collection[str] = OPEN,
    ):
        self._app, self._hosts, self._origins, self._keys = app, hosts, origins, keys
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except RequestError as error:
                await refusal_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and not self._is_known(host_name(host)):
            raise RequestError(
                "this host is not served here; start the server with --allow-host",
                status=403,
                code="unknown_host",
            )
        origin = headers.get("origin")
        own = origin is not None and origin.partition("://")[2].lower() == host.lower()
        if origin is not None and not own and not {origin, "*"} & set(self._origins):
            raise RequestError(
                "pages of this origin may not ask; start the server with --cors-origin",
                status=403,
                code="unknown_origin",
            )
        if self._keys is None or path in self._open:
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        if not key:
            raise unauthorized("no API key; send the header Authorization: Bearer KEY")
        if kind.lower() != "bearer" or not self._keys.accept(key.strip()):
            raise unauthorized("incorrect API key")

    def _is_known(self, name: str) -> bool:
        return is_loopback(name) or name in (self._hosts or ())


def check_access(hosts: Collection[str], origins: Collection[str]) -> None:
    """Raises InputError for what no browser or client ever sends."""
    for host in hosts:
        if not host or host_name(host) != host.lower() or not host.isprintable() or "/" in host:
            raise InputError(f"--allow-host {host!r} is no name; write it without scheme and port")
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise InputError(
                f"--cors-origin {origin!r} is no origin; write scheme, name and port alone, such "
                "as https://example.org, in lower case and without a slash at the end"
            )


def unauthorized(message: str) -> RequestError:
    return RequestError(
        message, status=401, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
    )


def host_name(host: str) -> str:
    """Without port, lower case: "[::1]:8000" → "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def is_loopback(name: str) -> bool:
    """Whether this name or address is always this machine's own."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
