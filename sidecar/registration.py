"""What a backend's registration with the local Consul agent says. Pure.

A service ID is `<service>-<peer_id>`; address and port are those at which the mesh reaches the backend. Callers take
neither from Consul: what counts here is that an instance is there, passes, and has its tags.

Why the first status matters: Consul's agent runs a TCP check for the first time somewhere within its interval and calls
the service critical until then. The sidecar knows better: it has just connected to the backend.
"""

from __future__ import annotations

from typing import Any

from topology.manifest import BackendEntry

PLATFORM = "platform"
STUB = "mesh-stub"
"""Meta key of a registration that a workload is to replace with its own."""
CHECK_INTERVAL = "1s"
STUB_TTL = "24h"
"""A stub stays critical until the workload replaces it or passes its check; only then would the TTL run."""


def service_id(backend: BackendEntry, peer_id: str) -> str:
    """Consul's ID of a backend's service on this CVM."""
    return f"{backend.service}-{peer_id}"


def not_listening(backend: BackendEntry, peer_id: str, address: str) -> dict[str, Any]:
    """A platform-owned service whose backend does not listen yet: known, critical, no endpoint."""
    own = service_id(backend, peer_id)
    check = {
        "CheckID": f"{own}:start",
        "Name": f"{backend.service} has not listened yet",
        "TTL": STUB_TTL,
        "Status": "critical",
        "Notes": f"the mesh waits for 127.0.0.1:{backend.port}",
    }
    return _service(backend, peer_id, address, check)


def listening(backend: BackendEntry, peer_id: str, address: str, serial: int) -> dict[str, Any]:
    """A platform-owned service whose backend was just connected to: passing from the start, then checked every second.

    The agent keeps the status of a check that it knows when a service is registered again; a new `serial` makes this
    one new.
    """
    own = service_id(backend, peer_id)
    check = {
        "CheckID": f"{own}:tcp:{serial}",
        "Name": f"{backend.service} listens",
        "TCP": f"127.0.0.1:{backend.port}",
        "Interval": CHECK_INTERVAL,
        "Timeout": CHECK_INTERVAL,
        "Status": "passing",
    }
    return _service(backend, peer_id, address, check)


def stub(backend: BackendEntry, peer_id: str, address: str) -> dict[str, Any]:
    """A workload-owned service as it starts: critical, without a role. The workload updates it."""
    own = service_id(backend, peer_id)
    check = {
        "CheckID": f"{own}:workload",
        "Name": f"{backend.service}, reported by its workload",
        "TTL": STUB_TTL,
        "Status": "critical",
        "Notes": "waits for the workload's first update",
    }
    body = _service(backend, peer_id, address, check)
    return body | {"Meta": body["Meta"] | {STUB: "1"}}


def is_ours_to_replace(existing: object) -> bool:
    """Whether a stub may be written over `existing`, the agent's answer for its ID: nothing there, or a stub."""
    if not isinstance(existing, dict):
        return True
    meta = existing.get("Meta")
    return isinstance(meta, dict) and STUB in meta


def _service(backend: BackendEntry, peer_id: str, address: str, check: dict[str, str]) -> dict[str, Any]:
    return {
        "ID": service_id(backend, peer_id),
        "Name": backend.service,
        "Address": address,
        "Port": backend.sidecar_port,
        "Tags": [],
        "Meta": {"peer-id": peer_id, "owner": backend.owner},
        # A workload that re-registers its tags must not be undone by the servers' copy, nor the other way round.
        "EnableTagOverride": False,
        "Checks": [check],
    }
