"""The record of terms in a member's data directory. IO: that one file.

It lies in the data directory on purpose. `pg_basebackup` and `pg_rewind` copy files that they do not know, so a fresh
or a rewound copy carries its leader's record; and when the data go, the record goes with them. What a record says is
therefore true of the data beside it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workloads.patroni import terms as lists
from workloads.patroni.terms import Position, Term, Terms

log = logging.getLogger(__name__)

FILE = "mesh.terms"
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A promotion that was begun: written when the leader key is won, before PostgreSQL is asked to promote.

    A member that dies between its promotion and the record of its term knows by its claim that the timeline is its own.
    """

    id: str
    """Of the term that it becomes."""
    peer_id: str
    after: int
    """The newest timeline before the promotion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the file holds."""

    terms: Terms = ()
    claim: Claim | None = None


def load(data: Path) -> Record:
    """The record of the data directory `data`; an empty one where there is none, or none that can be read."""
    path = data / FILE
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(lists.MAX_BYTES * 2)
        tree = json.loads(text)
        claim = _claim(tree.get("claim"))
        return Record(terms=lists.parse(json.dumps(tree["terms"])), claim=claim)
    except FileNotFoundError:
        return Record()
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # Without a record every member is asked before this one leads: more careful than need be, never less.
        log.warning("%s cannot be read, and counts as missing: %r", path, error)
        return Record()


def _claim(tree: Any) -> Claim | None:
    if tree is None:
        return None
    claim = Claim(id=str(tree["id"]), peer_id=str(tree["peer_id"]), after=int(tree["after"]))
    if not _ID.fullmatch(claim.id):
        raise ValueError(f"the claim has the id {claim.id!r}, expected 32 hex digits")
    return claim


def save(data: Path, record: Record) -> None:
    """Replaces the record; it is on the disk when this returns. OSError where the disk refuses."""
    claim = None if record.claim is None else asdict(record.claim)
    text = json.dumps({"claim": claim, "terms": [asdict(term) for term in record.terms]}, indent=1)
    path, new = data / FILE, data / f"{FILE}.new"
    with new.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(data)


def sync(folder: Path) -> None:
    """Returns when the disk has the names in `folder`. OSError where it refuses."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest_timeline(data: Path) -> int:
    """The newest timeline that the data directory knows: each but the first one has a history file, which stays."""
    try:
        names = [path.name for path in (data / "pg_wal").iterdir()]
    except OSError:
        names = []
    return max([1, *(int(match[1], 16) for match in map(_HISTORY.fullmatch, names) if match)])


def settle(record: Record, peer_id: str, newest: int, began: Position) -> Record:
    """The record without its claim. Pure.

    The claim becomes a term where the promotion has happened: `newest`, the newest timeline of the data, is beyond the
    one of before. `began`: that timeline and where it begins. A claim of another peer came with a copy of its data.
    """
    claim = record.claim
    if claim is None or claim.peer_id != peer_id or newest <= claim.after:
        return Record(terms=record.terms)
    term = Term(id=claim.id, timeline=began.timeline, begin=began.lsn, leader=peer_id)
    return Record(terms=lists.extend(record.terms, term))
