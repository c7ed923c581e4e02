"""The mesh's status as the host sees it: the documented JSON contract, and the table for a person."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshctl import applications, outward
from meshctl.runs import Run

if TYPE_CHECKING:
    from rich.console import Console

CHILDREN = ("envoy", "consul", "wireguard")
RESTARTS_WORTH_SAYING = 3
"""Of a child, while its CVM is not ready: once may be an accident."""

TABLE_COLUMNS = 120
"""Columns of the terminal below which the table of peers, nine columns wide, would break words."""


@dataclass(frozen=True, slots=True)
class Pids:
    """Translates PIDs of the lab's process namespaces into the host's."""

    by_lab: dict[int, int]
    """PID in the lab's namespace → host PID."""
    inside: dict[tuple[str, int], int]
    """(a process namespace, PID in it) → host PID."""

    def of_child(self, container: int | None, pid: int | None) -> int | None:
        """Host PID of the process that the container with first process `container` (lab PID) calls `pid`."""
        if container is None or pid is None or container not in self.by_lab:
            return None
        return self.inside.get((_namespace(self.by_lab[container]), pid))


def _namespace(host_pid: int) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{host_pid}/ns/pid").readlink())
    return ""


def read_pids(first: int) -> Pids:
    """Looks at the processes in /proc that live in the namespace of process `first`, or below it."""
    by_lab: dict[int, int] = {}
    inside: dict[tuple[str, int], int] = {}
    depth = len(_nspid(first))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        numbers = _nspid(pid)
        if len(numbers) < depth or not _descends(pid, first):
            continue
        by_lab[numbers[depth - 1]] = pid
        inside[_namespace(pid), numbers[-1]] = pid
    return Pids(by_lab, inside)


def _nspid(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return [int(part) for part in line.split()[1:]]
    return []


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


def collect(run: Run, *, holders: bool = False) -> dict[str, Any]:
    """The raw status of `run` with each PID as the host sees it; `holders`: also which process has a backend's port."""
    raw: dict[str, Any] = run.call("GET", "/status?holders=yes" if holders else "/status")
    record = run.record()
    pids = read_pids(record["pid"]) if record else Pids({}, {})
    for machine in raw["machines"]:
        for container in machine["containers"]:
            container["host_pid"] = pids.by_lab.get(container["pid"] or -1)
        own = next((c["pid"] for c in machine["containers"] if c["is_sidecar"]), None)
        for child in ((machine["sidecar"] or {}).get("children") or {}).values():
            child["pid"] = pids.of_child(own, child.get("pid"))
    return raw


def contract(raw: dict[str, Any]) -> dict[str, Any]:
    """The documented `status --json` document (docs/cli.md)."""
    return {
        "cluster": _cluster_name(raw),
        "peers": [_peer(m) for m in raw["machines"] if m["kind"] in ("coordinator", "workload")],
    }


def _cluster_name(raw: dict[str, Any]) -> str:
    named = [m["sidecar"]["cluster"] for m in raw["machines"] if m["sidecar"] and m["sidecar"].get("cluster")]
    return str(named[0] if named else Path(raw["cluster"]).name)


def _peer(machine: dict[str, Any]) -> dict[str, Any]:
    own = machine["sidecar"] or {}
    reasons = list(own.get("reasons") or [])
    if machine["state"] != "running":
        reasons = [f"the CVM is {machine['state']}; ./mesh start {machine['peer_id']} boots it"]
    elif not own:
        ended = next((c.get("exit_code") for c in machine["containers"] if c["is_sidecar"]), None)
        reasons = ["the sidecar does not answer yet"]
        if ended is not None:
            reasons = [f"the sidecar ended with exit code {ended}; ./mesh logs {machine['peer_id']} shows why"]
    refusal = (own.get("admission") or {}).get("reason")
    if refusal:
        # What the coordinators answered says more than that they are being asked.
        reasons = [f"admission: {refusal}" if text.startswith("admission: ") else text for text in reasons]
    children = own.get("children") or {}
    containers, backends = applications.of_machine(machine)
    if reasons:
        shows = f"./mesh logs {machine['peer_id']} shows why"
        reasons += [
            f"{name} was restarted {child['restarts']} times; {shows}"
            for name, child in children.items()
            if child["restarts"] >= RESTARTS_WORTH_SAYING
        ]
    return {
        "peer_id": machine["peer_id"],
        "group": machine["group"],
        "kind": machine["kind"],
        "ready": bool(own.get("ready")) and machine["state"] == "running",
        "reasons": reasons,
        "address": own.get("address"),
        "children": {
            name: {"pid": children[name]["pid"], "restarts": children[name]["restarts"]}
            for name in CHILDREN
            if name in children
        },
        "routes": [
            {key: route.get(key) for key in ("name", "role", "vip", "port", "endpoints", "conflict", "may_call")}
            for route in own.get("routes") or []
        ],
        "admission": own.get("admission"),
        # A coordinator resets no connections, and does not say who is lost.
        "links": [{"lost": None} | link for link in own.get("links") or []],
        "insecure": own.get("insecure") or [],
        "manifest": {
            "epoch": own.get("manifest_epoch"),
            "digest": own.get("manifest_digest"),
            "notes": own.get("manifest_notes") or [],
        },
        "certificate": own.get("certificate"),
        "public": own.get("public") or [],
        "egress": own.get("egress") or [],
        "agent_expires_at": own.get("agent_expires_at"),
        "cut": machine.get("cut"),
        "nacks": (own.get("xds") or {}).get("nacks") or [],
        "applications": containers,
        "backends": backends,
    }


def print_table(document: dict[str, Any]) -> None:
    """Prints what a person reads: peer, group, address, admission, link, Consul, Envoy, routes; applications; what
    listens for clients from outside, and what is dialled beside the routes' names.

    A table where there is room for one; below `TABLE_COLUMNS` columns some lines for each peer.
    """
    from rich.console import Console

    # A pipe has no width of its own; a table cut to 80 columns would be unreadable in a log.
    console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=160)
    if console.width < TABLE_COLUMNS:
        _print_lines(console, document)
    else:
        _print_peers(console, document)
    print_applications(console, document)
    _print_rows(console, "public", ("backend", "route", "port", "names", "certificate"), outward.public(document))
    _print_rows(console, "egress", ("group", "listen", "tls", "leads to"), outward.egress(document))
    insecure = sorted({text for peer in document["peers"] for text in peer["insecure"]})
    for text in insecure:
        console.print(f"INSECURE: {text}", style="bold yellow")
    for peer in document["peers"]:
        for note in peer["manifest"]["notes"]:
            console.print(f"{peer['peer_id']}: manifest: {note}", style="yellow")
        for nack in peer["nacks"]:
            console.print(f"{peer['peer_id']}: Envoy refused an update: {nack}", style="bold red")


