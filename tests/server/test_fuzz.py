"""schemathesis against the server's description: whatever is sent, answers are as described."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case

from pocketmoe.server.openapi import description
from pocketmoe.server.service import Limits
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.serving import MODEL, LiveServer, ask, completion, live_server

schema = schemathesis.openapi.from_dict(description())


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    limits = Limits(timeout=5, grace=5)
    with live_server(served_bundle, parallel=2, limits=limits) as server:
        yield server


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=examples(60), deadline=None, derandomize=True,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_as_described(case: Case, server: LiveServer) -> None:
    if isinstance(case.body, dict):
        if case.body.get("model"):
            case.body["model"] = MODEL  # else nearly all are refused for it
        if isinstance(case.body.get("n"), int):
            case.body["n"] = min(case.body["n"], 2)
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{server.port}",
        excluded_checks=[
            # Of a fault that the server makes on purpose: refusing a whole body for one field.
            schemathesis.checks.positive_data_acceptance,
        ],
    )


def test_afterwards(server: LiveServer) -> None:
    server.wait_for(running=0)
    assert ask(server.port, "/v1/completions", completion())[0] == 200
