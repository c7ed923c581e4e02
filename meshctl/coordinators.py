"""`./mesh coordinators`: an operator's word to a coordinator that waits for one. IO: the lab."""

from __future__ import annotations

import os

import click

from meshctl import runs
from meshctl import status as statuses
from meshctl.errors import UserError
from topology.model import COORDINATOR


@click.group()
def command() -> None:
    """Settles what coordinators cannot know."""


@command.command()
@click.argument("peer")
@click.option("--accept-loss", is_flag=True, help="Give up what only the voters that are gone have.")
@click.option("--yes", is_flag=True, help="Do not ask again.")
@click.option("--name", help="Which mesh, where several run.")
def recover(peer: str, accept_loss: bool, yes: bool, name: str | None) -> None:
    """Lets the coordinator PEER go on alone although its cluster has voters that the manifest does not list.

    Needed only when a manifest has dropped so many coordinators that those which stay are no majority. It says first
    which voters are given up, and what may be lost.
    """
    from meshctl.lab_commands import exec_argv

    run = runs.find(name)
    machines = statuses.collect(run)["machines"]
    known = sorted(m["peer_id"] for m in machines if m["group"] == COORDINATOR)
    if peer not in known:
        raise UserError(f"{peer!r} is no coordinator of {run.name!r}", f"its coordinators: {', '.join(known)}")
    options = [*(["--accept-loss"] if accept_loss else []), *(["--yes"] if yes else [])]
    argv = exec_argv(run, peer, None, ("python", "-m", "coordinator", "recover", *options))
    os.environ["PYTHONPATH"] = str(runs.CHECKOUT)
    os.execv(argv[0], argv)