def _print_peers(console: Console, document: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"mesh {document['cluster']}", title_justify="left")
    for column in ("peer", "group", "address", "state", "admission", "manifest", "link", "consul", "envoy", "routes"):
        table.add_column(column, overflow="fold", no_wrap=column in ("peer", "group", "address"))
    for peer in document["peers"]:
        table.add_row(
            peer["peer_id"],
            peer["group"],
            peer["address"] or "-",
            _state(peer),
            _admission(peer),
            "\n".join(filter(None, (_manifest(peer), _until(peer)))),
            _links(peer["links"]),
            _child(peer, "consul"),
            _child(peer, "envoy"),
            "\n".join(_route(route) for route in peer["routes"]) or "-",
        )
    console.print(table)


def _print_lines(console: Console, document: dict[str, Any]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(f"mesh {document['cluster']}", style="italic"))
    for peer in document["peers"]:
        head = ", ".join((peer["group"], peer["address"] or "no address"))
        console.print(Text.assemble((peer["peer_id"], "bold"), f" ({head}): {_state(peer)}"))
        parts = [f"admission {_admission(peer)}", f"manifest {_manifest(peer)}"]
        parts += [it for it in (_until(peer),) if it]
        parts += [f"link {_links(peer['links'])}"]
        parts += [f"{name} {_child(peer, name)}" for name in ("consul", "envoy")]
        lines = _joined(parts, console.width - 2) if peer["admission"] or peer["links"] or peer["children"] else []
        for line in (*lines, *map(_route, peer["routes"])):
            console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """`parts` in lines of at most `width` columns, none of them in two lines unless it is longer. Pure."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}; {part}"
        if len(longer) < width:
            lines[-1] = longer
        else:
            lines[-1] += ";"
            lines.append(part)
    return lines


def print_applications(console: Console, document: dict[str, Any]) -> None:
    """One line an application container: its state, the ports that it should listen on, and who listens there."""
    _print_rows(console, "applications", ("peer", "container", "state", "ports"), applications.rows(document))


def _print_rows(
    console: Console, title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], whole: int = 2
) -> None:
    """A table, if there are `lines`; the first `whole` columns are never broken."""
    from rich.markup import escape
    from rich.table import Table

    if not lines:
        return
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index < whole)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def _route(route: dict[str, Any]) -> str:
    leads = f"{route['name']} → {', '.join(route['endpoints']) or 'nobody'}"
    if not route["may_call"]:
        return f"{leads} (may not call)"
    return f"{leads} (claimed by {', '.join(route['conflict'])})" if route["conflict"] else leads


def _state(peer: dict[str, Any]) -> str:
    state = "ready" if peer["ready"] else "; ".join(peer["reasons"]) or "starting"
    return f"{state}; the lab cuts it off ({peer['cut']})" if peer["cut"] else state


def _manifest(peer: dict[str, Any]) -> str:
    """Epoch and digest; and whether the CVM still shows the certificate of another manifest."""
    manifest, certificate = peer["manifest"], peer["certificate"]
    if not manifest["digest"]:
        return "-"
    old = certificate is not None and certificate["manifest_digest"] != manifest["digest"]
    return f"{manifest['epoch']} {manifest['digest']}{' (old certificate)' if old else ''}"


def _until(peer: dict[str, Any]) -> str:
    """When the CVM's certificate ends; it is renewed at half of its life. Empty for a CVM without one."""
    certificate = peer["certificate"]
    return "" if certificate is None else outward.until(certificate["expires_at"])


def _admission(peer: dict[str, Any]) -> str:
    return str((peer["admission"] or {}).get("state") or "-")


def _links(links: list[dict[str, Any]]) -> str:
    paths = [link["path"] for link in links]
    return ", ".join(f"{paths.count(kind)} {kind}" for kind in ("direct", "relay", "none") if kind in paths) or "-"


def _child(peer: dict[str, Any], name: str) -> str:
    child = peer["children"].get(name)
    if child is None:
        return "-"
    up = "up" if child["pid"] else "down"
    return f"{up}, {child['restarts']} restarts" if child["restarts"] else up
