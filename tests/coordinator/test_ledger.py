"""The records in a real Consul: two coordinators' ledgers against each other, failures, and what is remembered.

Long because it is a list: each write that may meet another coordinator's is a case of its own, on the same records.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio

from admission.protocol import PEERS_PREFIX, RECORDS_KEY, Code, MeshPeer
from coordinator import records
from coordinator.grants import Token, Tokens
from coordinator.ledger import BEGAN_KEY, INSTANCES_PREFIX, NEWCOMERS_PREFIX, SLOTS_PREFIX, Ledger
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.slots import LEASE_SECONDS, Holder, Newcomer, NodeState, dead
from runtime.consul import ConsulClient
from runtime.secret import Secret
from tests.coordinator.world import API_COMPOSE, Applicant, cluster, cvm, free_port
from tests.support import eventually, soon


class Clock:
    """Unix time under the test's hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Book:
    """A ledger with its registry and clock."""

    ledger: Ledger
    registry: Registry
    clock: Clock
    monotonic: Clock


def book(consul: ConsulClient) -> Book:
    """The ledger of one more coordinator."""
    clock, monotonic, registry = Clock(), Clock(), Registry(lambda: None)
    return Book(Ledger(consul, registry, clock, monotonic), registry, clock, monotonic)


@pytest_asyncio.fixture
async def consul(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConsulClient]:
    """A server with the management token, whose coordinator leaves alone what its manifest does not know."""
    monkeypatch.setattr(records, "SWEEP_SECONDS", 3600.0)
    async with cluster() as mesh:
        await mesh.start()
        yield (await mesh.ready()).coordinator.consul


def holder(peer_id: str = "x-0", instance: str = "i0", key: str = "k0", at: float = 1000.0) -> Holder:
    """A holder of a slot that the coordinator behind the fixture does not know."""
    return Holder(
        peer_id=peer_id, group="x", instance_id=instance, boot_key=key, leaf_key="l", compose_hash="c",
        renewed_at=at, joined=False
    )  # fmt: skip


def peer(peer_id: str = "x-0", key: str = "k0") -> MeshPeer:
    """Its entry."""
    return MeshPeer(peer_id=peer_id, public_key=key, address="100.96.0.9", kind="workload")


async def test_two_coordinators_give_a_slot_once(consul: ConsulClient) -> None:
    """Both decide on what they know; the compare-and-set lets one through, the other sees the holder and refuses."""
    one, two = book(consul), book(consul)
    results = await asyncio.gather(
        one.ledger.take(holder(), peer()),
        two.ledger.take(holder(instance="i1", key="k1"), peer(key="k1")),
        return_exceptions=True,
    )
    refusals = [result for result in results if isinstance(result, RefusalError)]
    assert [refusal.code for refusal in refusals] == [Code.SLOT_TAKEN]
    assert results.count(None) == 1
    loser = one if isinstance(results[0], RefusalError) else two
    assert loser.registry.peers() == (), "the loser's link forgets the key"


async def test_two_coordinators_give_an_instance_one_slot(consul: ConsulClient) -> None:
    """The same instance asks two coordinators for two slots at once: one of them refuses."""
    one, two = book(consul), book(consul)
    results = await asyncio.gather(
        one.ledger.take(holder("x-0"), peer("x-0")),
        two.ledger.take(holder("x-1", key="k1"), peer("x-1", "k1")),
        return_exceptions=True,
    )
    assert sum(isinstance(result, RefusalError) for result in results) == 1


async def test_another_coordinator_renews_and_frees(consul: ConsulClient) -> None:
    """What one wrote the other reads; freed is free for both, and the peer's entry is gone."""
    one, two = book(consul), book(consul)
    await one.ledger.take(holder(), peer())
    await two.ledger.refresh()
    found = two.ledger.slots["x-0"]
    assert found.boot_key == "k0"
    assert await two.ledger.free(found, "test")
    _, entry = await consul.get("/v1/kv/mesh/peers/x-0")
    assert entry is None
    assert not await one.ledger.free(holder(), "late"), "the record changed: read again, and nothing to do"
    assert one.ledger.slots["x-0"].released


