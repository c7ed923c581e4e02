"""`./mesh database`: what the members of a database have, and an operator's word on who leads. IO: the lab."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from meshctl import readiness, runs
from meshctl.errors import UserError
from topology.model import COORDINATOR

PROGRAM = "/app/patroni"
"""The member's program in its container; its health check starts it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The members of the databases of a mesh: one for each slot of a group whose health check is `PROGRAM`."""

    running: tuple[readiness.Check, ...]
    """Of the CVMs that run."""
    down: Mapping[str, str]
    """State of each other CVM, by what it is called now."""
    vacant: tuple[str, ...]
    """Slots that no CVM has."""
    coordinators: Mapping[str, str]
    """State of each coordinator that does not run: without them no member leads for long."""
    others: tuple[str, ...] = ()
    """What the CVMs without a database are called."""

    def named(self) -> str:
        """What the CVMs with a member are called, for a person."""
        return ", ".join(sorted((*(check.peer for check in self.running), *self.down)))


def members_of(
    raw: Mapping[str, Any],
    slots: Mapping[str, Sequence[str]],
    of_group: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Members:
    """The members, by the lab's raw status, the peer IDs of each group, and the health checks of each group. Pure."""
    groups = {name for name, found in of_group.items() if any(argv[:1] == (PROGRAM,) for argv in found.values())}
    machines = [machine for machine in raw["machines"] if machine["group"] in groups]
    taken = {machine["peer_id"] for machine in machines}
    return Members(
        running=tuple(check for check in readiness.checks(raw, of_group) if check.argv[:1] == (PROGRAM,)),
        down={machine["peer_id"]: machine["state"] for machine in machines if machine["state"] != "running"},
        coordinators={
            machine["peer_id"]: machine["state"]
            for machine in raw["machines"]
            if machine["group"] == COORDINATOR and machine["state"] != "running"
        },
        vacant=tuple(slot for group in slots if group in groups for slot in slots[group] if slot not in taken),
        others=tuple(machine["peer_id"] for machine in raw["machines"] if machine["group"] not in groups),
    )


def report(outcomes: Sequence[readiness.Outcome], members: Members) -> list[str]:
    """What a person reads: each slot of the group, then what can be done. Pure."""
    lines: list[str] = []
    advice: dict[str, None] = {}
    for outcome in outcomes:
        first, *rest = outcome.said.splitlines() or ["said nothing"]
        lines.append(first if first.startswith(outcome.check.peer) else f"{outcome.check.peer}: {first}")
        lines += [line for line in rest if line.startswith(" ")]
        # Members that wait for the same give the same advice.
        advice |= dict.fromkeys(["\n".join(line for line in rest if not line.startswith(" "))])
    lines += [f"{name}: {state}" for name, state in members.down.items()]
    takes = ": a CVM of the group that starts gets this slot" if members.down else ""
    lines += [f"{slot}: not there{takes}" for slot in members.vacant]
    lines += [f"{name}: {state}" for name, state in members.coordinators.items()]
    if members.down or members.coordinators:
        lines.append(f"Start what is down: ./mesh start {' '.join((*members.coordinators, *members.down))}")
    return [*lines, *filter(None, advice)]


@click.group()
def command() -> None:
    """Shows what the members of a database have, and settles who leads when Consul has lost its data."""


_name_option = click.option("--name", help="Which mesh, where several run.")


@command.command()
@_name_option
def status(name: str | None) -> None:
    """Shows what each member has, and whether a failover would work. Exit code 1 where a member is not ready or not
    there.
    """
    run = runs.find(name)
    members = _members(run)
    argv = (PROGRAM, "status", "--own")
    asked = [readiness.Check(peer=m.peer, container=m.container, argv=argv) for m in members.running]
    outcomes = readiness.ask(run, asked)
    for line in report(outcomes, members):
        click.echo(line)
    if members.down or members.vacant or not all(outcome.passed for outcome in outcomes):
        sys.exit(1)


@command.command()
@click.argument("peer")
@click.option("--accept-loss", is_flag=True, help="Give up what only other members have.")
@click.option("--yes", is_flag=True, help="Do not ask again.")
@_name_option
def lead(peer: str, accept_loss: bool, yes: bool, name: str | None) -> None:
    """Lets the member PEER lead although others cannot be asked, or have more.

    Needed only when members are lost for good: the leader and its synchronous standby, or any of them when all
    coordinators have lost their disks too. It says first what may be lost.
    """
    from meshctl.lab_commands import exec_argv

    run = runs.find(name)
    member = _chosen(_members(run), run.names().get(peer, peer))
    options = [*(["--accept-loss"] if accept_loss else []), *(["--yes"] if yes else [])]
    argv = exec_argv(run, member.peer, member.container, (PROGRAM, "lead", *options))
    os.environ["PYTHONPATH"] = str(runs.CHECKOUT)
    os.execv(argv[0], argv)


def _chosen(members: Members, peer: str) -> readiness.Check:
    """The member called `peer`. UserError says why there is none that could be told to lead."""
    for member in members.running:
        if member.peer == peer:
            return member
    if peer in members.down:
        raise UserError(f"{peer} is {members.down[peer]}: only a member that runs can lead", f"./mesh start {peer}")
    reason = f"{peer} runs no database" if peer in members.others else f"there is no CVM {peer!r}"
    raise UserError(reason, f"the members of the database are {members.named()}")


def _members(run: runs.Run) -> Members:
    """The members. UserError in a mesh without a database."""
    cluster = readiness.cluster_of(run)
    slots = {group.name: group.peers() for group in cluster.groups}
    found = members_of(run.call("GET", "/status"), slots, readiness.by_group(cluster))
    if not (found.running or found.down or found.vacant):
        raise UserError(f"the mesh {run.name!r} has no database", "./mesh up clusters/patroni-demo brings one up")
    return found
