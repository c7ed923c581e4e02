"""Several coordinators: they find each other by evidence, form a quorum and survive the loss of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from admission.client import CoordinatorError, Greeting, NotAllowedError
from admission.protocol import MAX_BODY
from coordinator.broker import Rules
from coordinator.proposal import shown
from coordinator.siblings import Own, Sibling
from evidence.verify import Evidence
from runtime.guest import GuestAgent
from runtime.tasks import TaskScope
from tests.admission.test_client import Fake, serve, trusting
from tests.coordinator.test_head import FIRST, INFO
from tests.coordinator.world import API_COMPOSE, OWNER, Applicant, Running, cluster, cvm, make_boot
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.manifest import CoordinatorPeer

COORDINATORS = {"coordinator-0", "coordinator-1", "coordinator-2"}


async def test_three_coordinators_form_a_quorum_and_survive_the_loss_of_one() -> None:
    """Each attests to the others, their servers elect a leader, and with one gone the others admit."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        for n in range(3):
            await mesh.ready(n, 30)
        await eventually(
            lambda: all(names(running) == COORDINATORS - {f"coordinator-{n}"} for n, running in mesh.running.items()),
            "each has the two others on its link",
        )
        first = await Applicant(url=mesh.running[1].url, manifest=mesh.manifest).admitted()
        assert first["peer_id"] == "api-0"
        await eventually(
            lambda: all(any(p.peer_id == "api-0" for p in r.link.peers) for r in mesh.running.values()),
            "every coordinator's link has the new peer",
        )
        told = {holder.peer_id for holder in mesh.running[0].coordinator.broker.admitted()}
        assert told == {"api-0", "coordinator-1", "coordinator-2"}
        await mesh.lose(0)
        other = Applicant(url=mesh.running[1].url, manifest=mesh.manifest, who=cvm(API_COMPOSE, "api-1"))
        await mesh.retry(other, 30)
        await eventually(lambda: "api-1" in admitted(mesh.running[2]), "the third coordinator knows it too")
        renewed, answer = await Applicant(url=mesh.running[2].url, manifest=mesh.manifest).post(
            "renew", {"lease": first["lease"]}
        )
        assert renewed == 200, answer
        await mesh.start(0)
        await mesh.ready(0, 30)
        key = mesh.running[0].link.public_key
        for n in (1, 2):
            await eventually(
                lambda n=n: key in {peer.public_key for peer in mesh.running[n].link.peers},  # type: ignore[misc]
                "the others have its key as soon as gossip has given up the old boot",
            )
        await eventually(lambda: {"api-0", "api-1"} <= admitted(mesh.running[0]), "the lost coordinator caught up")


def no_rules() -> Rules:
    """Nobody asks for them before there is a challenge."""
    raise AssertionError


class Unasked:
    """A verifier that nobody asks: the fake coordinator is trusted for its certificate."""

    async def verify(self, **_: object) -> Evidence:
        """Never."""
        raise AssertionError


def asked(
    fake: Fake,
    folder: Path,
    verify: Any,
    refused: Callable[[str], None] = lambda _: None,
    enforces: Callable[[str], None] = lambda _: None,
) -> Sibling:
    """The sibling that `fake` plays, by whatever `verify` says of its certificate."""
    sibling = Sibling(
        CoordinatorPeer(peer_id="coordinator-1", address="127.0.0.2", url=fake.url),
        Own(peer_id="coordinator-0", info=INFO, boot=make_boot(leaf=False)),
        guest=GuestAgent(folder / "none.sock"),
        rules=no_rules,
        verifier=Unasked(),
        admitted=lambda _: None,
        refused=refused,
        enforces=enforces,
        handovers=tuple,
        ask=dict,
        hurry=lambda: False,
        clock=lambda: 0.0,
        rng=Random(1),
    )
    sibling._verify = verify
    return sibling


@pytest.mark.parametrize("body", [b"[" * 200_000, b"9" * 5000, b"\xff", b'"' + b"x" * MAX_BODY + b'"'])
async def test_answer_that_cannot_be_read_is_that_siblings_failure(body: bytes, tmp_path: Path) -> None:
    """Whatever a sibling answers, too deep, too long or no JSON: it is not joined, and this coordinator goes on."""
    fake = Fake(answer=(200, body))
    async with serve(fake, tmp_path), TaskScope() as scope:
        sibling = asked(fake, tmp_path, trusting)
        task = scope.start("sibling", sibling.run())
        await eventually(lambda: fake.url in sibling.state, f"it says what is wrong: {sibling.state}")
        assert not task.done()
        task.cancel()
    assert sibling.standing is None


async def test_who_shows_what_the_manifest_does_not_allow_is_named(tmp_path: Path) -> None:
    """And not whoever is away, or cannot be judged now."""
    for kind, named in ((CoordinatorError, []), (NotAllowedError, ["coordinator-1"])):
        told: list[str] = []

        async def refusing(_: Greeting, kind: type[CoordinatorError] = kind) -> None:
            raise kind("the evidence is refused")

        fake = Fake()
        async with serve(fake, tmp_path), TaskScope() as scope:
            sibling = asked(fake, tmp_path, refusing, told.append)
            task = scope.start("sibling", sibling.run())
            await eventually(lambda: sibling.state != "not joined", "it was asked")  # noqa: B023 - awaited here
            task.cancel()
        assert told[:1] == named


class Asked:
    """A coordinator that shows `history`."""

    def __init__(self, *history: Signed) -> None:
        self.history = history
        self.asked: list[str] = []

    async def ask(self, path: str) -> dict[str, object]:
        """See `admission.broker.Broker`."""
        self.asked.append(path)
        if not self.history:
            raise CoordinatorError("it does not answer")
        return {"manifests": [dataclasses.asdict(shown(each)) for each in self.history], "more": False}


async def test_what_a_sibling_enforces_comes_after_those_in_between(tmp_path: Path) -> None:
    """A coordinator that was dropped while it was away has nobody else who would tell it."""
    two = opened(after(FIRST), OWNER)
    three = opened(after(two), OWNER)
    for history, newest, wanted, asks in (
        ((), two, [two], 0),
        ((two, three), three, [two, three, three], 1),
        ((), three, [three], 1),
        ((opened(after(FIRST, leaf_hours=9)), three), three, [three], 1),
    ):
        told: list[str] = []
        sibling = asked(Fake(), tmp_path, trusting, enforces=told.append)
        sibling._rules = lambda: Rules(signed=FIRST, adopted_at=0.0)
        broker = Asked(*history)
        await sibling._hear(broker, newest.envelope)  # type: ignore[arg-type]
        assert told == [each.envelope for each in wanted]
        assert broker.asked == ["/v1/manifest/history?after=1"] * asks


def names(running: Running) -> set[str]:
    """Peers on its link."""
    return {peer.peer_id for peer in running.link.peers}


def admitted(running: Running) -> set[str]:
    """Who is admitted, as that coordinator sees it."""
    found = running.coordinator.document()["admitted"]
    assert isinstance(found, list)
    return set(found)
