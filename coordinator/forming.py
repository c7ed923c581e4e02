"""How a coordinator's Consul server may start: with its records, into a cluster that lives, or a new one. Pure.

Raft counts a vote by the address that it came from. A server that lost its log and answers at its old address would
vote as if it still had the log, and entries that a majority acknowledged could be lost; and Consul's own
`bootstrap_expect` founds a new cluster when a server with records is merely silent (`maybeBootstrap` in Consul's
agent/consul/server_serf.go goes on after failed calls). So a server without records starts only when the siblings,
who attested each other, have said that it may:

- a sibling has a leader, no older server at our address is left in the Raft configuration, and no sibling that is
  reached has records without following a leader: it joins;
- every sibling was asked and none has records: they found a cluster together.

When records are left on too few servers for a quorum, this coordinator waits: what siblings say of their disks can be
wrong, for a host that boots further CVMs of the app with empty disks has them say that theirs are lost. It goes on
alone (`RECOVER`) by the owners' word, which is a manifest that drops those that are lost, set on it while it waits. Of
the voters that the manifest keeps a majority must have records; the most recent ones go on, and the others join.
Whoever is kept and silent may hold records, and is waited for. Those that the manifest drops
are listened to for a while, as they may lead; once this server has had no leader for long, nothing that they or others
say keeps the owners' word from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Action(Enum):
    """What the Consul server does next."""

    RUN = "run"
    """Goes on with the records that it has."""
    JOIN = "join"
    """Starts empty and is taken in by the cluster's leader."""
    FOUND = "found"
    """Starts empty and founds the cluster together with all siblings."""
    RECOVER = "recover"
    """Starts with its records as the only server of the Raft configuration."""
    LEAVE = "leave"
    """Ends for good: its coordinator was dropped, and Raft does not count it any more."""
    WAIT = "wait"
    """Does not start (when it is empty)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a coordinator says of its Consul server. Answer of `POST /v1/coordinators/standing`."""

    records: bool | None
    """Whether its disk has Raft data; None when that cannot be told now."""
    led: bool = False
    """Its server knows a leader."""
    term: int = 0
    """Term of its last log entry."""
    index: int = 0
    """Index of its last log entry."""
    voters: tuple[str, ...] = ()
    """Mesh addresses in its Raft configuration."""
    room: bool = False
    """The cluster has no older server at the asking coordinator's address: it may start empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingRequest:
    """`POST /v1/coordinators/standing`, from a coordinator that holds a lease of the group `coordinator`."""

    lease: str
    """Secret."""
    server_id: str
    """Raft ID of the asking coordinator's disk; empty while it has none."""
    empty: bool
    """It has no records, and wants older servers at its address to be taken out of the Raft configuration."""


