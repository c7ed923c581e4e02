"""When a coordinator moves the change of the gossip key on, and what it tells. Consul and gossip are fakes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from admission.protocol import MeshPeer
from coordinator.keys import derive, gossip_key
from coordinator.rotation import KEY, Record, decode, encode, ring, settled
from coordinator.rotator import CERTAIN_SECONDS, PATIENCE_SECONDS, RENEWED_SECONDS, Rotator
from coordinator.slots import Holder, Node, NodeState
from runtime.consul import SERVER_PORT, ConsulError
from runtime.gossip import Heard, Ring
from runtime.keyring import KeyringError
from runtime.secret import Secret
from tests.coordinator.test_rotation import holder
from tests.coordinator.world import OWNER, make_manifest
from tests.topology.support import after, opened
from topology.manifest import Rotate

KEYS = derive(Secret("11" * 32), "tests")
OWN = MeshPeer(peer_id="coordinator-0", public_key="k", address="127.90.0.1", kind="coordinator")
FIRST = opened(make_manifest(), OWNER)
SECOND = opened(after(FIRST, rotate=Rotate(gossip=1)), OWNER)
FOREIGN = "A" * 43 + "="


class FakeConsul:
    """A KV with one key, and the answers of the operator's calls."""

    def __init__(self, leader: str) -> None:
        self.leader, self.value, self.index = leader, b"", 0
        self.away = False
        """It has no leader: only what this server has itself is read."""
        self.listed: list[str] = []
        self.deleted: list[str] = []
        self.lists = 0
        self.silent = False
        """A member does not answer."""

    async def get(self, path: str, params: dict[str, str] | None = None) -> tuple[int, Any]:
        if path == "/v1/status/leader":
            return 0, self.leader
        if path == "/v1/operator/keyring":
            self.lists += 1
            if self.silent:
                raise ConsulError(500, "2/3 nodes reported success")
            return 0, [{"Keys": dict.fromkeys(self.listed, 3)}]
        assert path == f"/v1/kv/{KEY}"
        if self.away and "stale" not in (params or {}):
            raise ConsulError(500, "No cluster leader")
        if not self.index:
            return 1, None
        return 1, [{"ModifyIndex": self.index, "Value": base64.b64encode(self.value).decode()}]

    async def put(self, path: str, body: bytes, params: dict[str, str]) -> bool:
        assert path == f"/v1/kv/{KEY}"
        if params["cas"] != str(self.index):
            return False
        self.value, self.index = body, self.index + 1
        return True

    async def delete(self, path: str, body: dict[str, str]) -> None:
        assert path == "/v1/operator/keyring"
        self.deleted.append(body["Key"])

    @property
    def record(self) -> Record:
        return decode(self.value)


@dataclass
class FakeMember:
    """One whose keys are known; without any it does not answer."""

    keys: tuple[Secret, ...]
    asked: int = 0
    former: tuple[Secret, ...] = ()

    async def ask(self, key: Secret, known: Sequence[Secret]) -> Heard:
        self.asked += 1
        if not self.keys:
            raise KeyringError("does not answer")
        sealed_by = self.keys[0] if self.keys[0] in known else None
        return Heard(opens=key in self.keys, sealed_by=sealed_by)

    async def carry_out(self, wanted: Ring, former: Sequence[Secret], _clock: object) -> None:
        self.keys, self.former = wanted.keys, tuple(former)


@dataclass
class Scene:
    """A coordinator with two CVMs of which each has the first key."""

    leads: bool = True
    now: float = 1000.0
    members: dict[str, FakeMember] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own_rpc = f"{OWN.address}:{SERVER_PORT}"
        self.consul = FakeConsul(own_rpc if self.leads else "127.90.0.2:8300")
        first = ring(KEYS, settled(0))
        self.members |= {name: FakeMember(first.keys) for name in ("coordinator-0", "api-0", "api-1")}
        self.child = SimpleNamespace(status=lambda: SimpleNamespace(pid=self.pid))
        self.pid = 7
        self.written: list[Secret] = []
        server = SimpleNamespace(
            client=self.consul, child=self.child, query_clock=None, begins_with=first.keys[0],
            rewrite=lambda: self.written.append(self.broker.ring.keys[0]),
        )  # fmt: skip
        slots = {name: self.holder(name, FIRST.digest) for name in ("api-0", "api-1")}
        nodes = {"coordinator-0": Node(state=NodeState.ALIVE, since=0.0)}
        self.ledger = SimpleNamespace(slots=slots, nodes=nodes, complete=True)
        rules = SimpleNamespace(signed=FIRST, manifest=FIRST.manifest)
        self.broker = SimpleNamespace(rules=rules, ring=first, ring_until=0.0)
        self.hindered = False
        self.rotator = Rotator(
            server,  # type: ignore[arg-type]
            self.ledger,  # type: ignore[arg-type]
            self.broker,  # type: ignore[arg-type]
            KEYS,
            OWN,
            hindered=lambda: self.hindered,
            unix=lambda: self.now,
            monotonic=lambda: self.now,
            member=lambda name, _: self.members[name],  # type: ignore[arg-type, return-value]
        )

    def holder(self, name: str, trusts: str) -> Holder:
        return holder(name, trusts=trusts, renewed_at=self.now)

    def follow(self, *names: str) -> None:
        """These CVMs follow the second manifest."""
        for name in names:
            self.ledger.slots[name] = self.holder(name, SECOND.digest)

    def adopt(self) -> None:
        """The second manifest is in force."""
        self.broker.rules = SimpleNamespace(signed=SECOND, manifest=SECOND.manifest)

    def told(self, *names: str) -> None:
        """These CVMs have what the coordinator tells."""
        for name in names:
            self.members[name].keys = self.broker.ring.keys

    async def pass_on(self, seconds: float = RENEWED_SECONDS) -> None:
        """Looks so much later; all CVMs have renewed meanwhile."""
        self.now += seconds
        for name, one in self.ledger.slots.items():
            self.ledger.slots[name] = replace(one, renewed_at=self.now)
        await self.rotator.look()


