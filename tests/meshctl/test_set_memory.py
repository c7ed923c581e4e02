"""What `./mesh set` and `evict` remember, and the coordinators that they refuse for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from evidence.outside import Seen
from meshctl import verify_files
from meshctl.asking import Answer, Question
from meshctl.cli import cli
from meshctl.errors import UserError
from meshctl.owner_access import Mesh
from meshctl.set_command import put
from meshctl.set_memory import RollbackError, recall
from tests.coordinator.world import OWNER, OWNERS
from tests.meshctl.test_set_command import FIRST, NEXT, URL, Coordinator, lab
from tests.meshctl.test_verify import STRANGER
from tests.topology.support import after, opened
from topology.envelope import Signed, open_envelope

__all__ = ["lab"]

THIRD = opened(after(NEXT), OWNER)
FOURTH = opened(after(THIRD, leaf_hours=10), OWNER)
FORK = opened(after(FIRST, leaf_hours=12), OWNER)
"""Another one of the second epoch."""
AFTER_FORK = opened(after(FORK), OWNER)
ROOT = "ab" * 32


class Historian(Coordinator):
    """A coordinator that also has a history."""

    def __init__(self, *chain: Signed, page: int = 100) -> None:
        super().__init__(chain[-1])
        self.chain, self.page = chain, page

    def ask(self, question: Question) -> Answer:
        """The history, in pages; else as any."""
        if "history" not in question.path:
            return super().ask(question)
        self.asked.append(question)
        after_epoch = int(question.path.partition("?after=")[2])
        left = [each for each in self.chain if each.manifest.epoch > after_epoch]
        page = [{"epoch": it.manifest.epoch, "envelope": it.envelope} for it in left[: self.page]]
        return Answer(tree={"manifests": page, "more": len(left) > self.page})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where is remembered."""
    return tmp_path / "seen.json"


def mesh(one: Coordinator, path: Path) -> Mesh:
    """The mesh of `one`, remembered at `path`."""
    return dataclasses.replace(one.mesh, seen=path)


def seen_of(signed: Signed, root: str = "") -> Seen:
    """What is remembered of `signed`."""
    return Seen(epoch=signed.manifest.epoch, digest=signed.digest, root_sha256=root)


def sent(one: Coordinator) -> list[str]:
    """What `one` was asked to change."""
    return [question.path for question in one.asked if question.method == "POST"]


def test_what_was_set_is_remembered(path: Path) -> None:
    """Also where it was in force already, and at the place of `./mesh verify`."""
    put(mesh(Coordinator(), path), NEXT.envelope, yes=True)
    assert verify_files.read_seen(path) == seen_of(NEXT)
    put(Coordinator(NEXT).mesh, NEXT.envelope, yes=True)
    own = verify_files.seen_path(NEXT.manifest.cluster, NEXT.manifest.coordinators.app_id)
    assert verify_files.read_seen(own) == seen_of(NEXT)


def test_what_the_file_follows_was_seen_though_nothing_is_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who says no has seen it all the same; what does not follow proves nothing and is forgotten."""
    monkeypatch.setattr("runtime.confirm.confirm", lambda _: False)
    with pytest.raises(UserError, match="nothing was set"):
        put(mesh(Coordinator(), path), NEXT.envelope, yes=False)
    assert verify_files.read_seen(path) == seen_of(FIRST)
    with pytest.raises(UserError, match="not to be set"):
        put(mesh(Historian(FIRST, FORK), path), NEXT.envelope, yes=True)
    assert verify_files.read_seen(path) == seen_of(FIRST)


def test_a_rolled_back_coordinator_is_refused(path: Path) -> None:
    """Nothing is sent to it; with the newest once more it is brought forward, and that is said."""
    verify_files.write_seen(path, seen_of(THIRD))
    behind = Coordinator(FIRST)
    with pytest.raises(RollbackError, match=r"one.test has epoch 1 .*seen epoch 3 ") as caught:
        put(mesh(behind, path), NEXT.envelope, yes=True)
    assert (sent(behind), caught.value.exit_code) == ([], 1)
    assert str(path) in caught.value.remedy
    with pytest.raises(RollbackError):
        put(mesh(Coordinator(NEXT), path), NEXT.envelope, yes=True)
    fork = opened(after(NEXT, leaf_hours=3), OWNER)
    with pytest.raises(RollbackError):
        put(mesh(Coordinator(NEXT), path), fork.envelope, yes=True)
    assert verify_files.read_seen(path) == seen_of(THIRD)


def test_it_is_brought_forward_with_what_was_seen(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The very manifest, once more."""
    verify_files.write_seen(path, seen_of(NEXT))
    behind = Coordinator(FIRST)
    put(mesh(behind, path), NEXT.envelope, yes=True)
    assert behind.head.digest == NEXT.digest
    assert "warning: rolled back" in capsys.readouterr().err


