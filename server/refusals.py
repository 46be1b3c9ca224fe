"""Refusals: errors of requests, in OpenAI's form."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from ..errors import ContextError, InputError, PocketMoEError

_log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
BUSY = "rate_limit_error"
FAULT = "server_error"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": [INVALID, BUSY, FAULT]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


class RequestError(PocketMoEError):
    """A request that is answered with an error. The message is one line.

    status: of HTTP. param: the parameter that is wrong. code: for programs. headers: sent too.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = FAULT if self.status >= 500 else BUSY if self.status == 429 else INVALID
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}


def refusal_response(error: RequestError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def refusal_of(error: PocketMoEError, param: str | None = None) -> RequestError:
    """The answer to an error of the runtime: the client's to put right, or the server's."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextError):
        return RequestError(str(error), param=param, code="context_length_exceeded")
    if isinstance(error, InputError):
        return RequestError(str(error), param=param)
    _log.error("a request has failed: %s", error)
    # A retry would meet the same damage.
    return RequestError(str(error), status=500, headers={"x-should-retry": "false"})


def wrong(param: str, message: str, code: str | None = None) -> RequestError:
    return RequestError(f"{param} {message}", param=param, code=code)


def missing(param: str) -> RequestError:
    return wrong(param, "is missing", "missing_required_parameter")


def unsupported(param: str, remedy: str = "leave it out") -> RequestError:
    return RequestError(
        f"{param} is not supported here; {remedy}", param=param, code="unsupported_parameter"
    )


def show(value: object) -> str:
    """A value in an error message: as JSON has it, cut where it is long."""
    plain = value is None or isinstance(value, bool)
    text = json.dumps(value) if plain else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
