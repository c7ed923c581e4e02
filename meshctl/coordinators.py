"""`./mesh coordinators`: an operator's word to a coordinator that waits for one. IO: the lab."""

from __future__ import annotations

import os

import click

from meshctl import runs


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

    options = [*(["--accept-loss"] if accept_loss else []), *(["--yes"] if yes else [])]
    argv = exec_argv(runs.find(name), peer, None, ("python", "-m", "coordinator", "recover", *options))
    os.environ["PYTHONPATH"] = str(runs.CHECKOUT)
    os.execv(argv[0], argv)
