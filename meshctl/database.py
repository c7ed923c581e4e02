"""`./mesh database`: what the members of a database have, and an operator's word on who leads. IO: the lab."""

from __future__ import annotations

import os
import sys

import click

from meshctl import readiness, runs
from meshctl.errors import UserError

PROGRAM = "/app/patroni"
"""The member's program in its container; its health check starts it too."""


@click.group()
def command() -> None:
    """Shows what the members of a database have, and settles who leads when Consul has lost its data."""


_name_option = click.option("--name", help="Which mesh, where several run.")


@command.command()
@_name_option
def status(name: str | None) -> None:
    """Shows what each member has, and whether a failover would work. Exit code 1 where it would not."""
    run = runs.find(name)
    members = _members(run)
    asked = [readiness.Check(peer=m.peer, container=m.container, argv=(PROGRAM, "status")) for m in members]
    for outcome in readiness.ask(run, asked):
        click.echo(outcome.said)
    if not all(outcome.passed for outcome in readiness.ask(run, members)):
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
    member = next((m for m in _members(run) if m.peer == peer), None)
    if member is None:
        raise UserError(f"{peer!r} is no member of a database that runs", "./mesh status names the CVMs")
    options = [*(["--accept-loss"] if accept_loss else []), *(["--yes"] if yes else [])]
    argv = exec_argv(run, peer, member.container, (PROGRAM, "lead", *options))
    os.environ["PYTHONPATH"] = str(runs.CHECKOUT)
    os.execv(argv[0], argv)


def _members(run: runs.Run) -> list[readiness.Check]:
    """The health checks of the members that run."""
    found = [check for check in readiness.of_run(run) if check.argv[:1] == (PROGRAM,)]
    if not found:
        raise UserError(
            f"no member of a database runs in {run.name!r}", "./mesh up clusters/patroni-demo brings one up"
        )
    return found
