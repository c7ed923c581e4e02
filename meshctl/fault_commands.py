"""The commands that break a CVM and mend it, or deploy it anew: kill, stop, start, cut, heal, redeploy."""

from __future__ import annotations

from urllib.parse import urlencode

import click

from meshctl import runs
from meshctl.errors import UserError

_name_option = click.option("--name", help="Which mesh, when several run. Default: the cluster's name.")
_peers_argument = click.argument("peers", nargs=-1, required=True)


def chosen(name: str | None, peers: tuple[str, ...]) -> runs.Run:
    """The mesh, once all `peers` are CVMs of it: a typo in the last must not leave half of it done."""
    run = runs.find(name)
    names = run.names()
    for peer in peers:
        if peer not in names and peer not in names.values():
            raise UserError(f"there is no CVM {peer!r}", runs.nearest(peer, names.values()))
    return run


@click.command()
@_peers_argument
@click.option("--process", metavar="NAME", help="Kill only this program, in the CVM's containers: envoy, postgres, …")
@click.option("--disk", is_flag=True, help="The CVM loses its disk too: everything in its named volumes.")
@_name_option
def kill(peers: tuple[str, ...], process: str | None, disk: bool, name: str | None) -> None:
    """Takes a CVM away from one moment to the next, as a power cut would; with --process, one program in it."""
    if disk and process is not None:
        raise UserError("--disk is of a whole CVM, and --process of one program in it", "leave one of them out")
    run = chosen(name, peers)
    for peer in peers:
        if process is None:
            _change(run, peer, "kill")
            if disk:
                run.call("POST", f"/machines/{peer}/wipe", seconds=60.0)
                click.echo(f"the disk of {peer} is empty")
        else:
            run.call("POST", f"/machines/{peer}/signal?{urlencode({'process': process})}")
            click.echo(f"{process} in {peer} was killed")


def _change(run: runs.Run, peer: str, action: str) -> None:
    """Changes whether a CVM runs, and says what it is now; also that it was so before."""
    answer = run.call("POST", f"/machines/{peer}/{action}", seconds=60.0)
    click.echo(f"{peer} is {answer['state']}{' already' if answer['before'] == answer['state'] else ''}")


def _action(action: str, text: str) -> click.Command:
    @click.command(name=action, help=text)
    @_peers_argument
    @_name_option
    def act(peers: tuple[str, ...], name: str | None) -> None:
        run = chosen(name, peers)
        for peer in peers:
            _change(run, peer, action)

    return act


stop = _action("stop", "Shuts a CVM down cleanly.")
start = _action("start", "Starts a CVM that was killed or stopped.")


@click.command()
@_peers_argument
@click.option(
    "--direction",
    type=click.Choice(["in", "out", "both"]),
    default="both",
    help="Which packets are lost: those to the CVM, those from it, or all (default).",
)
@_name_option
def cut(peers: tuple[str, ...], direction: str, name: str | None) -> None:
    """Cuts a CVM off from the network: its packets are lost, while it and its interfaces go on."""
    run = chosen(name, peers)
    for peer in peers:
        answer = run.call("POST", f"/machines/{peer}/cut?{urlencode({'direction': direction})}")
        click.echo(f"{peer} is cut off ({answer['cut']}); ./mesh heal {peer} ends it")


@click.command()
@_peers_argument
@_name_option
def heal(peers: tuple[str, ...], name: str | None) -> None:
    """Ends every cut of a CVM."""
    run = chosen(name, peers)
    for peer in peers:
        run.call("POST", f"/machines/{peer}/heal")
        click.echo(f"{peer} is connected")


@click.command()
@_peers_argument
@_name_option
def redeploy(peers: tuple[str, ...], name: str | None) -> None:
    """Deploys a CVM anew with its compose file as that is now, as a cloud's update does it.

    It is the same instance of the same app, and measures another compose hash: it is admitted by a manifest that allows
    this hash.
    """
    run = chosen(name, peers)
    for peer in peers:
        answer = run.call("POST", f"/machines/{peer}/redeploy", seconds=60.0)
        click.echo(f"{peer} is {answer['state']} and measures the compose hash {answer['compose_hash']}")
