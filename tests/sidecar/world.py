"""A small manifest, and Consul's answers as its API gives them, for the sidecar's tests."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.protocol import MeshPeer
from coordinator.authority import issue, issue_public, mesh_ca
from coordinator.keys import agent_certificate, derive
from runtime.secret import Secret
from sidecar.certificate_reading import Expected, Given, parse
from tests.topology.support import REFERENCE
from topology.allowed import image_id
from topology.manifest import (
    EVERYBODY,
    MANIFEST_VERSION,
    BackendEntry,
    CoordinatorPeer,
    Coordinators,
    GroupEntry,
    Manifest,
    PeerEntry,
    RouteEntry,
)
from topology.owners import Owners, key_of, text_of

OWNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
OWNERS = Owners(keys=(key_of(OWNER),))
OWNER_KEY = text_of(OWNERS)


def backend(
    service: str,
    *,
    owner: str = "platform",
    port: int = 8080,
    sidecar_port: int = 20001,
    callers: tuple[str, ...] = (EVERYBODY,),
) -> BackendEntry:
    """A backend of `service`."""
    return BackendEntry(
        port=port,
        sidecar_port=sidecar_port,
        service=service,
        identity=f"spiffe://demo/{service}",
        owner=owner,
        callers=callers,
    )


def route(name: str, service: str, *, vip: str = "127.10.0.1", port: int = 8080, role: str | None = None) -> RouteEntry:
    """A route to `service`."""
    return RouteEntry(name=name, group=service, backend=service, service=service, role=role, vip=vip, port=port)


def manifest(**changes: Any) -> Manifest:
    """Cluster demo: groups api (two slots, one backend) and client (one slot, no backend), route api."""
    base = Manifest(
        version=MANIFEST_VERSION,
        epoch=3,
        previous="ee" * 32,
        owners=OWNERS,
        cluster="demo",
        references=(REFERENCE,),
        coordinators=Coordinators(
            app_id="ab" * 20,
            compose_hashes=("cd" * 32,),
            peers=(CoordinatorPeer(peer_id="coordinator-0", address="100.96.0.9", url="https://one.test"),),
        ),
        rendezvous=(),
        groups={
            "api": GroupEntry(
                app_id="11" * 20,
                compose_hashes=("22" * 32,),
                peers=(
                    PeerEntry(peer_id="api-0", address="100.96.0.10"),
                    PeerEntry(peer_id="api-1", address="100.96.0.11"),
                ),
                backends={"api": backend("api")},
            ),
            "client": GroupEntry(
                app_id="33" * 20,
                compose_hashes=("44" * 32,),
                peers=(PeerEntry(peer_id="client-0", address="100.96.0.12"),),
                backends={},
            ),
        },
        routes=(route("api", "api"),),
    )
    return dataclasses.replace(base, **changes)


def environment(**changes: str | None) -> dict[str, str]:
    """A complete environment of an api CVM; a change to None unsets a variable."""
    values: dict[str, str | None] = {
        "MESH_CLUSTER": "demo",
        "MESH_GROUP": "api",
        "MESH_PEER_ID": "api-0",
        "MESH_OWNERS": OWNER_KEY,
        "MESH_COORDINATORS": '["https://one.test"]',
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


CLUSTER_KEYS = derive(Secret("5e" * 32), "demo")
DIGEST = "d1" * 32
"""Of the manifest in force, where a test says no other."""
NOW = 1_800_000_000.0


def granted(leaf_key: str, *digests: str, epoch: int = 3, group: str = "api", peer_id: str = "api-0") -> dict[str, Any]:
    """What an answer of a coordinator has about certificates. `digests`: of the manifest that it enforces, then of the
    one before.
    """
    cas = [mesh_ca(CLUSTER_KEYS, epoch - n, digest) for n, digest in enumerate(digests or (DIGEST,))]
    leaf = issue(cas[0], base64.b64decode(leaf_key), group=group, peer_id=peer_id, hours=8, now=NOW)
    return {
        "manifest_digest": cas[0].digest,
        "leaf_pem": leaf,
        "authorities_pem": "".join(ca.pem for ca in cas),
    }


def agent_pem(tls_key: str, now: float = NOW) -> str:
    """The RPC certificate that a coordinator gives for a Consul agent's key at `now`."""
    key = base64.b64decode(tls_key)
    return agent_certificate(CLUSTER_KEYS, key, node="api-0", datacenter="demo", server=False, now=now)


