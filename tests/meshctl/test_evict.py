"""`./mesh evict PEER`: the slot goes, the manifest is signed and set, and what cannot be is said first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshctl import owner_access
from meshctl.cli import cli
from meshctl.errors import UserError
from meshctl.evict import without
from meshctl.manifest_sign import SIGNED, head
from tests.coordinator.world import make_database_manifest, make_manifest
from tests.meshctl.test_manifest import Owner, owner
from tests.meshctl.test_set_command import URL, Coordinator, lab
from topology.cluster import load
from topology.envelope import open_envelope
from topology.manifest import decode

__all__ = ["lab", "owner"]
MANIFEST = make_database_manifest()


def run(*arguments: str) -> Result:
    """`./mesh evict ARGUMENTS`."""
    return CliRunner().invoke(cli, ["evict", *arguments])


def refused(result: Result, *words: str) -> None:
    """It ended with a message that has all `words`."""
    assert isinstance(result.exception, UserError), result.output
    for word in words:
        assert word in str(result.exception)


def test_the_slot_and_its_own_routes_go() -> None:
    """And nothing else."""
    own = [replace(MANIFEST.routes[0], name=f"db-{n}", peer=f"db-{n}", role=None, leader_key=None) for n in (0, 1)]
    manifest = replace(MANIFEST, routes=(*MANIFEST.routes, *own))
    found = without(manifest, "db-1")
    assert [peer.peer_id for peer in found.groups["db"].peers] == ["db-0"]
    assert found.routes == (*MANIFEST.routes, own[0])
    assert found.rotate.gossip == 1
    assert replace(found, groups=manifest.groups, routes=manifest.routes, rotate=manifest.rotate) == manifest
    kept = without(manifest, "db-1", rotate=False)
    assert (kept.groups, kept.rotate) == (found.groups, manifest.rotate)


def test_what_is_no_slot_is_named() -> None:
    """With those that are."""
    with pytest.raises(UserError, match=r"there is no slot 'api-7'\n.*api-0, api-1, client-0"):
        without(MANIFEST, "api-7")
    with pytest.raises(UserError, match="coordinator-0 is the only coordinator"):
        without(MANIFEST, "coordinator-0")


def test_a_coordinator_goes_where_another_stays() -> None:
    """And nothing else."""
    three = make_manifest(coordinators=3)
    found = without(three, "coordinator-1")
    assert [peer.peer_id for peer in found.coordinators.peers] == ["coordinator-0", "coordinator-2"]
    assert replace(found, coordinators=three.coordinators) == three


def test_a_labs_slot_is_taken_away(lab: Coordinator) -> None:
    """Its owner signs."""
    done = run("api-1", "--yes")
    assert done.exit_code == 0, done.output
    assert lab.head.manifest.epoch == 2
    assert [peer.peer_id for peer in lab.head.manifest.groups["api"].peers] == ["api-0"]
    assert "evicted" in done.output
    assert lab.head.manifest.rotate.gossip == 1
    assert "a new gossip key" in done.output
    refused(run("api-1", "--yes"), "there is no slot 'api-1'")


def test_a_deployed_slot_is_taken_away(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's key signs what follows the cluster's manifest, which is written once it is set."""
    asked = Coordinator()
    monkeypatch.setattr(owner_access, "deployed", lambda *_: asked.mesh)
    target = [str(owner.cluster), "-c", URL, "--key", str(owner.key)]
    refused(run("worker-1", *target), "has no manifest.signed yet")
    assert owner.generate().exit_code == 0
    assert owner.sign().exit_code == 0
    first = head(load(owner.cluster))
    assert first is not None
    asked.head = open_envelope(first.envelope, None)
    monkeypatch.setattr("tests.meshctl.test_set_command.OWNERS", first.manifest.owners)
    done = run("worker-1", *target, "--yes")
    assert done.exit_code == 0, done.output + repr(done.exception)
    now = head(load(owner.cluster))
    assert now is not None
    assert (now.digest, now.manifest.previous) == (asked.head.digest, first.digest)
    assert [peer.peer_id for peer in now.manifest.groups["worker"].peers] == ["worker-0"]
    assert owner.generate().exit_code == 0
    made = decode(owner.draft.read_bytes())
    assert [peer.peer_id for peer in made.groups["worker"].peers] == ["worker-0"], "it would have brought the slot back"
    assert made == now.manifest
    assert made.rotate.gossip == 1, "with the old count it could not be set"


@pytest.mark.parametrize("keep", [False, True], ids=["with another gossip key", "with the same"])
@pytest.mark.parametrize("own", [0, 2, 7], ids=["behind", "as in force", "ahead"])
def test_the_draft_has_the_count_that_is_in_force(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, own: int, keep: bool
) -> None:
    """Whatever stood there: it is behind where another machine evicted, and then it could not be set."""
    asked = Coordinator()
    monkeypatch.setattr(owner_access, "deployed", lambda *_: asked.mesh)
    assert owner.generate().exit_code == 0
    owner.edit(rotate={"gossip": 2, "secrets": {}})
    assert owner.sign().exit_code == 0
    first = head(load(owner.cluster))
    assert first is not None
    asked.head = open_envelope(first.envelope, None)
    monkeypatch.setattr("tests.meshctl.test_set_command.OWNERS", first.manifest.owners)
    owner.edit(rotate={"gossip": own, "secrets": {}})
    more = ["--keep-gossip-key"] if keep else []
    done = run("worker-1", str(owner.cluster), "-c", URL, "--key", str(owner.key), "--yes", *more)
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert asked.head.manifest.rotate.gossip == decode(owner.draft.read_bytes()).rotate.gossip == (2 if keep else 3)


def test_the_gossip_key_can_stay(lab: Coordinator) -> None:
    """Where the owner says so."""
    done = run("api-1", "--yes", "--keep-gossip-key")
    assert done.exit_code == 0, done.output
    assert lab.head.manifest.rotate.gossip == 0
    assert "gossip key" not in done.output


def test_what_was_not_set_is_not_written(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh has another manifest by now: the owner's file stays as it was."""
    asked = Coordinator()
    monkeypatch.setattr(owner_access, "deployed", lambda *_: asked.mesh)
    assert owner.generate().exit_code == 0
    assert owner.sign().exit_code == 0
    before = (owner.cluster / SIGNED).read_text()
    refused(run("worker-1", str(owner.cluster), "-c", URL, "--key", str(owner.key), "--yes"), "not to be set")
    assert (owner.cluster / SIGNED).read_text() == before


def test_cluster_and_url_belong_together(tmp_path: Path) -> None:
    """Neither means a lab."""
    refused(run("api-1", "-c", URL), "belong together")
    refused(run("api-1", str(tmp_path)), "belong together")
