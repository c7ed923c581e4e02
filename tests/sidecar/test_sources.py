"""What an answer of Consul or of a coordinator changes in what a CVM knows."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from admission.protocol import MeshPeer
from sidecar import identity
from sidecar.catalog import instances
from sidecar.desired import World
from sidecar.sources import (
    CONSISTENT,
    Change,
    Query,
    hold,
    let_go,
    merge_peers,
    overlap,
    queries,
    take_manifest,
    with_admission,
    with_certificate,
    with_time,
)
from tests.sidecar.world import DIGEST, NOW, OWNER, given, health, kv, kv_peers, manifest, peer
from tests.topology.support import REFERENCE, opened
from tests.topology.support import after as following
from topology.envelope import Signed, seal
from topology.handover import Handover
from topology.manifest import CoordinatorPeer
from topology.revocation import Revocation

KEYS = identity.make()
HEAD = opened(manifest(), OWNER)
WORLD = World(signed=HEAD, own=manifest().groups["api"], group="api")


def taken(world: World, envelope: str) -> World:
    """The world after the KV's answer."""
    return take_manifest(world, kv({"mesh/manifest": envelope}), check_signatures=True)


def test_each_answer_changes_its_part_of_the_world() -> None:
    """Applying every watched answer once fills the world."""
    first = with_admission(WORLD, (peer("coordinator-0", "100.96.0.9", "coordinator"),), "100.96.0.10")
    wanted = queries(first, check_signatures=True)
    answers = {
        "/v1/kv/mesh/peers/": kv_peers(peer("api-1", "100.96.0.11")),
        "/v1/kv/mesh/manifest": None,
        "/v1/kv/mesh/records": kv({"mesh/records": "first"}),
        "/v1/health/service/api": [health("api-1", "100.96.0.11")],
    }
    assert {query.path for query in wanted} == set(answers)
    world = first
    for query, change in wanted.items():
        world = change(world, answers[query.path], 7)
    assert [one.peer_id for one in world.catalog["api"]] == ["api-1"]
    assert [one.peer_id for one in world.peers] == ["api-1", "coordinator-0"]
    assert world.records == "first"


def test_health_is_asked_for_passing_instances_from_the_agents_stream() -> None:
    """The query parameters are Consul's flags."""
    query = next(query for query in queries(WORLD, check_signatures=False) if query.path.startswith("/v1/health"))
    assert query == Query(path="/v1/health/service/api", params=(("passing", ""), ("cached", "")))


def test_keys_are_read_as_every_acknowledged_write_left_them() -> None:
    """Not as a server that has just restarted has them before it has applied its log."""
    keys = [query for query in queries(WORLD, check_signatures=False) if query.path.startswith("/v1/kv/")]
    assert keys
    assert all(CONSISTENT in query.params for query in keys)


def test_peers_of_the_admission_stay_known() -> None:
    """A registry that does not list the coordinators does not cut the tunnels to them; what is newer counts."""
    old = peer("coordinator-0", "100.96.0.9", "coordinator")
    listed = peer("api-1", "100.96.0.11")
    assert merge_peers((old,), (listed,)) == (listed, old)
    rekeyed = type(old)(peer_id="coordinator-0", public_key=listed.public_key, address="100.96.0.9", kind="coordinator")
    assert merge_peers((old,), (rekeyed,)) == (rekeyed,)


def test_coordinator_that_booted_anew_is_known_by_its_new_key_at_once() -> None:
    """An admission's coordinators replace what Consul listed before: the tunnel to it is what newer lists come by."""
    old = peer("coordinator-0", "100.96.0.9", "coordinator")
    new = dataclasses.replace(old, public_key=peer("x", "").public_key)
    before = with_admission(WORLD, (old,), "100.96.0.10")
    after = with_admission(before, (new,), "100.96.0.10")
    assert (before.peers, after.peers) == ((old,), (new,))


LEADS = manifest().coordinators
WITH_TWO = dataclasses.replace(
    manifest(),
    coordinators=dataclasses.replace(
        LEADS,
        compose_hashes=(*LEADS.compose_hashes, "ce" * 32),
        peers=(*LEADS.peers, CoordinatorPeer(peer_id="coordinator-1", address="100.96.0.8", url="https://two.test")),
    ),
)


def lead(peer_id: str, address: str, compose_hash: str) -> MeshPeer:
    """A coordinator, as it says who it is."""
    said = {"kind": "coordinator", "compose_hash": compose_hash, "app_id": LEADS.app_id, "image": ""}
    return dataclasses.replace(peer(peer_id, address), **said)  # type: ignore[arg-type]


