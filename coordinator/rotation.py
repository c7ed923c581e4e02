"""How the gossip key is replaced while the mesh runs: in stages that all coordinators and CVMs go through together.
Pure.

The manifest says which key there is to be (`rotate.gossip`), and this record, in Consul's KV, how far the mesh is. The
Raft leader's coordinator moves it on, by TABLE; everybody else goes by it. In no stage does anybody send what another
one cannot open. The new key is told to a CVM by its coordinator alone, where it has attested, and not before every CVM
that lives follows the manifest: whom it evicts is off all links by then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from coordinator.keys import ClusterKeys, gossip_key
from coordinator.policy import find_slot
from coordinator.refusal import RefusalError
from coordinator.slots import Holder, Node, NodeState, dead
from coordinator.tokens import LEDGER_PREFIX
from runtime import jsons
from runtime.gossip import Ring
from topology.manifest import Manifest
from topology.trees import ManifestError, from_tree

KEY = f"{LEDGER_PREFIX}gossip"
"""Of the record in Consul's KV. No key is in it."""


class Stage(Enum):
    """How far the mesh is."""

    SETTLED = "settled"
    """One key."""
    BOTH = "both"
    """All open what is sealed with either key, and seal with the old one."""
    TURNED = "turned"
    """All open what is sealed with either key, and seal with the new one."""


class Fact(Enum):
    """What has to be true before the next stage."""

    FOLLOWED = "every CVM that lives follows the manifest that has another number"
    OPENED = "every member opens what is sealed with the new key"
    SEALED = "every member seals with the new key"


TABLE: Mapping[Stage, tuple[Fact, Stage]] = {
    Stage.SETTLED: (Fact.FOLLOWED, Stage.BOTH),
    Stage.BOTH: (Fact.OPENED, Stage.TURNED),
    Stage.TURNED: (Fact.SEALED, Stage.SETTLED),
}
"""What is waited for in a stage, and which one comes then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Value of KEY, as JSON."""

    stage: str
    """Value of a Stage."""
    number: int
    """Of the key that there is, or that comes."""
    before: int
    """Of the one that goes. In SETTLED, `number`."""


def settled(number: int) -> Record:
    """One key and no other."""
    return Record(stage=Stage.SETTLED.value, number=number, before=number)


def waits_for(record: Record, wanted: int) -> Fact | None:
    """What has to be true before the record is moved on; None where it has arrived. `wanted`: the manifest's number.

    A number that changes on the way is taken up afterwards: no mesh has three keys.
    """
    stage = Stage(record.stage)
    return None if stage is Stage.SETTLED and record.number == wanted else TABLE[stage][0]


def moved_on(record: Record, wanted: int) -> Record:
    """The record of the next stage."""
    stage = Stage(record.stage)
    following = TABLE[stage][1]
    if stage is Stage.SETTLED:
        return Record(stage=following.value, number=wanted, before=record.number)
    before = record.number if following is Stage.SETTLED else record.before
    return dataclasses.replace(record, stage=following.value, before=before)


def ring(keys: ClusterKeys, record: Record) -> Ring:
    """What every agent and server is to have in this stage."""
    stage = Stage(record.stage)
    numbers = {
        Stage.SETTLED: (record.number,),
        Stage.BOTH: (record.before, record.number),
        Stage.TURNED: (record.number, record.before),
    }[stage]
    return Ring(name="+".join(map(str, numbers)), keys=tuple(gossip_key(keys, number) for number in numbers))


def members(
    manifest: Manifest, slots: Iterable[Holder], nodes: Mapping[str, Node], now: float
) -> tuple[tuple[str, str], ...]:
    """Who has to be there before all go on, name and mesh address: coordinators that gossip knows alive, and CVMs whose
    lease goes on. `now`: Unix seconds.
    """
    found = [
        (lead.peer_id, lead.address)
        for lead in manifest.coordinators.peers
        if lead.peer_id in nodes and nodes[lead.peer_id].state is NodeState.ALIVE
    ]
    for holder in slots:
        if not dead(holder, nodes.get(holder.peer_id), now):
            try:
                found.append((holder.peer_id, find_slot(manifest, holder.peer_id).address))
            except RefusalError:
                # Its slot is gone, and it is about to be put out.
                continue
    return tuple(found)


def encode(record: Record) -> bytes:
    """As `decode` reads it."""
    return jsons.canonical(record)


def decode(value: bytes) -> Record:
    """The record in `value`. ValueError."""
    try:
        record: Record = from_tree(Record, json.loads(value), KEY)
        Stage(record.stage)
    except (ManifestError, ValueError, RecursionError) as error:
        raise ValueError(f"{KEY} in Consul's KV cannot be read: {error!s:.200}") from error
    return record
