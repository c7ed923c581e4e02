"""A coordinator that was dropped and means ill: its link ends whatever it makes of Raft. Without Consul, and by a clock
of the test's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest

from admission.protocol import MeshPeer
from coordinator.broker import Broker as RealBroker
from coordinator.broker import Clocks, Rules
from coordinator.circle import GRACE_SECONDS, LOOK_SECONDS, UNPROVEN_SECONDS, Circle, Parts
from coordinator.forming import Standing
from coordinator.keys import derive
from coordinator.registry import Registry
from coordinator.voters import Server
from runtime.consul import ConsulError
from runtime.secret import Secret
from tests.coordinator.world import OWNER, make_manifest, wireguard_key
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.handover import Handover
from topology.manifest import CoordinatorPeer

HEAD = opened(make_manifest(coordinators=2), OWNER)
STAYS, GOES = HEAD.manifest.coordinators.peers
FEWER = opened(
    after(HEAD, coordinators=type(HEAD.manifest.coordinators)(
        app_id=HEAD.manifest.coordinators.app_id,
        compose_hashes=HEAD.manifest.coordinators.compose_hashes,
        peers=(STAYS,),
    )),
    OWNER,
)  # fmt: skip


class IllMeant:
    """A Consul server beside one that means ill: it leads and refuses to go, or its answers fail, or it calls elections
    again and again, so that no removal is committed.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self.looks = 0
        self.client = self

    async def standing(self) -> Standing:
        self.looks += 1
        led = self.how != "elections" or self.looks % 4 != 0
        return Standing(records=True, led=led, voters=(STAYS.address, GOES.address))

    async def raft(self) -> tuple[Server, ...]:
        if self.how == "fails":
            raise ConsulError(500, "rpc error")
        leads = self.how == "leads"
        return (
            Server(server_id="a", address=STAYS.address, leads=not leads, votes=True, alive=True),
            Server(server_id="b", address=GOES.address, leads=leads, votes=True, alive=True),
        )

    async def take_lead(self, server_id: str) -> None:
        raise ConsulError(500, f"{server_id} does not get the lead")

    async def remove(self, server_id: str) -> None:
        """Taken, and never committed."""

    async def delete(self, path: str) -> None:
        """Takes an entry of the KV away."""

    async def force_out(self, staying: object) -> None:
        """Of gossip."""


def entry(peer_id: str, address: str) -> MeshPeer:
    """A coordinator on the link."""
    return MeshPeer(peer_id=peer_id, public_key=wireguard_key(), address=address, kind="coordinator")


class Broker:
    """What the circle asks of `coordinator.broker`."""

    def __init__(self) -> None:
        self.rules = SimpleNamespace(manifest=FEWER.manifest)
        self.ended: list[str] = []
        self.proven: set[str] = set()

    def allows_sibling(self, peer_id: str) -> bool:
        return any(peer.peer_id == peer_id for peer in self.rules.manifest.coordinators.peers)

    def proven_sibling(self, peer_id: str) -> bool:
        return peer_id in self.proven

    def put_out(self, peer_id: str) -> None:
        self.ended.append(peer_id)


def circle_of(
    own: MeshPeer, broker: Broker | RealBroker, registry: Registry, server: IllMeant, chain: tuple[Signed, ...]
) -> Circle:
    """The circle of `own`, with siblings that are away."""
    return Circle(
        Parts(
            own=own,
            broker=broker,  # type: ignore[arg-type]
            registry=registry,
            server=server,  # type: ignore[arg-type]
            chain=lambda: chain,
            make=lambda _: SimpleNamespace(run=asyncio.Event().wait),  # type: ignore[arg-type, return-value]
            dismissed=lambda: None,
        )
    )


@pytest.mark.parametrize("how", ["leads", "fails", "elections"])
async def test_a_dropped_coordinator_that_means_ill_is_put_out(how: str) -> None:
    """After the grace, and not before; time without a leader does not count. Back on the link by whatever way, it is
    put out again at once.
    """
    own, gone = entry(STAYS.peer_id, STAYS.address), entry(GOES.peer_id, GOES.address)
    registry, broker = Registry(lambda: None), Broker()
    registry.put(own)
    registry.put(gone)
    circle = circle_of(own, broker, registry, IllMeant(how), (HEAD, FEWER))
    now = 0.0
    while now < GRACE_SECONDS:
        await circle.look(now)
        assert registry.peers() == (own, gone)
        now += LOOK_SECONDS
    longest = 2 * GRACE_SECONDS
    while len(registry.peers()) > 1 and now < longest:
        await circle.look(now)
        now += LOOK_SECONDS
    assert registry.peers() == (own,)
    assert broker.ended == [GOES.peer_id]
    registry.put(gone)
    await circle.look(now)
    assert registry.peers() == (own,)


