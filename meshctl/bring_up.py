"""Brings a cluster up as a lab and waits until it serves."""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meshctl import runs, status, tools
from meshctl.applications import trouble
from meshctl.console import Progress
from meshctl.errors import UserError

if TYPE_CHECKING:
    from lab.nat import Nat
    from topology.cluster import Cluster

READY_SECONDS = 180.0
"""A mesh that is not whole after this is reported as it stands; a small one takes a few seconds."""


_RESTARTS = 5
"""A sidecar that ended so often without ever being ready will not be; with the back-off that takes some 3 s."""


class RefusedError(UserError):
    """A container that no restart helps; the message has what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A public entry: a port of the machine's loopback, from where the gateway leads on to a port of a group's CVMs."""

    group: str
    url: str
    """`http://…`, or `https://…` where TLS ends in the CVM; who asks there verifies it (docs/public.md)."""
    name: str | None = None
    """Of its certificate, where it has one that a lab's client may ask for: a DNS name, and not the gateway's."""

    @property
    def told(self) -> str:
        """What a person is told of it."""
        parts = urlsplit(self.url)
        if parts.scheme == "http":
            return f"public entry of {self.group}: {self.url}"
        told = f"public entry of {self.group}: {self.url}, by a certificate of the mesh: ./mesh verify, then"
        if self.name is None:
            return f"{told} ./mesh connect"
        resolve = f"{self.name}:{parts.port}:{parts.hostname}"
        return f"{told}\n    curl --cacert verify/mesh-ca.pem --resolve {resolve} https://{self.name}:{parts.port}/"


def entry_ports(cluster: Cluster) -> dict[str, tuple[str, int]]:
    """Group → scheme and port, of each group that is reached from outside: its public listener where it has one, else
    the first of its backends where `cluster.tf` has a URL for it. Pure.
    """
    found = {}
    for group in cluster.groups:
        listeners = [backend.public.port for backend in group.backends if backend.public is not None]
        if listeners:
            found[group.name] = ("https", min(listeners))
        elif group.name in cluster.public and group.backends:
            found[group.name] = ("http", min(backend.port for backend in group.backends))
    return found


def page_name(cluster: Cluster, group: str, port: int) -> str | None:
    """The first name in the certificate of the public listener at `port` of `group` that a client may be told to find
    at another address: a DNS name, no wildcard, and not the gateway's. Pure.
    """
    from topology.names import why_no_host
    from topology.public import GATEWAY

    for backend in cluster.group(group).backends:
        if backend.public is not None and backend.public.port == port:
            return next((san for san in backend.public.sans if san != GATEWAY and why_no_host(san) is None), None)
    return None


def cluster_folder(text: str) -> Path:
    """The folder of a cluster named by path (`clusters/starter`), name (`starter`) or short name (`patroni`)."""
    clusters = runs.CHECKOUT / "clusters"
    for folder in (Path(text), clusters / text, clusters / f"{text}-demo"):
        if (folder / "cluster.tf").is_file():
            return folder.resolve()
    known = sorted(path.parent.name for path in clusters.glob("*/cluster.tf"))
    close = difflib.get_close_matches(Path(text).name, known, n=1)
    remedy = (
        f"did you mean clusters/{close[0]}?"
        if close
        else f"clusters here: {', '.join('clusters/' + name for name in known)}"
    )
    raise UserError(f"{text!r} is no cluster: expected a folder with a cluster.tf", remedy)


def checked(folder: Path, overrides: Mapping[str, str]) -> Cluster:
    """The cluster in `folder`. UserError has every mistake that can be found before anything starts."""
    from meshctl import compose_variables
    from topology.cluster import ClusterError, load

    try:
        cluster = load(folder, overrides)
        compose_variables.check(cluster)
    except ClusterError as error:
        raise UserError(
            f"{folder.name} has {len(error.problems)} problem(s):\n" + "\n".join(error.problems),
            "mend the entries named above",
        ) from error
    return cluster


def bring_up(
    run: runs.Run,
    folder: Path,
    overrides: Mapping[str, str],
    nat: Nat,
    progress: Progress,
    *,
    pin_peers: bool = False,
    disk: int | None = None,
) -> tuple[Entry, ...]:
    """Starts the mesh of `folder` as `run`; returns its public entries. The caller waits with `wait_ready`. `pin_peers`
    tells each CVM its peer ID. `disk`: MiB of each CVM's disk; None: as large as this machine's.
    """
    from admission.protocol import ADMISSION_PORT
    from lab.host import Listener, Request
    from topology.model import COORDINATOR

    cluster = checked(folder, overrides)
    found = _tools(progress)
    runs.create_folder(run)
    ports = entry_ports(cluster)
    # Where anyone verifies and sets what the mesh enforces.
    places = {**{group: port for group, (_, port) in ports.items()}, COORDINATOR: ADMISSION_PORT}
    sockets = {group: socket.create_server(("127.0.0.1", 0)) for group in places}
    request = Request(
        name=run.name,
        cluster=str(folder),
        overrides=dict(overrides),
        nat=nat,
        run_dir=str(run.folder),
        checkout=str(runs.CHECKOUT),
        keep=kept(found.values(), tools.cache_root(os.environ)),
        envoy=found["envoy"],
        consul=found["consul"],
        wireguard_go=found.get("wireguard-go"),
        postgres=found["postgres"],
        listeners=tuple(Listener(group=group, port=port, fd=sockets[group].fileno()) for group, port in places.items()),
        pin_peers=pin_peers,
        disk=disk,
    )
    path = run.folder / "request.json"
    request.save(path)
    entries = tuple(
        Entry(
            group=group,
            url=f"{scheme}://127.0.0.1:{sockets[group].getsockname()[1]}",
            name=page_name(cluster, group, port),
        )
        for group, (scheme, port) in ports.items()
    )
    try:
        runs.launch(run, path, tuple(item.fileno() for item in sockets.values()))
    finally:
        for item in sockets.values():
            item.close()
    return entries


