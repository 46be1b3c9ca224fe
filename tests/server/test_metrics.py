"""Metrics, for Prometheus."""

from pathlib import Path

from pocketmoe.tests.support.serving import ask, completion, live_server


def test_metrics(served_bundle: Path) -> None:
    with live_server(served_bundle) as server:
        ask(server.port, "/v1/completions", completion())
        _, text, headers = ask(server.port, "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    names = (
        'requests_total{route="/v1/completions",status="200"}', "queue_length",
        "running_requests", "new_tokens_total", "new_tokens_per_second", "page_hit_rate",
        "time_to_first_token_seconds_count", "paged_bytes_total", "resident_memory_bytes",
    )  # fmt: skip
    for name in names:
        assert f"\npocketmoe_{name} " in text, name