def fresh(expires_at: float) -> Tokens:
    """Tokens of a CVM without a workload."""
    return Tokens(
        node=Token(secret=Secret(str(uuid.uuid4())), accessor=str(uuid.uuid4())), workload=None, expires_at=expires_at
    )


async def test_what_two_coordinators_gave_at_once_is_not_forgotten(consul: ConsulClient) -> None:
    """Both renew one CVM: the record names the later tokens and those before, and the others are revoked."""
    one, two = book(consul), book(consul)
    first, faster, slower = (fresh(2000.0 + n) for n in range(3))
    for tokens in (first, faster, slower):
        await one.ledger.issue([tokens.node.body({})])
    held = first.noted(holder())
    await one.ledger.take(held, peer())
    await two.ledger.refresh()
    await two.ledger.replace_tokens(held, faster)
    await one.ledger.replace_tokens(held, slower)
    found = one.ledger.slots["x-0"]
    assert (found.tokens, found.former) == ((slower.node.accessor,), (first.node.accessor,))
    _, listed = await consul.get("/v1/acl/tokens")
    there = {each["AccessorID"] for each in listed}
    assert [each.node.accessor in there for each in (first, faster, slower)] == [True, False, True]
    assert await one.ledger.free(found, "test")
    _, listed = await consul.get("/v1/acl/tokens")
    assert not {each["AccessorID"] for each in listed} & {each.node.accessor for each in (first, faster, slower)}


async def test_an_instance_that_moves_leaves_its_old_slot(consul: ConsulClient) -> None:
    """A dead holder's instance in another slot: the old one is released, so that the old boot cannot renew it."""
    one = book(consul)
    await one.ledger.take(holder("x-0"), peer("x-0"))
    one.clock.now = 1100.0
    await one.ledger.take(holder("x-1", key="k1", at=1100.0), peer("x-1", "k1"))
    assert one.ledger.slots["x-0"].released
    assert [each.peer_id for each in one.registry.peers()] == ["x-1"]


async def instances(consul: ConsulClient) -> set[str]:
    """The instances that have a key."""
    _, keys = await consul.get(f"/v1/kv/{INSTANCES_PREFIX}", params={"keys": "", "consistent": ""})
    return {key.removeprefix(INSTANCES_PREFIX) for key in keys or ()}


async def test_instances_without_a_slot_leave_no_key(consul: ConsulClient) -> None:
    """Of a slot that was freed, of one that another instance took over, and of one that an earlier version left: what
    is kept is one key a slot that is held, however many instances there were.
    """
    one, two = book(consul), book(consul)
    await one.ledger.take(holder("x-0", "i0"), peer("x-0"))
    await one.ledger.take(holder("x-1", "i1", "k1"), peer("x-1", "k1"))
    await one.ledger.take(holder("x-2", "i2", "k2"), peer("x-2", "k2"))
    await one.ledger.free(one.ledger.slots["x-0"], "test")
    one.clock.now = 1100.0
    await one.ledger.take(holder("x-1", "i3", "k3", at=1100.0), peer("x-1", "k3"))
    await consul.put(f"/v1/kv/{INSTANCES_PREFIX}old", b"x-9")
    assert await instances(consul) == {"i0", "i1", "i2", "i3", "old"}
    for _ in range(2):
        await two.ledger.refresh()
        await two.ledger.forget_instances()
    assert await instances(consul) == {"i2", "i3"}


async def test_an_instance_that_is_admitted_meanwhile_keeps_its_key(consul: ConsulClient) -> None:
    """One coordinator admits an instance again while the other removes its key: the key stays, and guards it. Removed
    first, the admission is decided anew.
    """
    one, two = book(consul), book(consul)
    await one.ledger.take(holder(), peer())
    await one.ledger.free(one.ledger.slots["x-0"], "test")
    await two.ledger.refresh()
    await one.ledger.take(holder(), peer())
    await two.ledger.forget_instances()
    assert await instances(consul) == {"i0"}

    await one.ledger.free(one.ledger.slots["x-0"], "test")
    await two.ledger.refresh()
    await two.ledger.forget_instances()
    await one.ledger.take(holder("x-1", key="k1"), peer("x-1", "k1"))
    assert await instances(consul) == {"i0"}
    await two.ledger.refresh()
    with pytest.raises(RefusalError):
        await two.ledger.take(holder("x-0", key="k2"), peer(key="k2"))


