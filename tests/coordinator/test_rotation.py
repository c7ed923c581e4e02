"""In which order the gossip key is replaced."""

from __future__ import annotations

import base64
import itertools
from dataclasses import replace

import pytest

from coordinator.keys import derive, gossip_key
from coordinator.rotation import (
    TABLE,
    Fact,
    Record,
    Stage,
    decode,
    encode,
    members,
    moved_on,
    ring,
    settled,
    waits_for,
)
from coordinator.slots import Holder, Node, NodeState
from runtime.secret import Secret
from tests.coordinator.world import make_manifest

KEYS = derive(Secret("11" * 32), "tests")
NOW = 1000.0


def walk(record: Record, wanted: int) -> list[Record]:
    """The record, and all that follow it."""
    found = [record]
    while waits_for(found[-1], wanted) is not None:
        found.append(moved_on(found[-1], wanted))
    return found


def test_every_stage_has_its_next() -> None:
    """And each fact is waited for once: opened before anybody seals, sealed before the old key goes."""
    assert TABLE.keys() == set(Stage)
    stages = [Stage(record.stage) for record in walk(settled(0), 1)]
    assert stages == [Stage.SETTLED, Stage.BOTH, Stage.TURNED, Stage.SETTLED]
    assert [TABLE[stage][0] for stage in stages[:-1]] == [Fact.FOLLOWED, Fact.OPENED, Fact.SEALED]


def test_neighbours_always_understand_each_other() -> None:
    """Of two members one stage apart, each opens what the other one seals. At the end the old key is nowhere."""
    rings = [ring(KEYS, record) for record in walk(settled(4), 7)]
    for one, other in itertools.pairwise(rings):
        assert one.keys[0] in other.keys
        assert other.keys[0] in one.keys
    assert [it.name for it in rings] == ["4", "4+7", "7+4", "7"]
    assert rings[-1].keys == (gossip_key(KEYS, 7),)
    assert gossip_key(KEYS, 4) != gossip_key(KEYS, 7)


def test_a_number_that_changes_on_the_way_is_taken_up_afterwards() -> None:
    """No mesh has three keys."""
    on_the_way = moved_on(settled(0), 1)
    found = walk(on_the_way, 2)
    assert [ring(KEYS, record).name for record in found] == ["0+1", "1+0", "1", "1+2", "2+1", "2"]


def test_a_record_that_has_arrived_waits_for_nothing() -> None:
    """Of a manifest with that number."""
    assert waits_for(settled(3), 3) is None


def holder(peer_id: str, **changes: object) -> Holder:
    """One whose lease goes on."""
    base = Holder(
        peer_id=peer_id, group="api", instance_id=f"i-{peer_id}", boot_key=peer_id, leaf_key="", compose_hash="",
        renewed_at=NOW,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_who_is_waited_for() -> None:
    """Coordinators that gossip knows alive and CVMs whose lease goes on; not who is released, dead, or without a slot
    in the manifest.
    """
    manifest = make_manifest(coordinators=3)
    slots = [
        holder("api-0"),
        holder("api-1", renewed_at=NOW - 60),
        holder("client-0", released=True),
        holder("evicted-0"),
    ]
    nodes = {
        "coordinator-0": Node(state=NodeState.ALIVE, since=0),
        "coordinator-1": Node(state=NodeState.FAILED, since=0),
    }
    there = members(manifest, slots, nodes, NOW)
    assert there == (("coordinator-0", "127.90.0.1"), ("api-0", "127.90.0.20"))
    kept = members(manifest, slots, nodes | {"api-1": Node(state=NodeState.ALIVE, since=0)}, NOW)
    assert ("api-1", "127.90.0.21") in kept, "its lease lapsed, and its agent lives: it would be cut off"


def test_a_record_is_read_as_it_was_written() -> None:
    """And holds no key."""
    for record in walk(settled(0), 1):
        assert decode(encode(record)) == record
        assert all(key.reveal() not in encode(record).decode() for key in ring(KEYS, record).keys)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"{}", b"[]", b"[" * 9999,
        b'{"stage":"other","number":1,"before":0}', b'{"stage":"both","number":"1","before":0}',
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_record_is_refused(value: bytes) -> None:
    """With its name."""
    with pytest.raises(ValueError, match="coordinator/gossip in Consul's KV cannot be read"):
        decode(value)


def test_keys_are_of_the_length_that_consul_takes() -> None:
    """AES-256."""
    assert {len(base64.b64decode(key.reveal())) for key in ring(KEYS, moved_on(settled(0), 1)).keys} == {32}