async def begun(**changes: Any) -> Scene:
    """With a record, and the second manifest in force."""
    scene = Scene(**changes)
    await scene.rotator.begin()
    await scene.rotator.look()
    scene.adopt()
    return scene


async def test_a_mesh_begins_with_the_manifests_number() -> None:
    """Whoever comes first writes it; the others go by what is there."""
    scene = Scene()
    scene.adopt()
    await scene.rotator.begin()
    assert scene.consul.record == settled(1)
    assert scene.broker.ring.name == "1"
    other = Scene()
    other.consul.value, other.consul.index = encode(settled(0)), 4
    other.adopt()
    await other.rotator.begin()
    assert (other.consul.record, other.broker.ring.name) == (settled(0), "0")


async def test_each_stage_waits_for_all() -> None:
    """Who follows the manifest, who opens, who seals; the keys that are told, and the server's own, go with it."""
    scene = await begun()
    scene.follow("api-0")
    await scene.pass_on()
    assert scene.broker.ring.name == "0", "api-1 may have a link to whom the manifest evicts"
    scene.follow("api-1")
    await scene.pass_on(1.0)
    await scene.pass_on(1.0)
    assert scene.broker.ring.name == "0+1"
    assert scene.members["coordinator-0"].keys == scene.broker.ring.keys
    scene.told("api-0")
    await scene.pass_on()
    await scene.pass_on(1.0)
    assert scene.broker.ring.name == "0+1", "api-1 could not open it"
    scene.told("api-1")
    await scene.pass_on(1.0)
    await scene.pass_on(1.0)
    assert scene.broker.ring.name == "1+0"
    await scene.pass_on()
    await scene.pass_on(1.0)
    assert scene.broker.ring.name == "1+0", "both CVMs seal with the old key"
    scene.told("api-0", "api-1")
    await scene.pass_on(1.0)
    await scene.pass_on(1.0)
    assert (scene.broker.ring.name, scene.consul.record) == ("1", settled(1))
    assert scene.members["coordinator-0"].keys == (gossip_key(KEYS, 1),)
    assert scene.written[-1] == gossip_key(KEYS, 1), "with which it would start again"
    assert scene.rotator.problem == ""


async def test_nobody_is_asked_before_it_can_know() -> None:
    """An agent that is asked for a key that it has not logs an error."""
    scene = await begun()
    scene.follow("api-0", "api-1")
    await scene.pass_on(1.0)
    await scene.pass_on(RENEWED_SECONDS / 2)
    assert (scene.broker.ring.name, scene.members["api-0"].asked) == ("0+1", 0)


async def test_who_does_not_come_along_is_not_waited_for_for_ever() -> None:
    """Its lease goes on, and its agent does not answer. Until then status says what is waited for."""
    scene = await begun()
    scene.follow("api-0", "api-1")
    scene.members["api-1"].keys = ()
    await scene.pass_on(1.0)
    scene.told("api-0")
    await scene.pass_on(1.0)
    await scene.pass_on(PATIENCE_SECONDS - 1.0)
    assert scene.broker.ring.name == "0+1"
    assert "every member opens what is sealed with the new key" in scene.rotator.problem
    await scene.pass_on(1.0)
    await scene.pass_on(1.0)
    assert scene.broker.ring.name == "1+0"


async def test_whose_lease_is_over_is_not_waited_for() -> None:
    """It is told the keys when it is admitted again."""
    scene = await begun()
    scene.follow("api-0")
    scene.ledger.slots["api-1"] = replace(scene.ledger.slots["api-1"], released=True)
    scene.members["api-1"].keys = ()
    await scene.pass_on(1.0)
    await scene.pass_on(1.0)
    scene.told("api-0")
    await scene.pass_on()
    await scene.pass_on(1.0)
    assert scene.broker.ring.name == "1+0"