async def test_a_slot_whose_record_cannot_be_read_can_be_taken(consul: ConsulClient) -> None:
    """Nobody holds it, so whoever asks gets it, and the record is replaced."""
    await consul.put(f"/v1/kv/{SLOTS_PREFIX}x-0", b"no JSON")
    await consul.put(f"/v1/kv/{INSTANCES_PREFIX}old", b"x-0")
    one = book(consul)
    await one.ledger.refresh()
    await one.ledger.forget_instances()
    assert await instances(consul) == set()
    await one.ledger.take(holder(), peer())
    await one.ledger.refresh()
    assert one.ledger.slots["x-0"].boot_key == "k0"


async def test_without_consul_nothing_is_admitted() -> None:
    """A write that fails is NOT_READY, and the registry is as before."""
    async with ConsulClient(port=free_port()) as client:
        one = book(client)
        with pytest.raises(RefusalError) as error:
            await one.ledger.take(holder(), peer())
    assert error.value.code is Code.NOT_READY
    assert one.registry.peers() == ()
    assert one.ledger.slots == {}


def record(each: Holder, index: int) -> dict[str, Any]:
    """A KV entry as Consul gives it."""
    value = base64.b64encode(json.dumps(dataclasses.asdict(each)).encode()).decode()
    return {"Key": SLOTS_PREFIX + each.peer_id, "Value": value, "ModifyIndex": index}


async def test_memory_survives_a_read() -> None:
    """Renewals and a seen node are kept over a read of the same boot, not over one of another boot."""
    one = book(ConsulClient())
    one.ledger.take_records(1, [record(holder(), 1)])
    one.ledger.take_nodes(2, [{"Node": "x-0", "CheckID": "serfHealth", "Status": "passing"}])
    one.clock.now = 1010.0
    await one.ledger.renew(one.ledger.slots["x-0"])
    one.ledger.take_records(3, [record(holder(), 1)])
    assert (one.ledger.slots["x-0"].renewed_at, one.ledger.slots["x-0"].joined) == (1010.0, True)
    one.ledger.take_records(4, [record(holder(key="k9", at=1005.0), 4)])
    assert (one.ledger.slots["x-0"].renewed_at, one.ledger.slots["x-0"].joined) == (1005.0, False)


async def test_an_answer_from_before_an_own_write_does_not_undo_it(consul: ConsulClient) -> None:
    """A watch may answer late: the slot stays taken, and can still be freed."""
    one = book(consul)
    index, before = await consul.get("/v1/kv/coordinator/", params={"recurse": ""})
    await one.ledger.take(holder(), peer())
    one.ledger.take_records(index, before)
    assert one.ledger.slots["x-0"].boot_key == "k0"
    assert await one.ledger.free(one.ledger.slots["x-0"], "test")


def test_a_holder_that_could_not_renew_gets_a_lease_from_our_start() -> None:
    """Coordinators were away: what was renewed long ago counts from now."""
    one = book(ConsulClient())
    one.ledger.take_records(1, [record(holder(at=10.0), 1)])
    assert one.ledger.slots["x-0"].renewed_at == 1000.0


def test_nodes_change_state_with_a_time() -> None:
    """A node's time is that of its last change; one that vanishes is absent."""
    one = book(ConsulClient())

    def see(status: str | None) -> tuple[NodeState, float]:
        one.ledger.take_nodes(1, [{"Node": "x-0", "CheckID": "serfHealth", "Status": status}] if status else [])
        return one.ledger.nodes["x-0"].state, one.ledger.nodes["x-0"].since

    assert see("passing") == (NodeState.ALIVE, 1000.0)
    one.clock.now = 1001.0
    assert see("passing") == (NodeState.ALIVE, 1000.0)
    assert see("critical") == (NodeState.FAILED, 1001.0)
    one.clock.now = 1002.0
    assert see(None) == (NodeState.ABSENT, 1002.0)