GOOD = lead(LEADS.peers[0].peer_id, LEADS.peers[0].address, LEADS.compose_hashes[0])
BAD = lead("coordinator-1", "100.96.0.8", "ce" * 32)


def with_two() -> tuple[World, Change]:
    """A CVM that both coordinators admitted, and what takes Consul's list of peers."""
    world = dataclasses.replace(WORLD, signed=opened(WITH_TWO, OWNER))
    [tell] = [change for query, change in queries(world, check_signatures=False).items() if "peers" in query.path]
    return tell(with_admission(world, (GOOD, BAD), "100.96.0.10"), kv_peers(GOOD, BAD), 7), tell


@pytest.mark.parametrize("what", [{"peer_id": "coordinator-1"}, {"compose_hash": "ce" * 32}, {}])
def test_no_tunnel_leads_to_a_coordinator_that_the_manifest_refuses(what: dict[str, str]) -> None:
    """Revoked by slot or compose hash, or of a hash that is gone: at once, though an admission and Consul name it."""
    world, _ = with_two()
    assert world.peers == (GOOD, BAD)
    revoked = (Revocation(**what),) if what else ()  # type: ignore[arg-type]
    newer = following(world.signed, revoked=revoked, coordinators=WITH_TWO.coordinators)
    if not what:
        leads = dataclasses.replace(WITH_TWO.coordinators, compose_hashes=LEADS.compose_hashes)
        newer = dataclasses.replace(newer, coordinators=leads)
    assert taken(world, seal(newer, OWNER)).peers == (GOOD,)
    silent = dataclasses.replace(BAD, compose_hash="", app_id="")
    assert with_admission(world, (GOOD, silent), "100.96.0.10").peers == (GOOD, silent)


def test_a_coordinator_that_the_others_put_out_has_no_tunnel() -> None:
    """For its instance or its machine, which only they know: it was on the list, and is not. A list that has none is
    that of servers that have lost what they knew; and it is back with the list, or an admission.
    """
    world, tell = with_two()
    out = tell(hold(world), kv_peers(GOOD), 8)
    assert out.peers == (GOOD,)
    assert tell(out, kv_peers(GOOD), 9).peers == (GOOD,)
    assert tell(out, kv_peers(GOOD, BAD), 9).peers == (GOOD, BAD)
    assert with_admission(out, (GOOD, BAD), "100.96.0.10").peers == (GOOD, BAD)
    assert tell(world, None, 3).peers == (GOOD, BAD)
    never_listed = with_admission(world, (GOOD, BAD), "100.96.0.10")
    assert tell(never_listed, kv_peers(GOOD), 8).peers == (GOOD, BAD), "it may not have written itself down yet"


def test_instances_are_held_over_a_recovery_and_let_go() -> None:
    """hold() keeps what is listed, also when it happens twice; let_go() forgets it."""
    listed = instances([health("api-1", "100.96.0.11")])
    first = hold(dataclasses.replace(WORLD, catalog={"api": listed}))
    assert first.held == {"api": listed}
    again = hold(dataclasses.replace(first, catalog={"api": ()}))
    assert again.held == {"api": listed}
    newer_one = instances([health("api-1", index=99)])
    assert hold(dataclasses.replace(again, catalog={"api": newer_one})).held == {"api": newer_one}
    assert let_go(again).held == {}


def test_tunnels_stay_over_a_recovery_as_far_as_the_manifest_has_the_peers() -> None:
    """Servers that came back on empty disks list nobody at first, though all run."""
    own, coordinator = manifest().groups["api"].peers[0], peer("coordinator-0", "100.96.0.9", "coordinator")
    listed, stranger = peer(own.peer_id, own.address), peer("api-77", "100.96.0.177")
    [tell] = [change for query, change in queries(WORLD, check_signatures=False).items() if "peers" in query.path]
    admitted = with_admission(WORLD, (coordinator,), "100.96.0.10")
    before = tell(admitted, kv_peers(listed, stranger), 7)
    assert {one.peer_id for one in before.peers} == {own.peer_id, "coordinator-0"}
    held = tell(hold(before), None, 3)
    assert {one.peer_id for one in held.peers} == {own.peer_id, "coordinator-0"}
    rekeyed = dataclasses.replace(listed, public_key=coordinator.public_key)
    assert rekeyed in tell(held, kv_peers(rekeyed), 4).peers
    assert {one.peer_id for one in let_go(held).peers} == {"coordinator-0"}


