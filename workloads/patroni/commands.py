"""The commands of the container beside its program: `/app/patroni health`, `status`, `lead`. IO: files, Patroni's REST.

They read what the supervisor wrote into the private folder, and need none of its secrets. They import little: the
health check starts a Python each time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.patroni import asking, config, facts, members, standing, terms, wholeness
from workloads.patroni.election import Holding, Kind
from workloads.patroni.standing import State

SECONDS = 3.0
"""For an answer of the own Patroni, on loopback. For some it asks Consul, and goes on for longer than this where Consul
is away; the last word that it has from Consul is then that old."""
MAX_BYTES = 1 << 20
"""Of such an answer."""


class NotThereError(Exception):
    """The member does not run, or does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The own member, as its configuration says."""

    name: str
    run: Path
    rest: str
    """Host and port of its REST interface."""
    peers: Mapping[str, tuple[str, int]]
    """REST address of every member that the manifest lists, by peer ID."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its own REST interface."""
        host, _, port = self.rest.rpartition(":")
        return host, int(port)


def find(environ: Mapping[str, str]) -> Member:
    """The own member. NotThereError before its supervisor has written a configuration."""
    run = Path(environ.get("POSTGRES_RUN", "/run/patroni"))
    try:
        tree = json.loads((run / config.CONFIG).read_text(encoding="utf-8"))
        mesh = tree["mesh"]
        hosts = Path(mesh["hosts"]).read_text(encoding="utf-8")
        peers = members.addresses(hosts, mesh["route"], int(mesh["port"]), tree["name"])
        return Member(name=tree["name"], run=run, rest=tree["restapi"]["listen"], peers=peers)
    except FileNotFoundError as error:
        raise NotThereError(f"starting: the configuration is not written yet ({error.filename})") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotThereError(f"starting: the configuration in {run} cannot be read yet ({error})") from error


def health(member: Member) -> tuple[bool, str]:
    """Whether a failover would work, in one line. What compose's health check runs."""
    try:
        cluster, wanted = _get(member, "/cluster"), _get(member, "/config")
        judged = wholeness.judge(cluster, wanted, member.name, len(member.peers), standing.read(member.run))
    except (OSError, ValueError) as error:
        stands = standing.read(member.run)
        said = f": {stands.reason}" if stands.reason else ""
        return False, f"{_unanswered(member, error, time.time())}{said}"
    return judged.ready, judged.reason


def _unanswered(member: Member, error: Exception, now: float) -> str:
    """Why the own Patroni does not say how the cluster is. It asks Consul for that; what it says of itself it knows."""
    try:
        own = facts.read(_get(member, "/patroni"))
    except (OSError, ValueError):
        return f"Patroni does not answer on {member.rest} ({error})"
    silence = 0.0 if own.heard is None else now - own.heard
    if silence < SECONDS:
        return f"Patroni does not say how the cluster is ({error})"
    return f"no answer from Consul for {silence:.0f} s: are the coordinators there?"


def status(member: Member, *, own: bool = False) -> tuple[bool, list[str]]:
    """What this member is, and what each member has, a line each; and whether it is ready and every member answers.

    `own`: leaves the others out, for whoever asks each of them.
    """
    ready, reason = health(member)
    stands = standing.read(member.run)
    lines = [f"{member.name}: {'ready' if ready else 'not ready'}: {reason}"]
    if stands.state is State.FORK:
        lines.append(f"  fork: {stands.reason}")
    told = asking.ask({**member.peers, member.name: member.address}, facts.read)
    leader = next((fact for fact in told.values() if fact is not None and fact.leads), None)
    for peer, fact in sorted(told.items()):
        if not own or peer == member.name:
            has = "does not answer" if fact is None else fact.line(leader)
            lines.append(f"  {has}" if own else f"  {peer}: {has}")
    if stands.state is State.WAITING:
        lines += advice({peer: None if fact is None else fact.held for peer, fact in told.items()})
    return ready and (own or None not in told.values()), lines


def advice(answers: Mapping[str, Holding | None]) -> list[str]:
    """What a person can do for a member that waits, where members have said `answers`, a line each. Pure."""
    if answers and all(held is not None and held.kind is Kind.EMPTY for held in answers.values()):
        return [
            "No member has a database. If the disk of one is kept somewhere, start a CVM with it. If all are lost,",
            "allow a new, empty database: ./mesh database lead PEER --accept-loss",
        ]
    return [
        "Start the missing members: whoever may lead then does so by itself. If they are lost, allow the one that",
        "has most to lead: ./mesh database lead PEER --accept-loss",
    ]


def _listed(answers: Mapping[str, Holding | None]) -> list[str]:
    return [f"  {peer}: {'does not answer' if held is None else held}" for peer, held in sorted(answers.items())]


def lead(member: Member, accept_loss: bool, confirm: Callable[[str], bool]) -> tuple[bool, list[str]]:
    """Allows this member to lead a cluster that nobody else can lead: whether it is done, and what to say."""
    stands = standing.read(member.run)
    if stands.state is not State.WAITING:
        return False, [f"{member.name} does not wait for a word: {health(member)[1]}"]
    answers = asking.ask_all(member.peers)
    loss = losses(member.name, answers)
    lines = [f"{member.name} waits: {stands.reason}", *_listed(answers), *(f"may be lost: {text}" for text in loss)]
    if not accept_loss:
        return False, [*lines, "nothing was changed; to go on, repeat it with --accept-loss"]
    if not confirm("\n".join([*lines, f"Let {member.name} lead all the same?"])):
        return False, ["nothing was changed"]
    allowance = member.run / standing.ALLOWANCE
    allowance.touch(mode=0o600)
    os.utime(allowance)
    minutes = standing.ALLOWANCE_SECONDS / 60
    return True, [*lines, f"{member.name} may lead now; the word holds for {minutes:.0f} minutes, or until it is used"]


def losses(own: str, answers: Mapping[str, Holding | None]) -> list[str]:
    """What an operator gives up by letting `own` lead, a line each. Pure."""
    mine = answers.get(own)
    found = []
    if mine is not None and mine.kind is Kind.EMPTY:
        found.append(f"every write there ever was: {own} has no database, and makes a new, empty one")
    for peer, held in sorted(answers.items()):
        if peer == own or (held is not None and held.kind is Kind.EMPTY):
            continue
        if held is None or held.kind is Kind.UNSETTLED:
            found.append(f"every write that only {peer} has; what it has is not known")
        elif mine is None or held.position.timeline != mine.position.timeline:
            found.append(f"every write that only {peer} has: it is {held}")
        elif held.position.lsn > mine.position.lsn:
            size = held.position.lsn - mine.position.lsn
            found.append(f"the last {size} bytes of the log of {peer}, which reaches {terms.lsn(held.position.lsn)}")
        elif held.term and mine.term and held.term != mine.term:
            found.append(f"every write of {peer} on timeline {held.position.timeline}, which is another history")
    return found or ["nothing that the members which answered have"]


def _get(member: Member, path: str) -> Any:
    code, text = asking.get(member.address, path, SECONDS, MAX_BYTES)
    if code != 200:
        raise ValueError(f"status code {code} for GET {path}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
