"""`pocketmoe replay`; every failure is one line on stderr and exit code 2."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pocketmoe.cli import main

HEAD = "# layer=0 expert_bytes=1024\n# layer=1 expert_bytes=1024\nturn,phase,step,layer,expert\n"
# Two layers, two experts each, the same for 20 tokens: 4 pages a token.
ROWS = "".join(
    f"0,1,{step},{layer},{expert}\n" for step in range(20) for layer in (0, 1) for expert in (0, 1)
)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


@pytest.fixture
def routes(tmp_path: Path) -> Path:
    path = tmp_path / "routes.csv"
    path.write_text(HEAD + ROWS)
    return path


def test_a_table_with_a_row_for_each_budget(routes: Path) -> None:
    result = call(routes, "--memory-budget", "3KiB", "--memory-budget", "4KiB")
    assert result.exit_code == 0, result.output
    title, columns, _, three, four = result.stdout.splitlines()
    assert "one token's pages are 4.0 KiB" in title
    assert columns.split()[:4] == ["page", "cache", "default", "lru"]
    assert three.startswith("3.0 KiB")
    assert four.startswith("4.0 KiB")
    assert four.split()[-1] == "95.0%"


def test_json(routes: Path) -> None:
    report = json.loads(call(routes, "--memory-budget", "3KiB", "--json").stdout)
    assert report["token_bytes"] == 4096
    (row,) = report["rows"]
    assert row["capacity_bytes"] == 3072
    rates = row["hit_rates"]
    assert max(rates.values()) == rates["optimum"]
    assert rates["default"] == rates["optimum"] > 0


def test_without_a_budget_it_looks_around_one_tokens_pages(routes: Path) -> None:
    report = json.loads(call(routes, "--json").stdout)
    sizes = [row["capacity_bytes"] for row in report["rows"]]
    assert sizes == [2048, 4096]  # no more pages are ever asked for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "0,1,0,0\n", "line 4: 4 fields instead of 5"),
        (HEAD + "0,0,0,0,1\n", "a prompt's alone"),
        ("", "holds no routes"),
        ("\x00\xff", "more than ASCII"),
    ],
)
def test_a_file_that_is_no_use(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "routes.csv"
    path.write_text(text, encoding="latin-1")
    result = call(path)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_what_is_not_there_or_no_size(routes: Path, tmp_path: Path) -> None:
    for result, word in (
        (call(tmp_path / "none.csv"), "cannot be read"),
        (call(routes, "--memory-budget", "much"), "--memory-budget"),
        (call(routes, "--memory-budget", "0"), "--memory-budget"),
    ):
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert word in line
