"""The status document (docs/architecture.md) out of values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.desired import may_call
from sidecar.phases import Report
from topology.egress import WEB, server_name
from topology.envelope import SHOWN_DIGITS, Signed

if TYPE_CHECKING:
    # For their types only: these modules do more than hold values, or weigh much.
    from peer.link import LinkStatus
    from runtime.children import ChildStatus
    from sidecar.admission import AdmissionStatus
    from sidecar.certificate import Certificate
    from xds.stream import Nack


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the document is made of."""

    peer_id: str | None
    group: str
    address: str | None
    report: Report
    insecure: tuple[str, ...]
    signed: Signed | None
    """None: there is no manifest yet."""
    certificate: Certificate | None
    """None: not admitted yet."""
    gossip_ring: str
    """Which gossip keys the agent has; empty when that is not certain."""
    agent_expires_at: int | None
    """Unix seconds: the end of the Consul agent's RPC certificate."""
    endpoints: Mapping[str, tuple[str, ...]]
    """Route name to peer IDs."""
    conflicts: Mapping[str, tuple[str, ...]]
    """Likewise, those that all claim the route's exclusive role, where several do."""
    children: Mapping[str, ChildStatus]
    admission: AdmissionStatus | None
    links: Iterable[LinkStatus]
    lost: frozenset[str]
    """Public keys of the peers that are lost."""
    xds_version: str | None
    nacks: Iterable[Nack]
    lines_lost: int
    """Of output."""
    lines_unsaid: int
    """Of the log, because there were too many of a kind."""
    problems: tuple[str, ...]
    """What is wrong but keeps nothing from working, such as a watch that waits for its agent."""


def document(facts: Facts) -> dict[str, Any]:
    """The document, ready for JSON."""
    signed = facts.signed
    return {
        "peer_id": facts.peer_id,
        "group": facts.group,
        "kind": "workload",
        "phase": facts.report.phase,
        "ready": facts.report.ready,
        "reasons": list(facts.report.reasons),
        "problems": list(facts.problems),
        "address": facts.address,
        "insecure": list(facts.insecure),
        "children": {
            name: {"pid": c.pid, "restarts": c.restarts, "state": c.state, "last_exit": c.last_exit}
            for name, c in facts.children.items()
        },
        "admission": _admission(facts.admission),
        "links": [
            {
                "peer_id": link.peer_id,
                "path": link.path,
                "lost": link.public_key in facts.lost,
                "handshake_age_s": link.handshake_age_s,
                "mtu": link.mtu,
            }
            for link in facts.links
        ],
        "routes": [
            {
                "name": route.name,
                "role": route.role,
                "vip": route.vip,
                "port": route.port,
                "endpoints": list(facts.endpoints.get(route.name, ())),
                "conflict": list(facts.conflicts.get(route.name, ())),
                "may_call": may_call(signed.manifest, facts.group, route),
            }
            for route in signed.manifest.routes
        ]
        if signed is not None
        else [],
        "xds": {
            "version": facts.xds_version,
            "nacks": [{"type": nack.type_url.rpartition(".")[2], "reason": nack.message} for nack in facts.nacks],
        },
        "log": {"lines_lost": facts.lines_lost, "lines_unsaid": facts.lines_unsaid},
        "certificate": _certificate(facts.certificate),
        "public": _public(facts),
        "egress": _egress(facts),
        "gossip_ring": facts.gossip_ring,
        "agent_expires_at": facts.agent_expires_at,
        "manifest_epoch": signed.manifest.epoch if signed is not None else None,
        "manifest_digest": signed.digest[:SHOWN_DIGITS] if signed is not None else None,
        "manifest_notes": list(signed.notes) if signed is not None else [],
    }


def _admission(found: AdmissionStatus | None) -> dict[str, Any]:
    skew = found.skew if found else None
    return {
        "state": found.state if found else "waiting",
        "coordinator": found.coordinator if found else None,
        "lease_seconds": found.lease_seconds if found else None,
        "expires_at": found.expires_at if found else None,
        "reason": found.reason if found else "",
        # A range; None before it was measured.
        "clock_ahead_s": {"least": round(skew.least, 1), "most": round(skew.most, 1)} if skew else None,
    }


def _certificate(held: Certificate | None) -> dict[str, Any] | None:
    """The certificate that is shown, and whose are trusted; by the digests of the manifests."""
    if held is None:
        return None
    return {
        "manifest_digest": held.leaf.digest[:SHOWN_DIGITS],
        "expires_at": held.leaf.expires_at,
        "authorities": [each.digest[:SHOWN_DIGITS] for each in held.trusted],
    }


def _public(facts: Facts) -> list[dict[str, Any]]:
    """The group's public listeners by the manifest. Without a certificate nothing is served there, and `certificate` is
    None; it comes soon after the manifest, so for a moment its names may be those of the manifest before.
    """
    group = facts.signed.manifest.groups.get(facts.group) if facts.signed is not None else None
    if facts.signed is None or group is None:
        return []
    newest = facts.certificate.newest if facts.certificate is not None else None
    return [
        {
            "backend": name,
            "routes": [
                route.name
                for route in facts.signed.manifest.routes
                if (route.group, route.backend) == (facts.group, name)
            ],
            "port": backend.public.port,
            "names": list(backend.public.sans),
            "certificate": {"manifest_digest": newest.digest[:SHOWN_DIGITS], "expires_at": newest.expires_at}
            if newest is not None and name in newest.public
            else None,
        }
        for name, backend in sorted(group.backends.items())
        if backend.public is not None
    ]


def _egress(facts: Facts) -> list[dict[str, Any]]:
    """What the group's programs may dial beside the routes' names, by the manifest. `server_name`: whose certificate
    a server outside has to show; None: it leads to a route. `pinned`: by the manifest's own authorities.
    """
    group = facts.signed.manifest.groups.get(facts.group) if facts.signed is not None else None
    return [
        {
            "name": entry.name,
            "listen": entry.listen,
            "remote": entry.remote,
            "tls": entry.tls,
            "server_name": server_name(entry) if entry.tls == WEB else None,
            "pinned": entry.ca is not None,
        }
        for entry in (group.egress if group is not None else ())
    ]
