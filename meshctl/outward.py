"""A mesh's edges for a person, out of the status document: public listeners and egress, a row a group's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_SHOWN = 5
"""Names of a certificate, or CVMs, that a row shows: a certificate may have 100. `status --json` has all."""

_Told = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""Group, the CVM's part of the status document, and one entry of it."""


def until(seconds: int) -> str:
    """When something ends, from Unix seconds."""
    return f"until {datetime.fromtimestamp(seconds, UTC):%m-%d %H:%M} UTC"


def public(document: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Of each public listener: backend, routes, port, names, and until when its certificate is good; where the CVMs of
    a group have different ones, the one that ends first.
    """
    rows = []
    for told in _same(document, "public", ("backend", "routes", "port", "names")):
        group, _, entry = told[0]
        name = f"{group}/{entry['backend']}"
        rows.append(
            (name, ", ".join(entry["routes"]) or "-", str(entry["port"]), _some(entry["names"]), _certificate(told))
        )
    return rows


def egress(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each egress: group and name, where programs dial it, by what TLS it goes on, and where it leads."""
    rows = []
    for told in _same(document, "egress", ("name", "listen", "remote", "tls", "server_name", "pinned")):
        group, _, entry = told[0]
        rows.append((f"{group}/{entry['name']}", entry["listen"], entry["tls"], _leads(entry)))
    return rows


def _same(document: Mapping[str, Any], field: str, keys: tuple[str, ...]) -> Iterator[list[_Told]]:
    """The entries under `field` of all CVMs, those together that have one group and say the same under `keys`. After a
    new manifest CVMs may differ for a moment.
    """
    found: dict[tuple[Any, ...], list[_Told]] = {}
    for peer in document["peers"]:
        for entry in peer[field]:
            found.setdefault((peer["group"], *(str(entry[key]) for key in keys)), []).append(
                (peer["group"], peer, entry)
            )
    yield from found.values()


def _certificate(told: Sequence[_Told]) -> str:
    lacking = [peer["peer_id"] for _, peer, entry in told if entry["certificate"] is None]
    old = [
        peer["peer_id"]
        for _, peer, entry in told
        if entry["certificate"] and entry["certificate"]["manifest_digest"] != peer["manifest"]["digest"]
    ]
    ends = [entry["certificate"]["expires_at"] for _, _, entry in told if entry["certificate"]]
    parts = [until(min(ends))] if ends else []
    parts += [f"of another manifest: {_some(old)}"] if old else []
    parts += [f"none yet, so not served: {_some(lacking)}"] if lacking else []
    return "; ".join(parts)


def _leads(entry: Mapping[str, Any]) -> str:
    if entry["server_name"] is None:
        return str(entry["remote"])
    authority = "the manifest's authorities" if entry["pinned"] else "any public authority"
    return f"{entry['remote']} as {entry['server_name']}, by {authority}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
