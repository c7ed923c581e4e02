"""The commands that work on a mesh on this machine: up, demo, down, status, logs, exec, sh."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshctl import bring_up as lab
from meshctl import ending, readiness, runs, userns
from meshctl import status as statuses
from meshctl.console import Console
from meshctl.errors import UserError
from meshctl.exec_arguments import ExecCommand

if TYPE_CHECKING:
    from lab.nat import Nat

WALKS = {"trust": "meshctl.trust_demo", "emojivoto": "meshctl.vote_demo"}
"""In the place of a cluster: a walk through the owner's manifest, and the module whose `demo` it is."""
_name_option = click.option("--name", help="Which mesh, when several run. Default: the cluster's name.")


def overrides_of(replicas: tuple[str, ...], coordinators: int | None, variables: tuple[str, ...]) -> dict[str, str]:
    """What the options of `start_options` change in a cluster. UserError for one that is not of its form."""
    chosen = dict(_pair(text, "--var NAME=VALUE") for text in variables)
    for text in replicas:
        group, count = _pair(text, "--replicas GROUP=COUNT")
        if not count.isdigit():
            raise UserError(f"--replicas {text!r}: {count!r} is no number", "--replicas worker=5")
        chosen[f"replicas.{group}"] = count
    if coordinators is not None:
        chosen["coordinators"] = str(coordinators)
    return chosen