@pytest.mark.parametrize("why", ["another leads", "hindered"])
async def test_only_who_leads_and_enforces_moves_it_on(why: str) -> None:
    """The others go by the record."""
    scene = await begun(leads=why == "hindered")
    scene.hindered = why == "hindered"
    scene.follow("api-0", "api-1")
    await scene.pass_on()
    await scene.pass_on()
    assert scene.consul.record == settled(0)
    moved = Record(stage="both", number=1, before=0)
    scene.consul.value, scene.consul.index = encode(moved), 9
    await scene.pass_on()
    assert scene.broker.ring.name == "0+1"


async def test_another_ones_step_is_not_overwritten() -> None:
    """Two may believe that they lead."""
    scene = await begun()
    scene.follow("api-0", "api-1")
    moved = encode(Record(stage="turned", number=1, before=0))
    read = scene.consul.get

    async def overtaken(path: str, params: dict[str, str] | None = None) -> tuple[int, Any]:
        found = await read(path, params)
        if path.startswith("/v1/kv"):
            scene.consul.value, scene.consul.index = moved, 9
        return found

    scene.consul.get = overtaken  # type: ignore[method-assign]
    await scene.pass_on()
    assert scene.consul.value == moved


async def test_who_has_lost_sight_of_the_records_tells_nothing_by_them() -> None:
    """It would put back the keys of before. Its own server still goes by what it gets of the Raft log."""
    scene = await begun()
    assert scene.broker.ring_until > scene.now
    scene.consul.away = True
    scene.consul.value, scene.consul.index = encode(Record(stage="turned", number=1, before=0)), 9
    await scene.pass_on(CERTAIN_SECONDS)
    assert scene.broker.ring_until <= scene.now
    assert scene.broker.ring.name == "0"
    assert scene.members["coordinator-0"].keys[0] == gossip_key(KEYS, 1)


async def test_a_server_that_starts_again_is_given_its_keys_again() -> None:
    """It began with the one of its configuration."""
    scene = await begun()
    scene.members["coordinator-0"].keys = (Secret(FOREIGN),)
    await scene.pass_on()
    assert scene.members["coordinator-0"].keys == (Secret(FOREIGN),), "it is given nothing twice"
    scene.pid = 8
    await scene.pass_on()
    assert scene.members["coordinator-0"].keys == scene.broker.ring.keys


async def test_foreign_keys_are_taken_out_once_all_have_settled() -> None:
    """One that somebody put in while it knew the key of before; once, and not in the middle of a change."""
    scene = await begun()
    current, old = gossip_key(KEYS, 1).reveal(), gossip_key(KEYS, 0).reveal()
    scene.consul.listed = [current, old, FOREIGN]
    scene.consul.value, scene.consul.index = encode(Record(stage="turned", number=1, before=0)), 9
    await scene.pass_on(1.0)
    assert scene.consul.deleted == []
    scene.consul.value, scene.consul.index = encode(settled(1)), 10
    await scene.pass_on(1.0)
    assert scene.consul.deleted == []
    await scene.pass_on()
    assert sorted(scene.consul.deleted) == sorted([old, FOREIGN])
    scene.consul.deleted.clear()
    await scene.pass_on()
    assert scene.consul.deleted == []


async def test_a_member_that_does_not_answer_has_not_all_asked_again_and_again() -> None:
    """To list the keys of all is a question to all."""
    scene = Scene()
    await scene.rotator.begin()
    scene.consul.silent = True
    await scene.rotator.look()
    with pytest.raises(ConsulError):
        await scene.pass_on()
    for _ in range(9):
        await scene.pass_on(1.0)
    assert scene.consul.lists == 1
    assert "foreign keys may still be in some rings" in scene.rotator.problem
    scene.consul.silent, scene.consul.listed = False, [FOREIGN]
    await scene.pass_on(PATIENCE_SECONDS)
    assert scene.consul.deleted == [FOREIGN]
    await scene.pass_on(1.0)
    assert scene.rotator.problem == ""


async def test_a_server_that_takes_no_keys_is_given_each_of_them_once() -> None:
    """However often it fails: what it began with is one key, not one more a second."""
    scene = await begun()
    own = scene.members["coordinator-0"]
    given: list[int] = []

    async def fails(_: object, former: Sequence[Secret], __: object) -> None:
        given.append(len(former))
        raise KeyringError("does not answer")

    own.carry_out = fails  # type: ignore[assignment, method-assign]
    scene.pid += 1
    scene.consul.value, scene.consul.index = encode(settled(1)), 9
    for _ in range(3):
        with pytest.raises(KeyringError):
            await scene.pass_on(1.0)
    assert given == [1, 1, 1]


async def test_a_record_of_a_newer_program_ends_nothing() -> None:
    """It is not overwritten; what was told last goes on."""
    scene = Scene()
    strange = json.dumps({"stage": "later", "number": 3, "before": 1}).encode()
    scene.consul.value, scene.consul.index = strange, 4
    await scene.rotator.begin()
    with pytest.raises(ValueError, match="cannot be read"):
        await scene.rotator.look()
    assert (scene.consul.value, scene.broker.ring.name) == (strange, "0")