def test_nobody_is_a_peer_whom_the_manifest_does_not_have() -> None:
    """Whatever Consul lists, or a coordinator names: a slot of another address, no slot, a workload's slot as a
    coordinator's, what the manifest no longer allows. A newer manifest counts for who is listed already.
    """
    one, other = (peer(slot.peer_id, slot.address) for slot in manifest().groups["api"].peers)
    [tell] = [change for query, change in queries(WORLD, check_signatures=False).items() if "peers" in query.path]
    for wrong in (
        peer("api-77", "100.96.0.177"),
        peer("coordinator-7", "100.96.0.97", "coordinator"),
        dataclasses.replace(other, address="100.96.0.50"),
        dataclasses.replace(other, compose_hash="99" * 32),
        dataclasses.replace(other, app_id="99" * 20),
        dataclasses.replace(other, compose_hash="99" * 32, kind="coordinator"),
    ):
        assert tell(WORLD, kv_peers(one, wrong), 7).peers == (one,)
        assert with_admission(WORLD, (one, wrong), "100.96.0.10").peers == (one,)
    api = manifest().groups["api"]
    moved = dataclasses.replace(other, address="100.96.0.50")
    slots = (api.peers[0], dataclasses.replace(api.peers[1], address="100.96.0.50"))
    envelope = seal(following(HEAD, groups={**manifest().groups, "api": dataclasses.replace(api, peers=slots)}), OWNER)
    assert taken(tell(WORLD, kv_peers(one, moved), 7), envelope).peers == (one, moved)
    assert taken(tell(WORLD, kv_peers(one, other), 7), envelope).peers == (one,)


def test_what_is_held_is_let_go_when_the_servers_have_lost_nothing() -> None:
    """A lease alone was lost: the records are those of before. Other records, or none yet, are waited for, also where a
    lease is lost once more meanwhile; their second answer is no sign of anything.
    """
    [tell] = [change for query, change in queries(WORLD, check_signatures=False).items() if "records" in query.path]
    first, second = kv({"mesh/records": "first"}), kv({"mesh/records": "second"})
    good = {"api": instances([health("api-1", "100.96.0.11")])}
    before = tell(dataclasses.replace(WORLD, catalog=good), first, 7)
    held = hold(before)
    assert (held.held, tell(held, None, 8).held) == (good, good)
    assert tell(held, first, 9).held == {}
    lost = tell(held, second, 3)
    assert lost.held == tell(lost, second, 4).held == tell(hold(lost), second, 5).held == good
    later = tell(hold(let_go(lost)), second, 6)
    assert later.held == {}


def test_who_the_manifest_dropped_is_not_held() -> None:
    """Neither its tunnel nor its instance, whether the manifest came before the loss or after: by slot, by app, by
    compose hash and by OS image.
    """
    one, other = manifest().groups["api"].peers
    listed = (peer(one.peer_id, one.address), peer(other.peer_id, other.address))
    [tell] = [change for query, change in queries(WORLD, check_signatures=False).items() if "peers" in query.path]
    good = instances([health("api-0"), health("api-1", "100.96.0.11")])
    before = dataclasses.replace(tell(WORLD, kv_peers(*listed), 7), catalog={"api": good})
    api = manifest().groups["api"]
    without_slot = dataclasses.replace(api, peers=api.peers[:1])
    with_hash = dataclasses.replace(api, compose_hashes=("55" * 32,))
    images = tuple(dataclasses.replace(image, rtmr2="09") for image in REFERENCE.os_images)
    for changes, stays in (
        ({"groups": {**manifest().groups, "api": without_slot}}, {"api-0"}),
        ({"groups": {**manifest().groups, "api": with_hash}}, set()),
        ({"groups": {**manifest().groups, "api": dataclasses.replace(api, app_id="99" * 20)}}, set()),
        ({"references": (dataclasses.replace(REFERENCE, os_images=images),)}, set()),
    ):
        envelope = seal(following(HEAD, **changes), OWNER)
        for after in (hold(taken(before, envelope)), tell(taken(tell(hold(before), None, 3), envelope), None, 4)):
            assert {each.peer_id for each in after.peers} == stays
            assert {each.peer_id for each in after.held_peers} == stays
            assert {each.peer_id for each in after.held["api"]} == stays
        assert {each.peer_id for each in taken(before, envelope).peers} == stays