UNKNOWN = Standing(records=None)
"""Of a coordinator whose server says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An action, and the reason for status and log; empty when there is nothing to say."""

    action: Action
    reason: str = ""
    leaderless: bool = False
    """There are records here and no leader: a manifest that drops coordinators would let them go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """Another coordinator of the manifest. `standing` is None while it is not reached."""

    peer_id: str
    address: str
    standing: Standing | None


def decide(
    own: Standing,
    peer_id: str,
    address: str,
    siblings: tuple[Sibling, ...],
    leaving: tuple[Sibling, ...] = (),
    *,
    word: bool = False,
    long: bool = False,
) -> Decision:
    """What our server does, from what we and the siblings say. `peer_id` and mesh `address` are our own.

    `leaving`: coordinators that the manifest dropped and that Raft counts still. Who of them answers is counted, and
    nobody waits for one that does not. `word`: the owners set the manifest while this server had no leader. `long`: it
    has had none for long, whoever says that there is one; with the owners' word, what those say that the manifest drops
    counts no more then.
    """
    if own.records is None:
        return Decision(action=Action.RUN)
    if not own.records:
        return _empty(siblings)
    if own.led:
        return Decision(action=Action.RUN)
    if word and long:
        leaving = ()
    if led := [each for each in (*siblings, *leaving) if each.standing is not None and each.standing.led]:
        return _led_elsewhere(led, peer_id) if long else Decision(action=Action.RUN)
    found = _leaderless(own, peer_id, address, siblings, leaving, word)
    return replace(found, leaderless=found.leaderless or long)


def _empty(siblings: tuple[Sibling, ...]) -> Decision:
    led = [each for each in siblings if each.standing is not None and each.standing.led]
    # A server that follows no leader goes by the configuration that it has, in which our old server may still vote.
    # After a recovery servers that are empty yet could elect it, without what the leader has acknowledged.
    loose = [each for each in siblings if each.standing is not None and each.standing.records and not each.standing.led]
    if led and loose:
        return Decision(
            action=Action.WAIT, reason=f"the disk is empty; waits until {_names(loose)} follows {_names(led)}"
        )
    if any(each.standing is not None and each.standing.room for each in led):
        return Decision(action=Action.JOIN)
    if led:
        names = _names(led)
        return Decision(
            action=Action.WAIT,
            reason=f"the disk is empty; waits for {names} to take the server before it out of the cluster",
        )
    if all(each.standing is not None and each.standing.records is False for each in siblings):
        return Decision(action=Action.FOUND)
    return Decision(action=Action.WAIT, reason=f"the disk is empty; {_waiting(siblings)}")


def _leaderless(
    own: Standing,
    peer_id: str,
    address: str,
    siblings: tuple[Sibling, ...],
    leaving: tuple[Sibling, ...],
    word: bool,
) -> Decision:
    quorum = len(own.voters) // 2 + 1
    holders: Mapping[str, tuple[str, Standing]] = {
        address: (peer_id, own),
        **{each.address: (each.peer_id, each.standing) for each in siblings if each.standing and each.standing.records},
    }
    answering = holders.keys() | {each.address for each in leaving if each.standing and each.standing.records}
    if any(each.standing is None or each.standing.records is None for each in siblings):
        return _waits(f"{quorum} of {len(own.voters)} servers with records are needed; {_waiting(siblings)}", peer_id)
    if sum(voter in answering for voter in own.voters) >= quorum:
        return Decision(action=Action.RUN, reason="no leader yet; an election is under way")
    # Of equal records the first coordinator's: all have to choose alike.
    best = min(holders.values(), key=lambda each: (-each[1].term, -each[1].index, each[0]))[0]
    if best != peer_id:
        return _waits(f"waits for {best}, which has the most recent records", best)
    listed = {address, *(each.address for each in siblings)}
    kept = [voter for voter in own.voters if voter in listed]
    if 2 * sum(voter in holders for voter in kept) <= len(kept):
        lost = [each for each in siblings if each.address not in holders]
        return _waits(
            f"{quorum} of {len(own.voters)} servers with records are needed; {_names(lost)} "
            f"{'says' if len(lost) == 1 else 'say'} that the disk is empty",
            peer_id,
        )
    if not word:
        gone = ", ".join(voter for voter in own.voters if voter not in listed)
        return Decision(
            action=Action.RUN,
            reason=f"no leader: the manifest drops {gone}, which may have what is missing here: start them. If their "
            f"disks are lost for good, ./mesh set the manifest on {peer_id} (again)",
            leaderless=True,
        )
    return Decision(
        action=Action.RECOVER,
        reason="the manifest drops the coordinators that are missing; the records here go on alone",
        leaderless=True,
    )


def _led_elsewhere(led: list[Sibling], peer_id: str) -> Decision:
    """That others follow a leader, as they say, and this server has none: who means ill may say so for ever."""
    says = "says" if len(led) == 1 else "say"
    return _waits(f"{_names(led)} {says} that there is one, which does not reach this coordinator", peer_id)


def _waits(reason: str, peer_id: str) -> Decision:
    """That there is no leader for `reason`, and how the owners let the records of `peer_id` go on."""
    return Decision(
        action=Action.RUN,
        reason=f"no leader: {reason}. If disks are lost for good, sign a manifest that drops their coordinators, and "
        f"./mesh set it on {peer_id}",
        leaderless=True,
    )


def _waiting(siblings: tuple[Sibling, ...]) -> str:
    """Who is waited for, and why."""
    silent = [each for each in siblings if each.standing is None]
    untold = [each for each in siblings if each.standing is not None and each.standing.records is None]
    holding = [each for each in siblings if each.standing is not None and each.standing.records]
    parts = (
        (silent, "not reached"),
        (untold, "reached, but its records cannot be read"),
        (holding, "has records, and no leader"),
    )
    said = [f"{_names(found)} ({what})" for found, what in parts if found]
    return f"waits for {', '.join(said)}" if said else "asks its siblings"


def _names(siblings: list[Sibling]) -> str:
    return ", ".join(each.peer_id for each in siblings)
