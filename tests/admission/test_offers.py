"""Which manifest of a coordinator counts, for one who holds none and for one who holds one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.client import CoordinatorError, Greeting, RefusedError
from admission.offers import HISTORY, Offers
from admission.protocol import Code
from coordinator.proposal import shown
from tests.coordinator.world import OWNER, OWNERS, make_manifest
from tests.topology.support import after, opened, sealed
from topology.envelope import Signed, digest_of
from topology.handover import Handover
from topology.manifest import Manifest, encode
from topology.owners import Owners, key_of

SECOND = Ed25519PrivateKey.from_private_bytes(bytes(32))
ONE = opened(make_manifest(), OWNER)
TWO = opened(after(ONE, leaf_hours=9), OWNER)
HANDED = opened(after(TWO, owners=Owners(keys=(key_of(SECOND),))), OWNER)
"""Names other owners."""
FOUR = opened(after(HANDED), SECOND)
FIVE = opened(after(FOUR), SECOND)


class Server:
    """A server with a manifest and a history, a page of two at a time."""

    def __init__(self, signed: Signed | None, *history: Signed) -> None:
        self.signed, self.history = signed, history
        self.asked: list[str] = []

    @property
    def greeting(self) -> Greeting:
        return Greeting(
            url="https://one.test",
            certificate=b"",
            envelope=self.signed.envelope if self.signed else "",
            reason="" if self.signed else "NOT_READY: phase consul",
            ask=self.ask,
        )

    async def ask(self, path: str) -> Mapping[str, Any]:
        self.asked.append(path)
        if not self.history:
            raise RefusedError(Code.NOT_READY, "phase consul")
        epoch = int(path.removeprefix(f"{HISTORY}?after="))
        rest = [dataclasses.asdict(shown(each)) for each in self.history if each.manifest.epoch > epoch]
        return {"manifests": rest[:2], "more": len(rest) > 2}


def of_newer(manifest: Manifest) -> str:
    """The envelope of `manifest` in a version that this program does not know."""
    return sealed(json.dumps(json.loads(encode(manifest)) | {"version": 3}).encode(), OWNER)


async def judged(server: Server, held: Signed | None = None, owners: Owners | None = OWNERS) -> Signed:
    """Of a manifest for cluster `tests`."""

    def misfit(manifest: Manifest) -> str | None:
        return None if manifest.cluster == "tests" else f"it is of {manifest.cluster}"

    return await Offers(owners, lambda: held, misfit).judge(server.greeting)


async def refused(server: Server, held: Signed | None = None) -> str:
    """Why."""
    with pytest.raises(CoordinatorError) as caught:
        await judged(server, held)
    return str(caught.value)


async def test_the_first_is_one_that_the_owners_of_the_compose_file_signed() -> None:
    """And no other; nor one of another mesh of theirs."""
    assert await judged(Server(TWO)) == TWO
    assert await judged(Server(opened(make_manifest())), owners=None) == opened(make_manifest())
    assert "signed by 0 of" in await refused(Server(opened(make_manifest(), SECOND)))
    assert "signed by 0 of" in await refused(Server(opened(make_manifest())))
    other = opened(dataclasses.replace(ONE.manifest, cluster="staging"), OWNER)
    assert "is not for this CVM: it is of staging" in await refused(Server(other))
    assert await refused(Server(None)) == "https://one.test: NOT_READY: phase consul"
    newer = dataclasses.replace(
        TWO, envelope=sealed(json.dumps(json.loads(encode(TWO.manifest)) | {"version": 3}).encode(), OWNER)
    )
    assert "needs a newer program" in await refused(Server(newer))


async def test_after_a_change_of_owners_the_history_leads_to_the_first() -> None:
    """From a manifest that the owners of the compose file signed, each by the owners that the one before names."""
    server = Server(FIVE, ONE, TWO, HANDED, FOUR, FIVE)
    assert await judged(server) == FIVE
    assert server.asked == [f"{HISTORY}?after={epoch}" for epoch in (0, 2, 4)]


@pytest.mark.parametrize(
    "history",
    [
        (),
        (TWO, HANDED, FOUR, FIVE),
        (ONE, TWO, FOUR, FIVE),
        (ONE, TWO, HANDED),
        (ONE, TWO, opened(HANDED.manifest, SECOND), FOUR, FIVE),
        (opened(ONE.manifest, SECOND), TWO, HANDED, FOUR, FIVE),
    ],
    ids=["none", "no beginning", "a gap", "no end", "forged in between", "forged at the beginning"],
)
async def test_a_history_that_does_not_lead_there_is_none(history: tuple[Signed, ...]) -> None:
    """What it shows further is not asked for."""
    server = Server(FIVE, *history)
    assert "signed by 0 of" in await refused(server)
    assert len(server.asked) < 3


async def test_whoever_holds_one_goes_on_with_it_or_with_a_successor() -> None:
    """A coordinator that is older, not ready or of a newer version is judged by the one that is held."""
    assert await judged(Server(TWO), ONE) == TWO
    assert await judged(Server(HANDED, ONE, TWO, HANDED), ONE) == HANDED, "one was missed"
    assert await judged(Server(ONE), TWO) == TWO
    assert await judged(Server(TWO), TWO) == TWO
    assert await judged(Server(None), TWO) == TWO
    assert await judged(Server(dataclasses.replace(TWO, envelope=of_newer(after(TWO)))), TWO) == TWO
    assert await judged(Server(FIVE, ONE, TWO, HANDED, FOUR, FIVE), TWO) == FIVE, "owners changed meanwhile"


async def test_a_greater_epoch_counts_only_where_the_history_leads_to_it() -> None:
    """What follows a fork is signed by the same owners. A manifest in between that cannot be read is passed over."""
    fork = opened(after(opened(after(ONE, leaf_hours=10), OWNER)), OWNER)
    late = opened(after(fork), OWNER)
    for server in (
        Server(late),
        Server(late, ONE, TWO, HANDED),
        Server(late, fork, late),
        Server(late, TWO, fork, late),
    ):
        assert "those in between are needed first" in await refused(server, TWO)
    closed = dataclasses.replace(TWO, envelope=of_newer(TWO.manifest), digest=digest_of(of_newer(TWO.manifest)))
    third = opened(after(closed), OWNER)
    assert await judged(Server(third, ONE, closed, third), ONE) == third
    other = opened(after(closed, previous="ee" * 32), OWNER)
    assert "those in between" in await refused(Server(other, ONE, closed, other), ONE)


async def test_a_coordinator_that_enforces_another_than_is_held_is_not_used() -> None:
    """Two of one epoch, a retired owner, another cluster, another app."""
    fork = opened(after(ONE, leaf_hours=10), OWNER)
    assert "enforces another manifest" in await refused(Server(fork), TWO)
    assert "signed by 0 of" in await refused(Server(opened(after(HANDED), OWNER)), HANDED)
    foreign = opened(after(TWO, cluster="staging"), OWNER)
    assert "is of cluster 'staging'" in await refused(Server(foreign), TWO)
    app = dataclasses.replace(TWO.manifest.coordinators, app_id="11" * 20)
    assert "names the coordinators' app" in await refused(Server(opened(after(TWO, coordinators=app), OWNER)), TWO)


async def test_where_the_owners_have_handed_the_mesh_over_is_known_from_their_word_alone() -> None:
    """To who holds a manifest and to who has none; a stranger's says nothing."""
    held: list[Signed] = []
    offers = Offers(OWNERS, lambda: held[-1] if held else None, lambda _: None)
    own = ONE.manifest.coordinators
    given = Handover(from_app_id=own.app_id, until=2_000_000_000, urls=("https://former",))
    moved = after(ONE, coordinators=replace(own, app_id="77" * 20, handover=given))
    with pytest.raises(CoordinatorError):
        await offers.judge(Server(opened(moved, SECOND)).greeting)
    await offers.judge(Server(ONE).greeting)
    assert offers.elsewhere == ()
    for _ in range(2):
        offers.elsewhere = ()
        await offers.judge(Server(opened(moved, OWNER)).greeting)
        assert offers.elsewhere == tuple(peer.url for peer in own.peers)
        held.append(ONE)