class Leads(IllMeant):
    """A server that leads healthy others, and notes whom it removes."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        super().__init__("well")
        self.addresses, self.removed = addresses, list[str]()

    async def standing(self) -> Standing:
        return Standing(records=True, led=True, voters=self.addresses)

    async def raft(self) -> tuple[Server, ...]:
        own = self.addresses[0]
        return tuple(Server(server_id=it, address=it, leads=it == own, votes=True, alive=True) for it in self.addresses)

    async def remove(self, server_id: str) -> None:
        self.removed.append(server_id)


@pytest.mark.parametrize("withdrawn", [False, True])
async def test_foreign_evidence_at_its_url_takes_no_voter_away(withdrawn: bool) -> None:
    """The leader has restarted, and the host leads its siblings' URLs to a CVM of its own and drops what they attest.
    Their servers are well and stay voters; where something was withdrawn their links end, for they may be meant.
    """
    first = opened(make_manifest(coordinators=3), OWNER)
    leads = first.manifest.coordinators
    more = dataclasses.replace(leads, compose_hashes=(*leads.compose_hashes, "ab" * 32))
    head = opened(after(first, coordinators=more), OWNER)
    chain = (first, head, opened(after(head, coordinators=leads), OWNER)) if withdrawn else (first, head)
    clock = [0.0]
    broker = RealBroker(
        rules=Rules(signed=chain[-1], adopted_at=0.0),
        verifier=None,  # type: ignore[arg-type]
        keys=derive(Secret("11" * 32), "tests"),
        ledger=None,  # type: ignore[arg-type]
        registry=None,  # type: ignore[arg-type]
        feed=None,  # type: ignore[arg-type]
        clocks=Clocks(unix=lambda: clock[0], monotonic=lambda: clock[0]),
        random=bytes,
        offered=None,  # type: ignore[arg-type]
    )
    registry, peers = Registry(lambda: None), [entry(it.peer_id, it.address) for it in leads.peers]
    for peer in peers:
        registry.put(peer)
    server = Leads(tuple(peer.address for peer in peers))
    circle = circle_of(peers[0], broker, registry, server, chain)
    while clock[0] < 2 * UNPROVEN_SECONDS:
        for peer in peers[1:]:
            broker.verified_sibling(peer.peer_id, good=False)
        await circle.look(clock[0])
        clock[0] += LOOK_SECONDS
    assert server.removed == []
    assert list(registry.peers()) == (peers[:1] if withdrawn else peers)


NARROWED = opened(
    after(HEAD, coordinators=dataclasses.replace(HEAD.manifest.coordinators, compose_hashes=("ab" * 32,))), OWNER
)
"""Lists both, and no longer allows what they measured."""


@pytest.mark.parametrize(("newest", "ends"), [(NARROWED, True), (opened(after(HEAD), OWNER), False)])
async def test_one_that_may_be_withdrawn_and_shows_nothing_has_no_link(newest: Signed, ends: bool) -> None:
    """After a restart, when nobody here has its evidence; where nothing was withdrawn it is merely away. With evidence
    it has its link, and its server is nobody's business here.
    """
    own, other = entry(STAYS.peer_id, STAYS.address), entry(GOES.peer_id, GOES.address)
    registry, broker = Registry(lambda: None), Broker()
    broker.rules = SimpleNamespace(manifest=newest.manifest)
    registry.put(own)
    registry.put(other)
    circle = circle_of(own, broker, registry, IllMeant("elections"), (HEAD, newest))
    for now in (0.0, UNPROVEN_SECONDS - 1):
        await circle.look(now)
        assert registry.peers() == (own, other)
    await circle.look(UNPROVEN_SECONDS)
    assert (other in registry.peers()) == (not ends)
    assert broker.ended == []
    broker.proven.add(other.peer_id)
    registry.put(other)
    await circle.look(3 * UNPROVEN_SECONDS)
    assert registry.peers() == (own, other)


def test_who_has_handed_the_mesh_over_stays_with_those_that_it_was_with() -> None:
    """They have the records together until the new coordinators have them: their own siblings are asked, not those."""
    former = HEAD.manifest.coordinators
    given = Handover(from_app_id=former.app_id, until=2_000_000_000, urls=("https://former",))
    new = CoordinatorPeer(peer_id="coordinator-9", address="127.0.0.9", url="https://new")
    own = dataclasses.replace(former, app_id="77" * 20, peers=(new,), handover=given)
    moved = opened(after(HEAD, coordinators=own), OWNER)
    broker = Broker()
    broker.rules = SimpleNamespace(manifest=moved.manifest)
    for app_id, addresses in ((former.app_id, (GOES.address,)), ("77" * 20, ("127.0.0.9",))):
        who = dataclasses.replace(entry(STAYS.peer_id, STAYS.address), app_id=app_id)
        circle = circle_of(who, broker, Registry(lambda: None), IllMeant("leads"), (HEAD, moved))
        assert circle.addresses == addresses
