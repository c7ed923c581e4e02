"""`./mesh compose`: a cluster on a Docker engine, every CVM its own set of containers from its own compose file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

import click

from meshctl import applications, bring_up, docker_runs, docker_wait, ending, engine, runs
from meshctl import status as statuses
from meshctl.console import Console
from meshctl.errors import UserError
from meshctl.exec_arguments import ExecCommand
from meshctl.lab_commands import overrides_of, start_options

if TYPE_CHECKING:
    from lab.nat import Nat

_name = click.option("--name", help="Which mesh, when several are there. Default: the cluster's name.")


@click.group()
def compose() -> None:
    """A cluster on a Docker engine, from the very compose files that CVMs run."""


@compose.command()
@click.argument("cluster", default="clusters/starter")
@start_options
def up(
    cluster: str,
    replicas: tuple[str, ...],
    coordinators: int | None,
    variables: tuple[str, ...],
    nat: Nat,
    name: str | None,
) -> None:
    """Brings CLUSTER up and waits until it serves. Images of this project are built from this checkout.

    A role that no instance takes in time is told at the end, with exit code 1; the mesh is left running then.
    """
    progress = Console()
    folder = bring_up.cluster_folder(cluster)
    run = docker_runs.run_of(name or folder.name)
    found = engine.find()
    plugin = engine.compose_plugin(progress)
    with ending.catching(), runs.claim(run):
        docker_runs.refuse_another(found, run, folder)
        try:
            overrides = overrides_of(replicas, coordinators, variables)
            entries = docker_runs.start(found, plugin, run, folder, overrides, nat, progress)
            docker_wait.wait_whole(run, progress)
            document, vacant = docker_wait.wait_roles(found, run, progress)
        except BaseException:
            # Nothing stays half up.
            with ending.held_back():
                docker_runs.down(found, run)
            raise
    statuses.print_table(document)
    for entry in entries:
        click.echo(f"public entry of {entry.group}: {entry.url}")
    example = next(peer["peer_id"] for peer in document["peers"] if peer["kind"] == "workload")
    option = f" --name {run.name}" if len(docker_runs.all_runs(found)) > 1 else ""
    click.echo(
        f"overlays: {run.folder / 'cvms'}/*/overlay.yaml\n"
        f"go on with:  ./mesh compose ps{option}   ./mesh compose logs {example} -f{option}\n"
        f"             ./mesh compose exec {example}{option} -- sh   ./mesh compose down{option}"
    )
    if vacant:
        raise UserError(
            f"the mesh runs, but not all of it serves after {docker_wait.ROLE_SECONDS:.0f} s:\n" + "\n".join(vacant),
            "./mesh compose logs PEER shows why",
            exit_code=1,
        )


def _chosen(found: engine.Engine, name: str | None) -> runs.Run:
    there = docker_runs.all_runs(found)
    if name is not None:
        wanted = name.rstrip("/").rpartition("/")[2]
        there = [run for run in there if run.name == wanted]
        if not there:
            known = ", ".join(run.name for run in docker_runs.all_runs(found)) or "none"
            raise UserError(f"no mesh called {wanted!r} is on this engine; there are: {known}", "./mesh compose up")
    if not there:
        raise UserError("no mesh of this checkout is on this engine", "./mesh compose up clusters/starter")
    if len(there) > 1:
        raise UserError(
            f"several meshes are there: {', '.join(run.name for run in there)}", f"add --name {there[0].name}"
        )
    return there[0]


@compose.command()
@click.argument("cluster", required=False)
@_name
@click.option("--json", "as_json", is_flag=True, help="The document of `./mesh status --json`, and the containers.")
def ps(cluster: str | None, name: str | None, as_json: bool) -> None:
    """Shows every CVM and its containers."""
    found = engine.find()
    run = _chosen(found, name or cluster)
    rows = docker_runs.containers(found, run)
    raw = run.call("GET", "/status")
    for machine in raw["machines"]:
        own = [row for row in rows if row.peer == machine["peer_id"] and row.service != docker_runs.ANCHOR]
        machine["containers"] = [applications.from_engine(row.service, row.status) for row in own]
    document = statuses.contract(raw)
    if as_json:
        listed = [{"peer": r.peer, "service": r.service, "state": r.state, "status": r.status} for r in rows]
        click.echo(json.dumps({**document, "containers": listed}, indent=2))
        return
    statuses.print_table(document)
    for row in rows:
        click.echo(f"{row.peer:16} {row.service:16} {row.status}")
    known = docker_runs.record(run)
    gone = set(known["containers"] if known else ()) - {f"{row.peer}/{row.service}" for row in rows}
    for missing in sorted(gone):
        click.echo(f"half removed: {missing} is gone; ./mesh compose down {run.name} clears the rest away", err=True)
    if docker_runs.is_stale(run):
        click.echo("stale: the cluster's files were changed since; ./mesh compose down, then up", err=True)


@compose.command()
@click.argument("peer", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines arrive (of one PEER).")
@click.option("-n", "--lines", default=50, type=click.IntRange(min=0), help="Lines from the end of each log.")
@_name
def logs(peer: str | None, follow: bool, lines: int, name: str | None) -> None:
    """Prints the logs of a CVM's containers (all CVMs without PEER; `platform` is what stands around them)."""
    found = engine.find()
    run = _chosen(found, name)
    rows = [row for row in docker_runs.containers(found, run) if peer in (None, row.peer)]
    if not rows:
        raise UserError(f"there is no CVM {peer!r}", f"there are {_peers(found, run)}")
    if follow and peer is not None and peer != docker_runs.PLATFORM:
        plugin = engine.compose_plugin(Console())
        argv = docker_runs.compose_argv(plugin, run, peer, "logs", "-f", "--tail", str(lines))
        os.execvpe(argv[0], argv, found.environ)
    for row in rows:
        done = found.run("logs", "--tail", str(lines), row.name, check=False)
        for line in (done.stdout + done.stderr).splitlines():
            click.echo(f"{row.peer}.{row.service} | {line}")


def _peers(found: engine.Engine, run: runs.Run) -> str:
    return ", ".join(dict.fromkeys(row.peer for row in docker_runs.containers(found, run)))


@compose.command(name="exec", cls=ExecCommand)
@click.argument("peer")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--container", help="Which container; default: the application's.")
@_name
def exec_(peer: str, command: tuple[str, ...], container: str | None, name: str | None) -> None:
    """Runs COMMAND in a CVM's application container; its exit code is ours.

    Options stand before or after PEER; `--`, or the first word of COMMAND, ends them.
    """
    if not command:
        raise UserError(f"no command for {peer!r}", f"./mesh compose exec {peer} -- sh")
    found = engine.find()
    run = _chosen(found, name)
    target = docker_runs.container_of(found, run, peer, container)
    terminal = ("-i", "-t") if sys.stdin.isatty() and sys.stdout.isatty() else ("-i",)
    argv = [found.docker, "exec", *terminal, target.name, *command]
    os.execvpe(argv[0], argv, found.environ)


@compose.command()
@click.argument("cluster", required=False)
@click.option("--name", help="Which mesh; default: all of this checkout.")
def down(cluster: str | None, name: str | None) -> None:
    """Removes every container, volume, network and file of a mesh, whatever is left of it."""
    found = engine.find()
    wanted = name or cluster
    there = [_chosen(found, wanted)] if wanted else docker_runs.all_runs(found)
    if not there:
        click.echo("nothing to end")
    for run in there:
        with contextlib.suppress(KeyboardInterrupt):
            docker_runs.down(found, run)
        click.echo(f"mesh {run.name} is down")
