"""Hosts, origins and keys."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from pocketmoe.server.application import Access
from pocketmoe.server.http.key_file import Keys
from pocketmoe.tests.support.serving import TEXT, LiveServer, ask, completion, live_server


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[LiveServer]:
    with live_server(served_bundle) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost"}, 200),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
    ],
)
def test_hosts_and_origins(server: LiveServer, headers: dict[str, str], status: int) -> None:
    answered, body, told = ask(server.port, "/v1/models", headers=headers)
    assert answered == status
    assert (status == 200) != ("error" in body)
    assert "access-control-allow-origin" not in told


def test_keys_and_pages_of_others(served_bundle: Path) -> None:
    access = Access(origins=("https://app.example",), keys=Keys(["k" * 20, "another key 5678"]))
    with live_server(served_bundle, access=access) as server:

        def status(path: str, key: str | None) -> int:
            headers = {} if key is None else {"authorization": key}
            return ask(server.port, path, headers=headers)[0]

        assert status("/v1/models", "Bearer " + "k" * 20) == 200
        assert status("/v1/models", "bearer " + "k" * 20) == 200
        assert status("/v1/models", "Bearer " + "k" * 19) == 401
        assert status("/v1/models", "Basic " + "k" * 20) == 401
        assert status("/v1/models", "Bearer ") == 401
        assert status("/v1/models", "Bearer \xff\xfe") == 401
        assert status("/v1/models", None) == 401
        assert status("/metrics", None) == 401
        assert status("/v1/nothing", None) == 401
        assert status("/health", None) == 200
        assert status("/openapi.json", None) == 200
        _, body, headers = ask(server.port, TEXT, completion())
        assert body["error"]["code"] == "invalid_api_key"
        assert headers["www-authenticate"] == "Bearer"

        origin = {"origin": "https://app.example"}
        asked = {"access-control-request-method": "POST",
                 "access-control-request-headers": "authorization, content-type"}  # fmt: skip
        status_, _, told = ask(server.port, TEXT, method="OPTIONS", headers={**origin, **asked})
        assert status_ == 200
        assert told["access-control-allow-origin"] == "https://app.example"
        key = {"authorization": "Bearer " + "k" * 20}
        status_, _, told = ask(server.port, TEXT, completion(), headers={**origin, **key})
        assert status_ == 200
        assert told["access-control-allow-origin"] == "https://app.example"
        url = f"http://127.0.0.1:{server.port}/v1"
        with (
            openai.OpenAI(base_url=url, api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
