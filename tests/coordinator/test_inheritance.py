"""What new coordinators make of an estate."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest

from admission.protocol import EstateAuthority, EstateEntry, EstatePage, EstateSecret, MeshPeer
from coordinator.inheritance import (
    INHERITANCE_KEY,
    MAX_OPERATIONS,
    MAX_TRANSACTION,
    InheritanceError,
    Write,
    inherited,
    seal,
    transactions,
    unseal,
    writes,
)
from coordinator.registry import encode_peer
from coordinator.slots import Holder

KEY, OTHER = bytes(32), bytes([1]) * 32
PAGE = EstatePage(
    entries=(),
    more=False,
    secrets=(EstateSecret(owner="db", name="database", rotation=2, text="the-password"),),
    authorities=(EstateAuthority(digest="ab" * 32, pem="PEM"),),
)
FOUND = inherited(PAGE, 77)
HOLDER = Holder(
    peer_id="db-0",
    group="db",
    instance_id="11" * 20,
    boot_key="key",
    leaf_key="leaf",
    compose_hash="22" * 32,
    renewed_at=1.0,
    accessor="one",
    workload_accessor="two",
    token_expires_at=9.0,
    former=("three",),
    joined=True,
)


def entry(key: str, value: bytes) -> EstateEntry:
    """As it is handed out."""
    return EstateEntry(key=key, value=base64.b64encode(value).decode(), flags=5)


def slot(holder: Holder) -> EstateEntry:
    """Its record."""
    return entry(f"coordinator/slots/{holder.peer_id}", json.dumps(dataclasses.asdict(holder)).encode())


def test_what_is_sealed_is_read_with_the_same_key_alone() -> None:
    """Nothing of it stands in the records in clear."""
    sealed = seal(FOUND, KEY, bytes(12))
    assert unseal(sealed, KEY) == FOUND
    assert FOUND.secrets["db", "database", 2].reveal() == "the-password"
    assert b"the-password" not in sealed
    assert "the-password" not in repr(FOUND)
    for wrong, key in ((sealed, OTHER), (sealed[:-1], KEY), (b"", KEY), (sealed[:12], KEY)):
        with pytest.raises(InheritanceError, match="cannot be read with this app's key"):
            unseal(wrong, key)


def test_a_slot_comes_without_what_the_former_consul_had() -> None:
    """Tokens and a living node are that one's; its holder has a lease from now on."""
    record, instance = writes([slot(HOLDER)], 50.0)
    kept: dict[str, Any] = json.loads(base64.b64decode(record.value))
    assert (kept["boot_key"], kept["leaf_key"], kept["renewed_at"]) == ("key", "leaf", 50.0)
    assert (kept["accessor"], kept["workload_accessor"], kept["former"], kept["joined"]) == ("", "", [], False)
    assert (instance.key, base64.b64decode(instance.value)) == (f"coordinator/instances/{'11' * 20}", b"db-0")
    assert len(list(writes([slot(dataclasses.replace(HOLDER, released=True))], 50.0))) == 1


def test_of_peers_workloads_come_and_what_cannot_be_read_does_not() -> None:
    """The former coordinators are no peers of the new ones."""
    peers = [
        MeshPeer(peer_id=name, public_key="k", address="100.96.1.1", kind=kind)
        for name, kind in (("db-0", "workload"), ("coordinator-0", "coordinator"))
    ]
    entries = [entry(f"mesh/peers/{peer.peer_id}", encode_peer(peer)) for peer in peers]
    entries += [entry("coordinator/slots/x", b"{"), dataclasses.replace(slot(HOLDER), key="coordinator/slots/other")]
    entries.append(entry("service/db/config", b"ttl"))
    found = list(writes(entries, 0.0))
    assert [(each.key, each.flags) for each in found] == [("mesh/peers/db-0", 5), ("service/db/config", 5)]


def test_transactions_hold_what_consul_takes() -> None:
    """Each of them fails once the records have an inheritance."""
    found = list(transactions(Write(key=f"{n}", value="") for n in range(MAX_OPERATIONS + 1)))
    assert [len(body) for body in found] == [MAX_OPERATIONS + 1, 2]
    assert all(body[0] == {"KV": {"Verb": "check-not-exists", "Key": INHERITANCE_KEY}} for body in found)
    great = list(transactions(Write(key=f"{n}", value="x" * MAX_TRANSACTION) for n in range(3)))
    assert [len(body) for body in great] == [2, 2, 2]
    assert list(transactions([])) == []