def _pair(text: str, wanted: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not of the form {wanted}", wanted)
    return key, value


def start_options(command: Any) -> Any:
    """The options of every command that brings a cluster up."""
    for option in (
        click.option("--replicas", multiple=True, metavar="GROUP=N", help="CVMs of a group; may be repeated."),
        click.option("--coordinators", type=click.IntRange(1), help="Coordinator CVMs (1, or 3 for a quorum)."),
        click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the cluster."),
        click.option(
            "--nat",
            type=click.Choice(["preserving", "random"]),
            default="preserving",
            help="How the CVMs' NATs choose ports.",
        ),
        click.option("--name", help="Name of this mesh. Default: the cluster's folder."),
    ):
        command = option(command)
    return command


_pin_option = click.option(
    "--pin-peers", is_flag=True, help="Tell each CVM its peer ID (MESH_PEER_ID). Default: as deployed, none is told."
)


@click.command()
@click.argument("cluster", default="clusters/starter")
@start_options
@_pin_option
@click.option(
    "--disk",
    type=click.IntRange(256, 1 << 20),
    metavar="MIB",
    help="Give each CVM a disk of that size, which may run full; needs root. Default: as large as this machine's.",
)
def up(
    cluster: str,
    replicas: tuple[str, ...],
    coordinators: int | None,
    variables: tuple[str, ...],
    nat: Nat,
    name: str | None,
    pin_peers: bool,
    disk: int | None,
) -> None:
    """Brings a cluster up on this machine and waits until it serves."""
    chosen = overrides_of(replicas, coordinators, variables)
    run, _document, entries = start_mesh(cluster, chosen, nat, name, pin_peers=pin_peers, disk=disk)
    _say_how_to_go_on(run, entries)


def start_mesh(
    cluster: str,
    overrides: dict[str, str],
    nat: Nat,
    name: str | None,
    *,
    pin_peers: bool = False,
    disk: int | None = None,
) -> tuple[runs.Run, dict[str, Any], tuple[lab.Entry, ...]]:
    """Brings a cluster up and waits until it serves: the mesh, its status, its entries. Nothing stays half up."""
    progress = Console()
    reason = userns.check()
    if reason is not None:
        raise UserError(reason.message, reason.remedy)
    folder = lab.cluster_folder(cluster)
    run = runs.run_of(name or folder.name)
    with ending.catching(), runs.claim(run):
        try:
            entries = lab.bring_up(run, folder, overrides, nat, progress, pin_peers=pin_peers, disk=disk)
            document = lab.wait_ready(run, progress)
        except BaseException as error:
            # Nothing stays half up; what the lab said is kept in the message.
            with ending.held_back():
                said = _failure_logs(run) if isinstance(error, Exception) and run.folder.exists() else ""
                runs.end(run, at_once=True)
            if not isinstance(error, Exception):
                said = f"interrupted; nothing of mesh {run.name} is left"
            if said and not isinstance(error, lab.RefusedError):
                # A terminal that was closed takes no more lines.
                with contextlib.suppress(OSError):
                    progress.line(said)
            raise
    readiness.wait(run, progress)
    return run, document, entries


def _failure_logs(run: runs.Run) -> str:
    parts = [f"--- {path.name}\n" + "\n".join(_tail(path, 8)) for path in sorted(run.folder.glob("logs/*.log"))]
    return "\n".join([f"--- lab.log\n{run.log_tail()}", *parts])


def _tail(path: Path, lines: int) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return []


def _say_how_to_go_on(run: runs.Run, entries: tuple[lab.Entry, ...]) -> None:
    option = "" if len([r for r in runs.all_runs() if r.alive]) == 1 else f" --name {run.name}"
    for entry in entries:
        click.echo(entry.told)
    peers = [machine["peer_id"] for machine in run.call("GET", "/status")["machines"] if machine["kind"] == "workload"]
    first, last = peers[0], peers[-1]
    click.echo(
        f"go on with:  ./mesh status{option}   ./mesh logs {first} -f{option}   ./mesh exec{option} {first} -- sh\n"
        f"             ./mesh kill|stop|start {last}{option}   ./mesh down{option}"
    )


@click.command()
@click.argument("cluster", default="clusters/starter")
@start_options
@_pin_option
def demo(
    cluster: str,
    replicas: tuple[str, ...],
    coordinators: int | None,
    variables: tuple[str, ...],
    nat: Nat,
    name: str | None,
    pin_peers: bool,
) -> None:
    """Brings a mesh up (starter, or patroni), calls through it and shows what happened. Runs on until `./mesh down`.

    `trust` walks through the owner's manifest instead, on a starter mesh under load: generate, set, revoke, evict,
    verify, and a rollback that is refused. `emojivoto` verifies a public page from outside, as a browser and curl do.
    """
    from meshctl.tour import failover, tour

    walk = cluster.removeprefix("clusters/").rstrip("/")
    if walk in WALKS:
        if replicas or coordinators or variables or pin_peers:
            raise UserError(f"demo {walk} takes --nat and --name only", f"./mesh demo {walk}")
        importlib.import_module(WALKS[walk]).demo(nat, name, Console())
        return
    chosen = overrides_of(replicas, coordinators, variables)
    run, _document, entries = start_mesh(cluster, chosen, nat, name, pin_peers=pin_peers)
    progress = Console()
    document = lab.wait_roles(run, progress)
    tour(run, document, entries, progress)
    failover(run, document, entries, progress)
    statuses.print_table(statuses.contract(statuses.collect(run, holders=True)))
    _say_how_to_go_on(run, entries)


@click.command()
@click.option("--name", help="Which mesh; default: all of this checkout.")
def down(name: str | None) -> None:
    """Ends the mesh and removes everything that belongs to it."""
    chosen = [run for run in runs.all_runs() if name in (None, run.name)]
    if not chosen:
        click.echo("nothing to end" if name is None else f"no mesh called {name!r}")
    for run in chosen:
        runs.end(run)
        click.echo(f"mesh {run.name} is down")


@click.command()
@_name_option
@click.option("--json", "as_json", is_flag=True, help="The documented JSON document.")
def status(name: str | None, as_json: bool) -> None:
    """Shows every CVM: admission, link, children, routes."""
    run = runs.find(name)
    document = statuses.contract(statuses.collect(run, holders=True))
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        statuses.print_table(document)
        for outcome in readiness.ask(run, readiness.of_run(run)):
            click.echo(outcome.line())


@click.command()
@click.argument("peer", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines arrive.")
@click.option("-n", "--lines", default=50, type=click.IntRange(min=0), help="Lines from the end of each log.")
@click.option("--lab", "of_lab", is_flag=True, help="The lab daemon's own log.")
@_name_option
def logs(peer: str | None, follow: bool, lines: int, of_lab: bool, name: str | None) -> None:
    """Prints the logs of a CVM's containers (all CVMs without PEER)."""
    run = runs.find(name)
    files = {run.folder / "lab.log": "lab"} if of_lab else log_files(run.folder / "logs", run.names(), peer)
    if not files:
        labels = log_files(run.folder / "logs", run.names(), None).values()
        remedy = runs.nearest(peer or "", {label.partition(".")[0] for label in labels})
        raise UserError(f"there is no log of {peer!r}", remedy)
    places = {path: _print_tail(path, files[path], lines) for path in files}
    while follow and run.alive:
        for path, place in places.items():
            places[path] = _print_new(path, files[path], place)
        time.sleep(0.2)


def log_files(folder: Path, names: Mapping[str, str], peer: str | None) -> dict[Path, str]:
    """The logs of the CVM called `peer` (also by its machine's name), of all when None, each with its label:
    `<what the CVM is called>.<container>`. `names` are what machines are called.
    """
    found = {}
    for path in folder.glob("*.log"):
        machine, _, container = path.name.removesuffix(".log").partition(".")
        called = names.get(machine, machine)
        # A machine that is called something else must not hide the peer that has its name.
        if peer in (None, called) or (peer == machine and peer not in names.values()):
            found[path] = f"{called}.{container}"
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _print_tail(path: Path, label: str, lines: int) -> int:
    data = path.read_bytes()
    for line in data.decode(errors="replace").splitlines()[-lines:] if lines else ():
        click.echo(f"{label} | {line}")
    return len(data)


def _print_new(path: Path, label: str, place: int) -> int:
    with path.open("rb") as log:
        log.seek(place)
        data = log.read()
    complete = data[: data.rfind(b"\n") + 1]
    for line in complete.decode(errors="replace").splitlines():
        click.echo(f"{label} | {line}")
    return place + len(complete)


def container_pid(run: runs.Run, peer: str, service: str | None) -> int:
    """Host PID of the first process of a CVM's application container (of its sidecar where it has no application)."""
    raw = statuses.collect(run)
    machine = next((m for m in raw["machines"] if peer in (m["peer_id"], m["machine"])), None)
    if machine is None:
        raise UserError(f"there is no CVM {peer!r}", runs.nearest(peer, (m["peer_id"] for m in raw["machines"])))
    containers = sorted(machine["containers"], key=lambda c: c["is_sidecar"])
    if service is not None:
        containers = [c for c in containers if c["name"] == service]
        if not containers:
            raise UserError(
                f"{peer} has no container {service!r}", f"it has {', '.join(c['name'] for c in machine['containers'])}"
            )
    if not containers or containers[0]["host_pid"] is None:
        runs_on = machine["state"] == "running"
        state = containers[0]["state"] if containers and runs_on else machine["state"]
        first = "./mesh status, which says what it waits for" if runs_on else f"./mesh start {peer}"
        raise UserError(f"{peer} has no running container ({state})", f"{first}, or ./mesh logs {peer}")
    return int(containers[0]["host_pid"])


def exec_argv(run: runs.Run, peer: str, service: str | None, command: tuple[str, ...]) -> list[str]:
    """The command line that runs `command` inside a CVM's container."""
    record = run.record() or {}
    user = "userns" if record.get("user_namespace") else "same"
    return [
        sys.executable,
        "-S",
        "-m",
        "lab.container",
        "enter",
        str(container_pid(run, peer, service)),
        user,
        "--",
        *command,
    ]


@click.command(name="exec", cls=ExecCommand)
@click.argument("peer")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--container", help="Which container; default: the application's.")
@_name_option
def exec_(peer: str, command: tuple[str, ...], container: str | None, name: str | None) -> None:
    """Runs COMMAND in the view of a CVM's application container; its exit code is ours.

    Options stand before or after PEER; `--`, or the first word of COMMAND, ends them.
    """
    if not command:
        raise UserError(f"no command for {peer!r}", f"./mesh exec {peer} -- sh, or ./mesh sh {peer}")
    argv = exec_argv(runs.find(name), peer, container, command)
    os.environ["PYTHONPATH"] = str(runs.CHECKOUT)
    os.execv(argv[0], argv)


@click.command()
@click.argument("peer")
@click.option("--container", help="Which container; default: the application's.")
@_name_option
def sh(peer: str, container: str | None, name: str | None) -> None:
    """Opens a shell in the view of a CVM's application container."""
    exec_.main(
        args=[*(["--container", container] if container else []), *(["--name", name] if name else []), peer, "sh"]
    )