def test_another_manifest_of_that_epoch_is_refused(path: Path) -> None:
    """Both are the owners'; only one of them was in force."""
    verify_files.write_seen(path, seen_of(NEXT))
    forked = Coordinator(FORK)
    for wanted in (AFTER_FORK, FORK, NEXT):
        with pytest.raises(RollbackError, match="has epoch 2"):
            put(mesh(forked, path), wanted.envelope, yes=True)
    assert sent(forked) == []


@pytest.mark.parametrize("page", [1, 100])
def test_a_history_leads_through_what_was_seen(path: Path, page: int) -> None:
    """Another machine has set some since."""
    verify_files.write_seen(path, seen_of(FIRST))
    whole = Historian(FIRST, NEXT, THIRD, page=page)
    put(mesh(whole, path), FOURTH.envelope, yes=True)
    assert verify_files.read_seen(path) == seen_of(FOURTH)
    late = Historian(FIRST, NEXT, THIRD, page=page)
    late.chain = (FIRST, NEXT)
    put(mesh(late, recalled := path.with_name("late.json")), FOURTH.envelope, yes=True)
    assert verify_files.read_seen(recalled) == seen_of(FOURTH)


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ((FIRST, FORK, AFTER_FORK), "it has epoch 2"),
        ((FIRST,), "it has none of then"),
        ((FIRST, NEXT, opened(after(NEXT), STRANGER)), "signed"),
    ],
)
def test_a_history_that_leads_past_it_is_refused(path: Path, chain: tuple[Signed, ...], reason: str) -> None:
    """A fork that has grown longer than what was seen, a gap, a forged manifest."""
    verify_files.write_seen(path, seen_of(NEXT))
    forked = Historian(*chain)
    forked.head = AFTER_FORK
    with pytest.raises(RollbackError, match=reason):
        put(mesh(forked, path), opened(after(AFTER_FORK), OWNER).envelope, yes=True)
    assert sent(forked) == []
    assert verify_files.read_seen(path) == seen_of(NEXT)


def test_a_history_that_is_none_is_told(path: Path) -> None:
    """An attested coordinator may be out of order."""
    verify_files.write_seen(path, seen_of(FIRST))
    odd = Coordinator(NEXT)

    def ask(question: Question) -> Answer:
        return Answer(tree={"manifests": [{}]}) if "history" in question.path else odd.ask(question)

    with pytest.raises(UserError, match="answers with no history"):
        put(Mesh(name="m", url=URL, ask=ask, seen=path), THIRD.envelope, yes=True)


class Empty(Coordinator):
    """One that waits for its first manifest, until it has one."""

    def ask(self, question: Question) -> Answer:
        """NO_MANIFEST, until it was given one."""
        if question.method == "GET" and not sent(self):
            return Answer(tree={}, code="NO_MANIFEST", reason="waits")
        return super().ask(question)


def test_an_empty_coordinator_begins_with_nothing_older(path: Path) -> None:
    """Its disk is gone, or another CVM answers; what was seen last, or what follows it, may be set."""
    verify_files.write_seen(path, seen_of(NEXT))
    for older in (FIRST, FORK, AFTER_FORK):
        empty = Empty()
        with pytest.raises(RollbackError, match="has no manifest"):
            put(mesh(empty, path), older.envelope, yes=True, first=True)
        assert sent(empty) == []
    for newer in (NEXT, THIRD):
        put(mesh(Empty(), path), newer.envelope, yes=True, first=True)
        assert verify_files.read_seen(path) == seen_of(newer)


def test_the_root_that_verify_saw_stays_known(path: Path) -> None:
    """`set` does not see it, and it outlives manifests."""
    verify_files.write_seen(path, seen_of(FIRST, ROOT))
    put(mesh(Coordinator(), path), NEXT.envelope, yes=True)
    assert verify_files.read_seen(path) == seen_of(NEXT, ROOT)


def test_what_cannot_be_remembered_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is in force all the same. What another process saw meanwhile ends the command."""
    (tmp_path / "file").touch()
    recall(Mesh(name="m", url=URL, ask=Coordinator().ask, seen=tmp_path / "seen.json"), FIRST.manifest).remember(NEXT)
    memory = dataclasses.replace(recall(Coordinator().mesh, FIRST.manifest), path=tmp_path / "file" / "seen.json")
    memory.remember(NEXT)
    assert "warning: not remembered" in capsys.readouterr().err
    with pytest.raises(RollbackError, match="meanwhile"):
        dataclasses.replace(memory, path=tmp_path / "seen.json").remember(FORK)


def test_an_eviction_remembers_too(lab: Coordinator) -> None:
    """And refuses a coordinator that was rolled back since: the next eviction would bring back who was evicted."""
    assert CliRunner().invoke(cli, ["evict", "api-1", "--yes"]).exit_code == 0
    evicted = lab.head
    own = verify_files.seen_path(evicted.manifest.cluster, evicted.manifest.coordinators.app_id)
    assert verify_files.read_seen(own) == seen_of(evicted)
    lab.head = open_envelope(FIRST.envelope, OWNERS)
    refused = CliRunner().invoke(cli, ["evict", "api-0", "--yes"])
    assert isinstance(refused.exception, RollbackError), refused.output
    assert lab.head.digest == FIRST.digest