def test_a_services_check_over_a_nodes_own_is_no_verdict() -> None:
    """Any CVM can write one; neither does the node die of it nor live by it, its lease decides."""
    one = book(ConsulClient())
    good = {"Node": "x-0", "CheckID": "serfHealth", "Status": "passing", "ServiceID": ""}
    one.ledger.take_nodes(1, [good])
    for status in ("critical", "passing"):
        one.ledger.take_nodes(2, [good | {"Status": status, "ServiceID": "theirs"}])
        assert one.ledger.nodes == {}
    one.ledger.take_nodes(3, [good])
    assert one.ledger.nodes["x-0"].state is NodeState.ALIVE


async def test_such_a_check_is_what_a_cvm_can_write() -> None:
    """Consul takes it from another group's token: why the rule above is needed."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        applicant = Applicant(
            url=lead.url, manifest=lead.coordinator.head.manifest, group="api", who=cvm(API_COMPOSE, "api-0")
        )
        admission = await applicant.admitted()
        await eventually(lambda: "coordinator-0" in lead.coordinator.ledger.nodes, "the node is seen")
        check = {"Node": "coordinator-0", "CheckID": "serfHealth", "Name": "x", "ServiceID": "x", "Status": "critical"}
        body = {"Node": "coordinator-0", "SkipNodeUpdate": True, "Service": {"ID": "x", "Service": "api"}}
        async with ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as client:
            # The leader puts the node's own check back whenever it compares gossip with the catalog, once soon after
            # it was elected: a watch may be answered only after both. Written again until it was seen.
            for _ in range(30):
                assert await client.put("/v1/catalog/register", body | {"Check": check})
                if await soon(lambda: "coordinator-0" not in lead.coordinator.ledger.nodes, 1.0):
                    return
        pytest.fail("the check was never seen")


def test_records_that_cannot_be_read_are_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    """Garbage and a record under another's key are ignored, with a log line."""
    one = book(ConsulClient())
    garbage = {"Key": SLOTS_PREFIX + "x-1", "Value": base64.b64encode(b"no JSON").decode(), "ModifyIndex": 1}
    misplaced = record(replace(holder(), peer_id="x-0"), 2) | {"Key": SLOTS_PREFIX + "x-2"}
    one.ledger.take_records(1, [garbage, misplaced])
    assert one.ledger.slots == {}
    assert "slot record ignored" in caplog.text


async def test_the_beginning_of_the_records_is_noted_once(consul: ConsulClient) -> None:
    """Whichever coordinator was first says that they began; each counts a lease from when it saw that, whatever its
    clock says, and the first that has counted it ends the wait for all, also for one that starts later.
    """
    await consul.delete("/v1/kv/coordinator/", params={"recurse": ""})
    one, two = book(consul), book(consul)
    two.clock.now = 99_000.0
    for each in (one, two):
        await each.ledger.refresh()
        await each.ledger.begin()
    new = Newcomer(instance_id="i0", group="x")
    for each in (one, two):
        assert each.ledger.newcomers_wait(("x-0", "x-1"), new) == LEASE_SECONDS
    await one.ledger.wait_as_newcomer(new, 0.0)
    await two.ledger.refresh()
    assert two.ledger.newcomers_wait(("x-0", "x-1"), Newcomer(instance_id="i1", group="x")) == 0.0
    one.monotonic.now += LEASE_SECONDS - 0.5
    await one.ledger.forget_newcomers()
    assert one.ledger.newcomers, "half a second is left"
    one.monotonic.now += 0.5
    await one.ledger.forget_newcomers()
    late = book(consul)
    for each in (one, two, late):
        await each.ledger.refresh()
        await each.ledger.begin()
        assert each.ledger.newcomers == {}
        assert each.ledger.newcomers_wait(("x-0", "x-1"), new) == 0.0


