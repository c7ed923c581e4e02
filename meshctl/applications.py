"""What the status says of application containers and of the ports that their servers should listen on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

STEADY_SECONDS = 10.0
"""A container that runs for less, and was restarted before, is taken for one that keeps ending. Docker, too, resets its
back-off for a container that ran for 10 s (docker-run(1), --restart)."""
_RESTARTS = 3
"""So often is no accident."""


def of_machine(machine: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The application containers of one machine of the raw status, and its backends, as `status --json` has them.

    Each backend is with the container that its port belongs to: the one that listens on it, else the only one, else the
    one of the backend's name; a backend of which none is known has the container null.
    """
    containers = [item for item in machine["containers"] if not item["is_sidecar"]]
    names = [item["name"] for item in containers]
    backends = [_backend(item, names) for item in (machine["sidecar"] or {}).get("backends") or ()]
    applications = [
        {
            "container": item["name"],
            "state": _state(item["state"]),
            "detail": item["state"],
            "restarts": item.get("restarts"),
            "exit_code": item.get("exit_code"),
            "uptime_s": item.get("uptime_s"),
        }
        for item in containers
    ]
    return applications, backends


def _backend(told: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    listeners = [
        {"address": item["address"], "process": item.get("process"), "container": item.get("container")}
        for item in told["listeners"]
    ]
    holders = [item["container"] for item in listeners if item["container"] in names]
    only = names[0] if len(names) == 1 else None
    container = holders[0] if holders else only or (told["name"] if told["name"] in names else None)
    return {
        "name": told["name"],
        "port": told["port"],
        "container": container,
        "listeners": listeners,
        "problem": told["problem"],
    }


def _state(detail: str) -> str:
    """One word for the lab's or the engine's words."""
    low = detail.lower()
    if low.startswith("not started"):
        return "not started"
    for word in ("restarting", "waiting", "running", "created", "exited"):
        if word in low:
            return word
    return "running" if low.startswith("up") else low


def from_engine(service: str, status: str) -> dict[str, Any]:
    """A container of the raw status out of the engine's sentence, such as `Restarting (1) 5 seconds ago`."""
    code = re.match(r"(?:Exited|Restarting) \((\d+)\)", status)
    # Created and not started is what `up` leaves when it gave up on the sidecar.
    state = "not started: created only" if status == "Created" else status
    return {
        "name": service,
        "state": state,
        "exit_code": int(code[1]) if code else None,
        "restarts": None,
        "uptime_s": None,
        "is_sidecar": service == "sidecar",
    }


def trouble(document: Mapping[str, Any]) -> list[str]:
    """What applications do not do, a line each: containers that do not run, ports on which nobody is reached."""
    return [line for peer in document["peers"] for line in _of_peer(peer)]


def _of_peer(peer: Mapping[str, Any]) -> Iterator[str]:
    for item in peer.get("applications") or ():
        if item["state"] not in ("running", "waiting") or _keeps_ending(item):
            yield f"{peer['peer_id']}: {item['container']} {describe(item)}; ./mesh logs {peer['peer_id']} shows why"
    for backend in peer.get("backends") or ():
        if backend["problem"] and not _waits(peer, backend["container"]):
            yield f"{peer['peer_id']}: {backend['name']}: {backend['problem']}"


def _waits(peer: Mapping[str, Any], container: str | None) -> bool:
    """Whether the container is not expected to listen yet."""
    return any(item["container"] == container and item["state"] == "waiting" for item in peer.get("applications") or ())


def _keeps_ending(item: Mapping[str, Any]) -> bool:
    restarts, uptime = item["restarts"] or 0, item["uptime_s"]
    return item["state"] == "running" and restarts >= _RESTARTS and uptime is not None and uptime < STEADY_SECONDS


def describe(item: Mapping[str, Any]) -> str:
    """A container's state for a person: `restarting, exit code 1, 7 restarts`."""
    parts = [item["detail"] if item["state"] in ("not started", "waiting") else item["state"]]
    if item["exit_code"] is not None:
        parts.append(f"{'last ' if item['state'] == 'running' else ''}exit code {item['exit_code']}")
    if item["restarts"]:
        parts.append(f"{item['restarts']} restart{'s' if item['restarts'] > 1 else ''}")
    return ", ".join(parts)


def rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The lines for a person: peer, container, state, ports with who listens there."""
    found = []
    for peer in document["peers"]:
        ports: dict[str | None, list[str]] = {}
        for backend in peer.get("backends") or ():
            told = f"port {backend['port']}" if _waits(peer, backend["container"]) else _port(backend)
            ports.setdefault(backend["container"], []).append(told)
        for item in peer.get("applications") or ():
            own = "; ".join(ports.pop(item["container"], ())) or "-"
            found.append((peer["peer_id"], item["container"], describe(item), own))
        # Ports of which nobody knows whose they are.
        found += [(peer["peer_id"], "-", "-", "; ".join(others)) for others in ports.values()]
    return found


def _port(backend: Mapping[str, Any]) -> str:
    if backend["problem"]:
        return f"{backend['name']}: {backend['problem']}"
    who = ", ".join(
        dict.fromkeys(
            f"{item['address']} ({item['process']})" if item["process"] else item["address"]
            for item in backend["listeners"]
        )
    )
    return f"{backend['name']}: port {backend['port']} on {who}"
