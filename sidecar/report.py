"""The status document (docs/architecture.md) out of values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.desired import may_call
from sidecar.phases import Report
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
    admission, signed = facts.admission, facts.signed
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
        "admission": _admission(admission),
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
