"""The application: the endpoints, by path."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .http.guard import OPEN, Guard
from .http.key_file import Keys
from .http.page_files import PAGE, PageFiles, page_paths
from .live.routes import live_routes
from .openai.chat import read_chat
from .openai.completion import read_completion
from .openai.models import Models
from .openai.response import respond
from .openapi import description
from .refusals import RequestError, refusal_response, show
from .service import Service

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Who may ask; see Guard."""

    hosts: Collection[str] | None = ()
    origins: Collection[str] = ()
    keys: Keys | None = None


def make_application(service: Service, access: Access) -> Starlette:
    async def chat(request: Request) -> Response:
        return await respond(request, service, read_chat)

    async def complete(request: Request) -> Response:
        return await respond(request, service, read_completion)

    async def health(request: Request) -> Response:
        if service.pool.closed:
            return JSONResponse({"status": "stopping"}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(), headers={"content-type": kind})

    async def openapi(request: Request) -> Response:
        return JSONResponse(description())

    models = Models(service)
    routes: list[Any] = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/models", models.list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", models.get_model, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
    routes += live_routes(service)
    middleware = [Middleware(Counting, service=service, routes=routes)]
    if access.origins:
        middleware.append(Middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["x-request-id"],
        ))  # fmt: skip
    middleware.append(Middleware(
        Guard, hosts=access.hosts, origins=access.origins, keys=access.keys,
        open_paths=OPEN | page_paths(),
    ))  # fmt: skip
    application = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            RequestError: refused,
            HTTPException: not_routed,
            Exception: failed,
        },
    )
    application.router.redirect_slashes = False
    # Not mounted at "/", which would take wrong methods of other paths too.
    application.router.default = PageFiles(directory=PAGE, html=True)
    return application


async def refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):
        raise error
    return refusal_response(error)


async def not_routed(request: Request, error: Exception) -> Response:
    """What Starlette refuses: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise error
    path = show(request.url.path)
    message = {404: f"there is nothing at {path}", 405: f"{request.method} is not for {path}"}
    told = message.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers.setdefault("Allow", "GET, HEAD")  # of files, which are not routes
    return refusal_response(
        RequestError(told, status=error.status_code, code=code, headers=headers)
    )


async def failed(request: Request, error: Exception) -> Response:
    """A fault of the server's own. Starlette raises the error on, and the log tells it."""
    return refusal_response(
        RequestError("the server has failed on this request; its log says how", status=500)
    )


class Counting:
    """ASGI middleware, the outermost: counts answers by route and status, and names each."""

    def __init__(self, app: ASGIApp, service: Service, routes: list[Any]):
        self._app, self._service = app, service
        self._known = {route.path for route in routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity, status = f"req_{secrets.token_hex(12)}", 499

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", identity.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:
            status = 500
            raise
        finally:
            route = self._route(scope["path"])
            self._service.metrics.requests.labels(route, str(status)).inc()
            _log.info("%s %s: %d (%s)", scope["method"], route, status, identity)

    def _route(self, path: str) -> str:
        """Names of routes alone, lest anyone makes labels without end."""
        if path in self._known:
            return path
        return "/v1/models/{name}" if path.startswith("/v1/models/") else "other"