async def test_records_have_a_name_that_comes_and_goes_with_them(consul: ConsulClient) -> None:
    """Whichever coordinator was first gives it; it stays for as long as the records do, and others have another one."""
    names = []
    for _ in range(2):
        for key in ("coordinator/", RECORDS_KEY):
            await consul.delete(f"/v1/kv/{key}", params={"recurse": ""})
        one, two = book(consul), book(consul)
        for each in (one, two, one, book(consul)):
            await each.ledger.refresh()
            await each.ledger.begin()
            names.append((await consul.get(f"/v1/kv/{RECORDS_KEY}"))[1][0]["Value"])
    assert names[0] == names[1] == names[2] == names[3]
    assert names[0] != names[4] == names[5] == names[6] == names[7]


async def test_records_that_are_there_delay_no_newcomer(consul: ConsulClient) -> None:
    """A coordinator that finds a holder knows who holds what, also in records of a version that noted no beginning."""
    await consul.delete("/v1/kv/coordinator/", params={"recurse": ""})
    await book(consul).ledger.take(holder(), peer())
    found = book(consul).ledger
    await found.refresh()
    await found.begin()
    assert found.newcomers_wait(("x-0", "x-1", "x-2"), Newcomer(instance_id="i9", group="x")) == 0.0


def test_a_node_that_was_never_seen_alive_here_is_no_death_that_was_noticed() -> None:
    """After a restart of all coordinators gossip lists as failed whom it has not found again: the lease decides."""
    one = book(ConsulClient())
    one.clock.now = 1003.0
    one.ledger.take_records(1, [record(replace(holder(), joined=True), 1)])
    one.ledger.take_nodes(2, [{"Node": "x-0", "CheckID": "serfHealth", "Status": "critical"}])
    found, node = one.ledger.slots["x-0"], one.ledger.nodes["x-0"]
    assert not dead(found, node, 1014.0)
    assert dead(found, node, 1016.0)


@pytest.mark.parametrize("value", ["[" * 200_000, "9" * 400, "9" * 5000, "null", "{}", "NaN", '"x"'])
def test_records_of_the_wrong_type_count_as_none(value: str) -> None:
    """A record that cannot be read is ignored, whichever it is; the others count, and no watch ends."""
    ledger = book(ConsulClient(Secret("none"))).ledger
    data = base64.b64encode(value.encode()).decode()
    keys = (BEGAN_KEY, NEWCOMERS_PREFIX + "a", SLOTS_PREFIX + "api-0", INSTANCES_PREFIX + "a")
    good = json.dumps(dataclasses.asdict(Newcomer(instance_id="b", group="api")))
    tree = [{"Key": key, "Value": data, "ModifyIndex": 7} for key in keys]
    tree.append({"Key": NEWCOMERS_PREFIX + "b", "Value": base64.b64encode(good.encode()).decode(), "ModifyIndex": 7})
    ledger.take_records(7, tree)
    ledger.take_peers(7, [{"Key": f"{PEERS_PREFIX}api-0", "Value": data, "ModifyIndex": 7}])
    assert not ledger.slots
    assert list(ledger.newcomers) == ["b"]
    assert ledger.newcomers_wait(("api-0",), Newcomer(instance_id="c", group="api")) == 0.0


@pytest.mark.parametrize("skew", [-3600.0, -14.0, 14.0, 3600.0])
@pytest.mark.parametrize("step", [0.0, -3600.0, 3600.0])
def test_no_clock_changes_the_wait_of_newcomers(skew: float, step: float) -> None:
    """Another coordinator's clock is ahead or behind, or ours is set while they wait: it is one lease all the same."""
    one = book(ConsulClient(Secret("none")))
    began = base64.b64encode(json.dumps(one.clock.now + skew).encode()).decode()
    one.ledger.take_records(7, [{"Key": BEGAN_KEY, "Value": began, "ModifyIndex": 7}])
    newcomer = Newcomer(instance_id="a", group="api")
    one.clock.now += step
    one.monotonic.now += 10.0
    one.ledger.take_records(8, [{"Key": BEGAN_KEY, "Value": began, "ModifyIndex": 7}])
    assert one.ledger.newcomers_wait(("api-0", "api-1"), newcomer) == LEASE_SECONDS - 10.0
    one.monotonic.now += LEASE_SECONDS - 10.0
    assert one.ledger.newcomers_wait(("api-0", "api-1"), newcomer) == 0.0
