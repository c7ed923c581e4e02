"""The record of terms in a data directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.patroni import record
from workloads.patroni.record import FILE, Claim, Record, load, newest_timeline, save, settle
from workloads.patroni.terms import Position, Term

TERM = Term(id="a" * 32, timeline=1, begin=0, leader="postgres-0")
CLAIM = Claim(id="c" * 32, peer_id="postgres-1", after=1)
BEGAN = Position(timeline=2, lsn=77)


def test_record_is_read_back(tmp_path: Path) -> None:
    """Terms and claim survive, and nothing else is left in the folder."""
    for kept in (Record(), Record(terms=(TERM,)), Record(terms=(TERM,), claim=CLAIM)):
        save(tmp_path, kept)
        assert load(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 9999, '{"terms":1}', '{"terms":[],"claim":{}}', "\xff"])
def test_broken_record_counts_as_missing(tmp_path: Path, text: str) -> None:
    """A file that cannot be read says nothing: then every member is asked."""
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    assert load(tmp_path) == Record()
    assert load(tmp_path / "nowhere") == Record()


@pytest.mark.parametrize(
    ("peer_id", "newest", "became"),
    [
        pytest.param("postgres-1", 2, True, id="promoted"),
        pytest.param("postgres-1", 1, False, id="never promoted"),
        pytest.param("postgres-0", 2, False, id="a claim that came with a copy"),
    ],
)
def test_claim_becomes_a_term(peer_id: str, newest: int, became: bool) -> None:
    """A promotion that nobody recorded is recognized by its claim, and by a timeline newer than before."""
    settled = settle(Record(terms=(TERM,), claim=CLAIM), peer_id, newest, BEGAN)
    own = Term(id=CLAIM.id, timeline=2, begin=77, leader="postgres-1")
    assert settled == Record(terms=(TERM, own) if became else (TERM,))


def test_newest_timeline_is_that_of_the_history_files(tmp_path: Path) -> None:
    """Each timeline but the first has a history file in pg_wal."""
    assert newest_timeline(tmp_path) == 1
    (tmp_path / "pg_wal").mkdir()
    for name in ("00000002.history", "0000000A.history", "0000000F.history.tmp", "000000010000000000000001"):
        (tmp_path / "pg_wal" / name).touch()
    assert newest_timeline(tmp_path) == 10


def test_record_lies_where_copies_take_it_along() -> None:
    """pg_basebackup and pg_rewind leave out names that begin with a dot or `pgsql_tmp`, or end in `.new` of theirs."""
    assert not record.FILE.startswith((".", "pgsql_tmp"))