def published(public_key: str, *sans: str, digest: str = DIGEST, epoch: int = 3) -> str:
    """What a coordinator gives for a public listener with these names."""
    ca = mesh_ca(CLUSTER_KEYS, epoch, digest)
    return issue_public(ca, base64.b64decode(public_key), sans=sans or ("web.example",), hours=8, now=NOW)


def given(
    leaf_key: str,
    *digests: str,
    leaf: bool = True,
    all_trust: bool = False,
    public_key: str = "",
    public_pems: Mapping[str, str] = {},
    **changes: Any,
) -> Given:
    """The same as a sidecar reads it."""
    answer = granted(leaf_key, *digests, **changes)
    return parse(
        digest=answer["manifest_digest"],
        leaf_pem=answer["leaf_pem"] if leaf else None,
        authorities_pem=answer["authorities_pem"],
        public_pems=public_pems,
        all_trust=all_trust,
        expected=Expected(
            cluster="demo",
            group=changes.get("group", "api"),
            peer_id=changes.get("peer_id", "api-0"),
            leaf_key=base64.b64decode(leaf_key),
            public_key=base64.b64decode(public_key),
        ),
        now=NOW,
    )


class HoldsNothing:
    """The part of an `admission.Listener` that knows no manifest, so that every coordinator is as new as it, and holds
    no certificate.
    """

    def certificate(self) -> tuple[None, str]:
        """None."""
        return None, ""

    def gossip_ring(self) -> str:
        """None."""
        return ""

    def newest_envelope(self) -> str:
        """None."""
        return ""

    async def lead_on(self, _epoch: int, _ask: object) -> None:
        """Nothing is missing."""

    def successors_of(self, _epoch: int) -> tuple[str, ...]:
        """None."""
        return ()

    def why_not_enforced(self, epoch: int, digest: str, envelope: str) -> str | None:
        """Never."""
        assert epoch
        assert digest
        assert envelope is not None
        return None

    def why_misplaced(self, peer_id: str, address: str, envelope: str) -> str | None:
        """Never."""
        assert peer_id
        assert address
        assert envelope is not None
        return None


def peer(peer_id: str, address: str, kind: str = "workload") -> MeshPeer:
    """An admitted peer, with what the manifest allows its slot; its key is a fixed function of its ID."""
    key = base64.b64encode(peer_id.encode().ljust(32, b"\0")).decode()
    apps = {slot.peer_id: entry for entry in manifest().groups.values() for slot in entry.peers}
    app = apps.get(peer_id)
    return MeshPeer(
        peer_id=peer_id, public_key=key, address=address, kind=kind, compose_hash=app.compose_hashes[0] if app else "",
        image=image_id("01", "02", "03", "04"), app_id=app.app_id if app else "",
    )  # fmt: skip


def kv(entries: dict[str, str]) -> list[dict[str, Any]]:
    """The answer of `/v1/kv/...`."""
    return [
        {"Key": key, "Value": base64.b64encode(value.encode()).decode(), "ModifyIndex": 7}
        for key, value in entries.items()
    ]


def kv_peers(*peers: MeshPeer) -> list[dict[str, Any]]:
    """The answer of `/v1/kv/mesh/peers/?recurse`."""
    return kv({f"mesh/peers/{one.peer_id}": json.dumps(dataclasses.asdict(one)) for one in peers})


def health(
    node: str,
    address: str = "100.96.0.1",
    *,
    service: str = "api",
    tags: tuple[str, ...] = (),
    index: int = 10,
    port: int = 20001,
) -> dict[str, Any]:
    """One entry of the answer of `/v1/health/service/<service>`."""
    return {
        "Node": {"Node": node, "Address": address},
        "Service": {
            "ID": f"{service}-{node}",
            "Service": service,
            "Address": "",
            "Port": port,
            "Tags": list(tags),
            "ModifyIndex": index,
        },
        "Checks": [],
    }  # fmt: skip
