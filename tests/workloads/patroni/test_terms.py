"""Terms as values: lists compared, and what comes from Consul parsed."""

from __future__ import annotations

import json

import pytest

from workloads.patroni.terms import (
    MAX_BYTES,
    MAX_TERMS,
    Position,
    Remedy,
    Term,
    Terms,
    compare,
    dump,
    extend,
    knows,
    lsn,
    parse,
)


def term(timeline: int, mark: str = "a", begin: int | None = None) -> Term:
    """A term of that timeline; another `mark` is another promotion."""
    begin = (timeline - 1) * 100 if begin is None else begin
    return Term(id=f"{timeline:x}{mark}".rjust(32, "0"), timeline=timeline, begin=begin, leader=f"postgres-{mark}")


def terms(*timelines: int) -> Terms:
    """Terms of one history."""
    return tuple(term(timeline) for timeline in timelines)


@pytest.mark.parametrize(
    ("own", "at", "leader", "remedy"),
    [
        pytest.param(terms(1, 2), None, terms(1, 2), None, id="same history"),
        pytest.param(terms(1), None, terms(1, 2, 3), None, id="behind"),
        pytest.param((), Position(timeline=1, lsn=5), terms(1), None, id="nothing recorded yet"),
        pytest.param(terms(1, 2), None, (), None, id="the leader has not said"),
        pytest.param((term(1), term(2, "b")), None, terms(1, 2), Remedy.COPY, id="one number, two promotions"),
        pytest.param((term(1), term(2, "b")), None, terms(1, 2, 3), Remedy.COPY, id="the leader is further"),
        pytest.param(
            (term(1), term(2, "b"), term(3, "b")), None, terms(1, 2), Remedy.COPY, id="this member is further"
        ),
        pytest.param((term(1, "b"),), None, terms(1), Remedy.COPY, id="two clusters"),
        pytest.param(terms(1, 2, 3), None, terms(1, 2), Remedy.REWIND, id="a timeline too many"),
        pytest.param(terms(1, 3), None, terms(1, 2, 4), Remedy.REWIND, id="a timeline beside the leader's"),
        pytest.param(terms(1, 2), None, terms(4, 5), None, id="older than the leader's list"),
        pytest.param(terms(1), Position(timeline=1, lsn=100), terms(1, 2), None, id="up to the switch point"),
        pytest.param(terms(1), Position(timeline=1, lsn=101), terms(1, 2), Remedy.REWIND, id="beyond it"),
        pytest.param(terms(1), Position(timeline=1, lsn=999), terms(1), None, id="ahead on the leader's timeline"),
        pytest.param(terms(1), Position(timeline=3, lsn=1), terms(1, 2), Remedy.REWIND, id="on a later timeline"),
    ],
)
def test_lists_are_compared(own: Terms, at: Position | None, leader: Terms, remedy: Remedy | None) -> None:
    """Another ID for one timeline needs a fresh copy; a timeline or a log beyond the leader's needs a rewind."""
    fork = compare(own, at, leader)
    assert (fork and fork.remedy) == remedy


def test_reason_names_both_promotions() -> None:
    """Whoever reads of a fork learns which timeline it is, and who was promoted on either side."""
    fork = compare((term(1), term(2, "b")), None, terms(1, 2))
    assert fork is not None
    assert all(word in fork.reason for word in ("timeline 2", "postgres-a", "postgres-b"))


def test_extend_replaces_what_others_promoted() -> None:
    """A promotion ends the list: terms of its timeline or later belong to a log that this member does not have."""
    assert extend(terms(1, 2, 3), term(2, "b")) == (term(1), term(2, "b"))
    assert extend((), term(1)) == terms(1)
    assert len(extend(terms(*range(1, MAX_TERMS + 1)), term(MAX_TERMS + 1))) == MAX_TERMS


@pytest.mark.parametrize(
    ("known", "own", "good"),
    [
        (terms(1, 2, 3), terms(1, 2), True),
        (terms(1, 2), terms(1, 2), True),
        (terms(1), terms(1, 2), False),
        ((), terms(1), False),
        (terms(1), (), False),
        ((term(1), term(2, "b")), terms(1, 2), False),
    ],
)
def test_memory_is_no_older_than_the_member(known: Terms, own: Terms, good: bool) -> None:
    """Consul remembers a cluster for a member when it has that member's newest term."""
    assert knows(known, own) is good


def test_text_is_read_back() -> None:
    """A full list survives being written and read, within the bound of a text."""
    full = tuple(
        Term(id="f" * 32, timeline=(1 << 31) + number, begin=(1 << 63) + number, leader="p" * 63)
        for number in range(MAX_TERMS)
    )
    assert parse(dump(full)) == full
    assert len(dump(full)) < MAX_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "{}", "[1]", "[[]]", "[{}]", "9" * (MAX_BYTES + 1), "[" * 20000, json.dumps([{}] * (MAX_TERMS + 1)),
        dump(terms(2, 1)), dump(terms(1, 1)),
        dump((term(1),)).replace('"begin":0', '"begin":-1'),
        dump((term(1),)).replace('"timeline":1', '"timeline":true'),
        dump((term(1),)).replace('"timeline":1', '"timeline":0'),
        dump((term(1),)).replace("postgres-a", "../x"),
        dump((term(1),)).replace("0000", "zzzz"),
    ],
)  # fmt: skip
def test_broken_text_is_refused(text: str) -> None:
    """What anybody may have written into the key ends in a ValueError, never in another way."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_position_is_written_as_postgresql_does() -> None:
    """A position in a message is one that can be given to PostgreSQL's own tools."""
    assert lsn((1 << 32) + 0x3000148) == "1/3000148"
