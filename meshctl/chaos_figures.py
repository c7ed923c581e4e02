"""What a chaos round showed, as values: recovery time, lost writes, writes of a demoted leader, statistics. Pure.

Times are seconds of one clock. A write counts as acknowledged when the database has said so to the client, and as lost
when it was acknowledged and the leader does not have it once the cluster is whole again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, get_args

from meshctl.bench_report import percentile

Fault = Literal[
    "crash-postgres",
    "crash-patroni",
    "crash-envoy",
    "crash-sidecar",
    "cvm-loss",
    "partition-both",
    "partition-in",
    "partition-out",
    "switchover",
    "coordinators-restart",
    "coordinators-lost",
    "coordinator-and-members",
    "rolling-update",
    "disk-full",
    "rest-attack",
    "check-attack",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
STAYS: frozenset[Fault] = frozenset({"coordinators-restart", "coordinators-lost", "rest-attack", "check-attack"})
"""Faults that must not move the leader, nor close a connection to it. The longest pause of writes is measured."""
PAUSES: frozenset[Fault] = STAYS | {"switchover", "rolling-update"}
"""Faults whose recovery time is the longest pause of writes: the leader serves on for a while after they began."""
BY_DEFAULT = tuple(fault for fault in FAULTS if fault not in ("crash-sidecar", "disk-full"))
"""What a run without `--fault` makes. A killed sidecar is for those who ask. A full disk needs disks of a limited size:
the mesh that a run brings up for it has them, one that runs already may not.
"""
Row = tuple[int, int]
"""Writer and number: what identifies a row of a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """A write that was acknowledged."""

    writer: int
    seq: int
    start: float
    end: float
    timeline: int
    """Of the server that acknowledged it; each promotion makes a new one."""
    peer: str
    """Of the CVM whose server that was."""

    @property
    def row(self) -> Row:
        """What identifies it."""
        return (self.writer, self.seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One fault and what clients saw of it."""

    fault: Fault
    number: int
    victim: str
    """The CVM that was hit."""
    at: float
    """When."""
    leader: str
    """Who led before."""
    new_leader: str
    """And afterwards."""
    rto: float | None
    """Seconds to the first acknowledged write; None: there was none within the bound."""
    closed: Mapping[str, float | None]
    """Per held connection: seconds until it was closed; None: it was not, within the bound."""
    decided: float | None
    """Seconds until the caller's sidecar had decided that the old leader is none; None: it did not."""
    acknowledged: int
    unknown: int
    """Writes whose outcome the client was not told."""
    lost: tuple[Ack, ...]
    demoted: tuple[Ack, ...]
    """Acknowledged by a leader after its successor had acknowledged others."""
    reads: int
    read_gap: float | None
    """Longest time without an answer from a replica's route."""
    forked: tuple[str, ...] = ()
    """Members that have another history than the leader, or other rows, after the cluster is whole: each counts as a
    loss."""
    problem: str = ""
    """Why it is no good as a sample; empty: it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A few numbers about many; each None without a sample."""

    median: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All rounds of one fault."""

    fault: Fault
    rounds: int
    rto: Spread
    closed: Spread
    """Of the round's last held connection."""
    acknowledged: int
    lost: int
    demoted: int
    unknown: int
    never_closed: int
    """Held connections that were not closed within the bound."""
    forked: int
    """Members that forked, or had other rows."""
    read_gap: Spread


def recovery(acks: Iterable[Ack], at: float, timeline: int, *, pause: bool) -> float | None:
    """Seconds from `at` to the first acknowledged write after the outage; `pause`: from the last one before it.

    None when nothing was acknowledged afterwards.
    """
    found = outage(acks, at, timeline)
    if found is None:
        return None
    begin, end = found
    return max(0.0, end - (begin if pause else at))


def outage(acks: Iterable[Ack], at: float, timeline: int) -> tuple[float, float] | None:
    """When the last write before it and the first after it were acknowledged; None when nothing was afterwards.

    Where a new leader has taken over, it ends with the first write beyond `timeline`. Where none has, see `pause`.
    """
    ordered = sorted(acks, key=lambda ack: ack.end)
    beyond = [ack for ack in ordered if ack.timeline > timeline and ack.end > at]
    before = [ack.end for ack in ordered if ack.timeline <= timeline]
    if beyond:
        end = beyond[0].end
        begin = max((moment for moment in before if moment <= end), default=at)
        return begin, end
    return pause(ordered, at)


def pause(acks: Iterable[Ack], at: float) -> tuple[float, float] | None:
    """The longest time without an acknowledged write that ends after `at`: its begin and its end."""
    ends = sorted(ack.end for ack in acks)
    gaps = [(later - earlier, earlier, later) for earlier, later in pairwise(ends) if later > at]
    if not gaps:
        return None
    _, begin, end = max(gaps)
    return begin, end


def decision(lines: Iterable[str], route: str, leader: str, after: float) -> float | None:
    """When a sidecar took `route` away from `leader`, as the lines of its log tell, in seconds since the epoch.

    The first time after the moment `after`; None when it did not.
    """
    wanted = {'event="role moves"', f"route={route}", f"was={leader}"}
    for line in lines:
        if all(word in line for word in wanted):
            stamp = line.partition("time=")[2].split(" ", 1)[0]
            moment = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
            # The stamp has milliseconds, cut off.
            if moment + 0.001 > after:
                return moment
    return None


def lost(acks: Iterable[Ack], rows: Iterable[Sequence[int]]) -> tuple[Ack, ...]:
    """The acknowledged writes that `rows` do not have."""
    present = {(int(writer), int(seq)) for writer, seq in rows}
    return tuple(ack for ack in acks if ack.row not in present)


def after_demotion(acks: Sequence[Ack]) -> tuple[Ack, ...]:
    """Writes that began after a later timeline had acknowledged one, and were acknowledged on an earlier one."""
    first: dict[int, float] = {}
    for ack in acks:
        first[ack.timeline] = min(ack.end, first.get(ack.timeline, ack.end))
    return tuple(ack for ack in acks if any(line > ack.timeline and began < ack.start for line, began in first.items()))


def longest_gap(moments: Iterable[float]) -> float | None:
    """The longest time between two moments that follow each other; None for fewer than two."""
    ordered = sorted(moments)
    return max((later - earlier for earlier, later in pairwise(ordered)), default=None)


def spread(samples: Iterable[float | None]) -> Spread:
    """Median, p99 and the largest of those that are known."""
    known = [sample for sample in samples if sample is not None]
    if not known:
        return Spread(median=None, p99=None, max=None)
    return Spread(median=percentile(known, 50), p99=percentile(known, 99), max=max(known))


def last_closed(closed: Mapping[str, float | None]) -> float | None:
    """When the last of the held connections was closed; None when one was not, or none was held."""
    known = [moment for moment in closed.values() if moment is not None]
    return max(known) if known and len(known) == len(closed) else None


def summaries(rounds: Sequence[Round]) -> tuple[Summary, ...]:
    """One per fault that has a round, in the order of FAULTS."""
    found = []
    for fault in FAULTS:
        own = [each for each in rounds if each.fault == fault]
        if own:
            found.append(
                Summary(
                    fault=fault,
                    rounds=len(own),
                    rto=spread(each.rto for each in own),
                    closed=spread(last_closed(each.closed) for each in own),
                    acknowledged=sum(each.acknowledged for each in own),
                    lost=sum(len(each.lost) for each in own),
                    demoted=sum(len(each.demoted) for each in own),
                    unknown=sum(each.unknown for each in own),
                    never_closed=sum(moment is None for each in own for moment in each.closed.values()),
                    forked=sum(len(each.forked) for each in own),
                    read_gap=spread(each.read_gap for each in own),
                )
            )
    return tuple(found)


def document(found: Iterable[Summary]) -> dict[str, Any]:
    """The contract of `chaos --json` (docs/cli.md)."""
    return {
        "faults": [
            {
                "fault": each.fault,
                "rounds": each.rounds,
                "rto_s": asdict(each.rto),
                "old_connection_closed_s": asdict(each.closed),
                "writes_acknowledged": each.acknowledged,
                "writes_lost": each.lost,
                "members_forked": each.forked,
            }
            for each in found
        ]
    }
