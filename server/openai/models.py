"""`/v1/models`: the model that is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..refusals import RequestError, show
from ..service import Service
from .kinds import Schema

MODEL_SCHEMA: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}


class Models:
    """Its endpoints."""

    def __init__(self, service: Service):
        self._service = service

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._body]})

    async def get_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        check_model(self._service, name)
        return JSONResponse(self._body)

    @property
    def _body(self) -> dict[str, Any]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "pocketmoe",
        }


def check_model(service: Service, name: str) -> None:
    """Raises RequestError where the model is another one."""
    if name != service.name:
        raise RequestError(
            f"there is no model {show(name)} here; use {show(service.name)}",
            status=404,
            param="model",
            code="model_not_found",
        )
