"""Each boundary, given what it should take, what was found by fuzzing, and what breaks parsers: without a fuzzer."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator

import pytest

from tests.fuzz import catalogue
from tests.fuzz.registry import CORPUS, GOOD, HARNESSES, inputs

NAMES = sorted(HARNESSES)
pytestmark = pytest.mark.timeout(600)
"""Of the slowest, which take 10 s, on a machine that is busy with the rest of the suite."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Refusals and records that are left out are logged, for each input."""
    with caplog.at_level(logging.CRITICAL, "coordinator"):
        yield


def test_each_harness_has_inputs_and_each_folder_a_harness() -> None:
    """A corpus that nobody reads shows nothing, nor does a harness without one."""
    assert {path.name for path in CORPUS.iterdir()} == set(HARNESSES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_good_is_taken(name: str) -> None:
    """The harness gets past the first check: what the programs themselves make is taken."""
    good = {file: data for file, data in inputs(name).items() if file.startswith(GOOD)}
    assert good
    assert [file for file, data in good.items() if not HARNESSES[name](data)] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_was_found_is_foreseen(name: str) -> None:
    """Each kept input ends in an error that the boundary names, or is taken."""
    for data in inputs(name).values():
        HARNESSES[name](data)


@pytest.mark.parametrize("name", NAMES)
def test_what_breaks_parsers_is_foreseen(name: str) -> None:
    """The catalogue, by itself and where the first byte chooses."""
    harness = HARNESSES[name]
    chosen = {data[:1] for data in inputs(name).values() if data[:1] < b" "}
    beginnings = (b"",) if harness.slow else (b"", *chosen)
    for what, data in catalogue.short() if harness.slow else catalogue.known_bad():
        for first in beginnings:
            _try(name, what, first + data)
    for what, data in () if harness.slow else catalogue.ONE_BYTE.items():
        _try(name, what, data)


@pytest.mark.parametrize("name", NAMES)
def test_one_thing_wrong_is_foreseen(name: str) -> None:
    """Good JSON with one value that breaks parsers, wherever that is."""
    for file, good in inputs(name).items():
        if file.startswith(GOOD):
            for first in (b"", good[:1]):
                for what, data in catalogue.bent(good[len(first) :]):
                    _try(name, f"{file}, {what}", first + data)


def _try(name: str, what: str, data: bytes) -> None:
    try:
        HARNESSES[name](data)
    except BaseException as error:  # noqa: BLE001 - whatever it is, and a RecursionError has no traceback to show
        calls = " < ".join(f"{at.filename}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[:-9:-1])
        pytest.fail(
            f"{name}, given {what} ({data[:80]!r}, {len(data)} bytes): {error!r:.400} at {calls}", pytrace=False
        )
