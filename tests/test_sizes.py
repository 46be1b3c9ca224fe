"""Sizes are read as written, and refused with a remedy."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketmoe.errors import InputError
from pocketmoe.sizes import format_size, parse_size

UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 3 * 2**29),
        (".5KiB", 512),
        ("4096", 4096),
        ("4096B", 4096),
        ("  2gib\n", 2 * 2**30),
        ("0.3 KB", 300),
        ("1.0009765625KiB", 1025),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_examples(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@given(st.integers(1, 2**22), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_any_whole_number_of_any_unit_in_any_case(number: int, unit: str, gap: str) -> None:
    for written in (unit, unit.lower(), unit.upper()):
        assert parse_size(f"{number}{gap}{written}") == number * UNITS[unit]


@given(st.integers(1, 1000 * 2**40))
def test_a_formatted_size_reads_back_to_its_one_decimal(nbytes: int) -> None:
    text = format_size(nbytes)
    number, unit = text.split()
    assert float(number) < 1024
    assert abs(parse_size(text) - nbytes) <= 0.05 * UNITS[unit] + 1


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_a_larger_size_never_reads_smaller(one: int, other: int) -> None:
    small, large = (format_size(nbytes) for nbytes in sorted((one, other)))
    as_bytes = [float(text.split()[0]) * UNITS[text.split()[1]] for text in (small, large)]
    assert as_bytes[0] <= as_bytes[1]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**51, "2048.0 TiB"),
    ],
)
def test_formats(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "512MiB"),
        ("GiB", "512MiB"),
        ("-1", "positive"),
        ("-2GiB", "positive"),
        ("nan", "positive"),
        ("inf", "positive"),
        ("1e9", "unit"),
        ("1_000", "positive"),
        ("1,5GB", "1.5GB"),
        ("2 Gi B", "positive"),
        ("\u0663GiB", "positive"),  # a digit, but not one of ours
        ("2\u212aiB", "positive"),  # the Kelvin sign, which lowercases to k
        ("2G", "'G'"),
        ("2GiBs", "'GiBs'"),
        ("12XB", "'XB'"),
        ("0", "less than one byte"),
        ("0.0GiB", "less than one byte"),
        ("1.5", "without a unit"),
        ("9999999TiB", "more than a file"),
        ("9" * 5000, "positive"),
        ("2GiB\nor\nso", "positive"),
    ],
)
def test_what_is_no_size_is_refused_in_one_line_with_a_remedy(text: str, named: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_size(text)
    message = str(refusal.value)
    assert named in message
    assert "MiB" in message or "GiB" in message
    assert "\n" not in message
    assert len(message) < 200


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse_size(text) >= 1