def test_a_certificate_is_known_with_its_key_and_ages() -> None:
    """The same answer again is no news; the window of the manifest ends what was trusted before."""
    key = KEYS.leaf_private_pem
    world = with_certificate(WORLD, given(KEYS.public.leaf), key, key, 0.0, 0.0, 120.0)
    assert world.certificate is not None
    assert (world.certificate.digest, world.leaf_key) == (DIGEST, key)
    assert with_certificate(world, given(KEYS.public.leaf, leaf=False), key, key, 5.0, 0.0, 120.0) is world
    changed = with_certificate(world, given(KEYS.public.leaf, "e2" * 32, DIGEST, epoch=4), key, key, 10.0, 5.0, 120.0)
    assert changed.certificate is not None
    assert len(changed.certificate.trusted) == 2
    assert with_time(changed, 20.0) is changed
    ended = with_time(changed, 10.0 + WORLD.manifest.overlap_seconds).certificate
    assert ended is not None
    assert len(ended.trusted) == 1
    assert with_time(WORLD, 1e9) is WORLD


def test_a_coordinator_that_the_manifest_drops_is_no_peer_whoever_lists_it() -> None:
    """It writes the list itself. One that the manifest adds is a peer once it was told, though it was told before."""
    zero, one = (peer(f"coordinator-{n}", f"100.96.0.{(9, 200)[n]}", "coordinator") for n in (0, 1))
    [tell] = [change for query, change in queries(WORLD, check_signatures=False).items() if "peers" in query.path]
    told = tell(with_admission(WORLD, (zero, one), "100.96.0.10"), kv_peers(zero, one), 7)
    assert told.peers == (zero,)
    assert tell(told, kv_peers(dataclasses.replace(zero, address="100.96.0.77"), one), 8).peers == (), "not there"
    leads = manifest().coordinators
    added = dataclasses.replace(leads.peers[0], peer_id=one.peer_id, address=one.address)
    both = dataclasses.replace(leads, peers=(*leads.peers, added))
    grown = opened(following(HEAD, coordinators=both), OWNER)
    more = taken(told, grown.envelope)
    assert more.peers == (zero, one)
    fewer = taken(more, seal(following(grown, coordinators=leads), OWNER))
    assert fewer.peers == (zero,)
    assert tell(fewer, kv_peers(zero, one), 8).peers == (zero,)


def handed_over() -> Signed:
    """The manifest that hands the mesh over to coordinator-9."""
    own = HEAD.manifest.coordinators
    given_by = Handover(from_app_id=own.app_id, until=int(NOW) + 600, urls=("https://former",))
    new = CoordinatorPeer(peer_id="coordinator-9", address="100.96.9.9", url="https://new")
    return opened(following(HEAD, coordinators=replace(own, app_id="77" * 20, peers=(new,), handover=given_by)), OWNER)


def test_a_handover_holds_what_is_good_and_keeps_the_former_coordinators_until_a_new_one_admits() -> None:
    """Their Consul is all that there is until then; the text of its records lets nothing go."""
    lead = HEAD.manifest.coordinators.peers[0]
    former, new = peer(lead.peer_id, lead.address, "coordinator"), peer("coordinator-9", "100.96.9.9", "coordinator")
    world = replace(with_admission(WORLD, (former,), "100.96.0.10"), records="ab")
    world = replace(world, catalog={"api": instances([health("api-1", "100.96.0.11")])})
    found = taken(world, handed_over().envelope)
    assert found.held["api"] == world.catalog["api"]
    assert [each.peer_id for each in found.peers] == [lead.peer_id]
    records = next(change for query, change in queries(found, check_signatures=True).items() if "records" in query.path)
    assert records(found, kv({"mesh/records": "ab"}), 1).held == found.held
    admitted = with_admission(found, (new,), "100.96.0.10")
    assert [each.peer_id for each in admitted.peers] == ["coordinator-9"]
    early = with_admission(world, (new,), "100.96.0.10")
    assert [each.peer_id for each in taken(early, handed_over().envelope).peers] == ["coordinator-9"]
    back = opened(following(handed_over(), coordinators=HEAD.manifest.coordinators), OWNER)
    again = taken(let_go(found), back.envelope)
    assert ([each.peer_id for each in again.peers], again.held, again.former) == ([lead.peer_id], {}, ())


def test_certificates_of_before_count_while_a_handover_lasts() -> None:
    """Or for overlap_seconds, whichever is longer."""
    assert [overlap(handed_over().manifest, NOW + late) for late in (0, 590, 700)] == [600.0, 120.0, 120.0]
    assert overlap(HEAD.manifest, NOW) == 120.0
