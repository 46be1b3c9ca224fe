"""The live model for the page: what it is, what it is doing just now, and its memory budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import BudgetError, InputError
from ..http.event_stream import EventStream, Write, event
from ..openai.fields import NEEDED, Fields, Parameter
from ..openai.json_body import parse_object
from ..openai.kinds import Anything
from ..refusals import RequestError, refusal_of
from ..service import Service
from .sample import LayerFacts, LiveSampler, budget_bounds

PERIOD = 0.25  # seconds between looks at the model
SILENCE = 5.0  # seconds after which something is told although nothing has changed
MOST_WATCHERS = 16
_MOST_VALUES = 16  # of a request for another budget, which has one
MEMORY_BUDGET: Parameter[Any] = Parameter(
    "memory_budget",
    Anything({"type": ["integer", "string"]}),
    NEEDED,
    'Bytes, or text such as "2GiB".',
)


def live_routes(service: Service) -> list[Route]:
    live = Live(service)
    return [
        Route("/live/model", live.model, methods=["GET"]),
        Route("/live/events", live.events, methods=["GET"]),
        Route("/live/budget", live.set_budget, methods=["POST"]),
    ]


class Live:
    def __init__(self, service: Service):
        self._service = service
        self._watchers = 0

    @cached_property
    def _facts(self) -> LayerFacts:
        return LayerFacts.of(self._service)

    @cached_property
    def _sampler(self) -> LiveSampler:
        return LiveSampler(self._service, self._facts)

    async def model(self, request: Request) -> Response:
        model, session = self._service.session.model, self._service.session
        smallest, largest = budget_bounds(model.plan, model.manifest.num_pages)
        return JSONResponse({
            "name": self._service.name,
            "chat": session.chat_template is not None,
            "layers": [
                {"layer": layer, "experts": experts} for layer, experts in self._facts.layers
            ],
            "num_pages": model.manifest.num_pages,
            "page_bytes": model.plan.page,
            "memory_budget": model.plan.budget,
            "smallest_budget": smallest,
            "largest_budget": largest,
            "context": session.context,
            "parallel": len(self._service.pool.sessions),
        })  # fmt: skip

    async def events(self, request: Request) -> Response:
        if self._watchers >= MOST_WATCHERS:
            raise RequestError(
                f"{self._watchers} pages watch the model already; close one of them",
                status=429, code="too_many_watchers", headers={"retry-after": "10"},
            )  # fmt: skip
        self._watchers += 1  # at once: many may come together
        return LiveStream(self)

    def left(self) -> None:
        """A watcher has gone."""
        self._watchers -= 1

    async def set_budget(self, request: Request) -> Response:
        """Takes {"memory_budget": bytes, or text such as "2GiB"}."""
        with self._service.bodies.body() as body:
            fields = Fields(parse_object(await body.read(request), _MOST_VALUES))
        budget = fields.read(MEMORY_BUDGET)
        fields.finish()
        model = self._service.session.model

        def follow() -> None:
            try:
                model.set_memory_budget(budget)
            except BudgetError as error:
                raise RequestError(
                    str(error), param="memory_budget", code="budget_too_small"
                ) from error
            except InputError as error:
                raise refusal_of(error, "memory_budget") from error

        await self._service.prepare(follow)  # giving memory back may take a while
        return JSONResponse({"memory_budget": model.plan.budget, "slots": model.plan.slots})

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events, until the server stops. The first one tells the use of experts since
        the model was opened; each other one, since the one before it."""
        before = self._sampler.take()
        yield event(before.told(None))
        while not self._service.pool.closed:
            await asyncio.sleep(PERIOD)
            now = self._sampler.take()
            if now.differs(before) or now.time - before.time >= SILENCE:
                yield event(now.told(before))
                before = now


class LiveStream(EventStream):
    def __init__(self, live: Live):
        super().__init__()
        self._live = live

    def stop(self) -> None:
        self._live.left()

    async def write_all(self, write: Write) -> None:
        async with contextlib.aclosing(self._live.lines()) as lines:
            async for line in lines:
                await write(line)