def _tools(progress: Progress) -> dict[str, str]:
    return {name: str(path) for name, path in tools.ensure(tools.REQUIRED, progress).items()}


def kept(programs: Iterable[str], cache: Path) -> tuple[str, ...]:
    """Folders that containers must see although they may lie under /tmp or /run.

    The checkout, the interpreter, the programs' folders, and the whole tool `cache`: benchmarks run programs out of it
    that come into it after the mesh is up. It is made when it is not there, since a container cannot see it later.
    """
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    paths = [str(runs.CHECKOUT), sys.prefix, sys.base_prefix, *(str(Path(path).parent) for path in programs)]
    paths += [str(cache)] if cache.is_dir() else []
    return tuple(
        path
        for path in dict.fromkeys(paths)
        if not any(path != other and path.startswith(other + "/") for other in paths)
    )


def wait_ready(run: runs.Run, progress: Progress, seconds: float = READY_SECONDS) -> dict[str, Any]:
    """Waits until every CVM is ready and every route has an endpoint in every CVM; returns the status document."""
    started = time.monotonic()
    document: dict[str, Any] = {"peers": []}
    while time.monotonic() - started < seconds:
        if not run.alive:
            raise UserError(f"the lab of {run.name!r} ended; the last that it said is above", exit_code=1)
        if (run.folder / runs.CONTROL_SOCKET).exists():
            try:
                raw = status.collect(run)
            except UserError as error:
                # A machine that starts everything at once may be busy for longer than one request lasts.
                progress.update(error.message)
                time.sleep(0.1)
                continue
            refuse_hopeless(run, raw)
            document = status.contract(raw)
            waiting = missing(document)
            if document["peers"] and not waiting:
                progress.line(f"all {len(document['peers'])} CVMs ready after {time.monotonic() - started:.1f} s")
                return document
            ready = sum(peer["ready"] for peer in document["peers"])
            progress.update(
                f"{ready} of {len(document['peers'])} CVMs ready; {_first(waiting, document) or 'building the network'}"
            )
        time.sleep(0.1)
    reasons = "\n".join([*missing(document), *trouble(document)]) or "the lab does not answer"
    raise UserError(
        f"the mesh was not ready after {seconds:.0f} s, and was taken down:\n{reasons}",
        "what its CVMs said last is above",
        exit_code=1,
    )


def wait_roles(run: runs.Run, progress: Progress, seconds: float = READY_SECONDS) -> dict[str, Any]:
    """Waits until every role route has an endpoint in every CVM; returns the status document. UserError in time."""
    started = time.monotonic()
    while True:
        document = status.contract(status.collect(run))
        waiting = vacant(document)
        if not waiting:
            return document
        if time.monotonic() - started > seconds:
            raise UserError(
                f"no instance took a role within {seconds:.0f} s:\n" + "\n".join([*waiting, *trouble(document)]),
                "./mesh logs shows why",
            )
        progress.update(_first(waiting, document))
        time.sleep(0.1)


def _first(waiting: Sequence[str], document: Mapping[str, Any]) -> str:
    """What is waited for first, and what is wrong with an application, which may be why; "" for nothing."""
    wrong = trouble(document)
    return "; ".join([*waiting[:1], *wrong[:1]])


def vacant(document: Mapping[str, Any]) -> list[str]:
    """The role routes that lead nowhere yet, a line each."""
    return [
        f"{peer['peer_id']}: route {route['name']} waits for a {route['role']}"
        for peer in document["peers"]
        if peer["ready"]
        for route in peer["routes"]
        if route["role"] and not route["endpoints"]
    ]


def refuse_hopeless(run: runs.Run, raw: Mapping[str, Any]) -> None:
    """RefusedError with a container's own words when it ended in a way that waiting does not mend."""
    for machine in raw["machines"]:
        for container in machine["containers"]:
            code = container["exit_code"]
            # 126 and 127: the program of the compose file cannot be started. 2: the sidecar's own word for it.
            if code in (126, 127) or (
                container["is_sidecar"] and code is not None and (code == 2 or container["restarts"] >= _RESTARTS)
            ):
                log = runs.log_file(run, machine["machine"], container["name"])
                raise RefusedError(
                    f"container {machine['peer_id']}.{container['name']} ended with exit code {code}, so the mesh was "
                    f"taken down; it said:\n{_last_words(log)}",
                    f"change what it names, in the files of {raw['cluster']} or on this machine",
                )


def _last_words(log: Path) -> str:
    """What a container printed last, without the structured lines of its ordinary work, each line once."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    plain = [line for line in lines if not line.startswith(("time=", "["))] or lines
    return "\n".join(list(dict.fromkeys(plain))[-12:]) or "nothing"


def missing(document: Mapping[str, Any]) -> list[str]:
    """What keeps the mesh from being whole, a line each."""
    waiting = [
        f"{peer['peer_id']}: {'; '.join(peer['reasons']) or 'starting'}"
        for peer in document["peers"]
        if not peer["ready"]
    ]
    for peer in document["peers"]:
        waiting += [
            f"{peer['peer_id']}: route {r['name']} has no endpoint yet"
            for r in peer["routes"]
            if not r["endpoints"] and not r["role"]
        ]
    return waiting
