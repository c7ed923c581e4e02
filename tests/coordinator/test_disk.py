"""The data folder on real file systems: kept, refused, full, read-only, damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from admission.protocol import MeshPeer
from coordinator.disk import MANIFESTS, MAX_HISTORY, PEERS, Disk, DiskError
from coordinator.marker import MARKER, MEMBER, NEW, STARTED, ForeignDataError, Owner
from coordinator.proposal import MAX_STORED

OWN = Owner(cluster="tests", app_id="ab" * 20, peer_id="coordinator-0")
PEER = MeshPeer(peer_id="api-0", public_key="k", address="100.96.0.9", kind="workload")


def log_of(folder: Path) -> Path:
    """A Raft log, as far as the disk looks at it."""
    path = folder / "consul" / "raft" / "wal" / "wal-meta.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"log")
    return path


def test_an_empty_folder_is_claimed_once(tmp_path: Path) -> None:
    """The first claim writes the marker, private; the next one finds it, with its server ID and stage."""
    first = Disk(tmp_path / "d", OWN).claim()
    assert first.stage == NEW
    assert (tmp_path / "d" / MARKER).stat().st_mode & 0o777 == 0o600
    disk = Disk(tmp_path / "d", OWN)
    assert disk.claim() == first
    disk.advance(STARTED)
    again = Disk(tmp_path / "d", OWN).claim()
    assert (again.stage, again.server_id) == (STARTED, first.server_id)
    other = Disk(tmp_path / "e", OWN).claim()
    assert other.server_id != first.server_id


def test_a_foreign_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """Refused, and every byte of it stays."""
    Disk(tmp_path, Owner(cluster="other", app_id="cd" * 20, peer_id="coordinator-0")).claim()
    (tmp_path / "consul").mkdir()
    (tmp_path / "consul" / "x").write_text("theirs")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ForeignDataError, match="cluster 'other'"):
        Disk(tmp_path, OWN).claim()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_member_without_its_log_is_refused(tmp_path: Path, damage: str) -> None:
    """Raft would start it empty under its old ID, and count votes of a server that forgot: it does not start."""
    disk = Disk(tmp_path, OWN)
    disk.claim()
    path = log_of(tmp_path)
    disk.advance(MEMBER)
    assert Disk(tmp_path, OWN).claim().stage == MEMBER
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 0)
    with pytest.raises(DiskError, match=r"must not vote as if it had it.*takes the records from its siblings"):
        Disk(tmp_path, OWN).claim()
    with pytest.raises(DiskError, match="is gone or damaged") as alone:
        Disk(tmp_path, OWN, alone=lambda: True).claim()
    assert_speaks_of_nobody_else(str(alone.value))


def assert_speaks_of_nobody_else(text: str) -> None:
    """A lone coordinator is told what emptying its disk costs, and of no sibling or vote."""
    assert "all that Consul had acknowledged is lost" in text
    assert "sibling" not in text
    assert "vote" not in text


def test_a_lone_coordinator_has_no_siblings_to_take_records_from(tmp_path: Path) -> None:
    """A marker that cannot be read, and records on which Consul does not start."""
    disk = Disk(tmp_path, OWN, alone=lambda: True)
    disk.claim()
    assert_speaks_of_nobody_else(disk.damaged_records())
    assert "takes the records from its siblings" in Disk(tmp_path, OWN).damaged_records()
    (tmp_path / MARKER).write_text("no JSON")
    with pytest.raises(ForeignDataError, match="cannot be read") as refused:
        disk.claim()
    assert_speaks_of_nobody_else(str(refused.value))


def test_a_stage_never_goes_back(tmp_path: Path) -> None:
    """A member stays one."""
    disk = Disk(tmp_path, OWN)
    disk.claim()
    log_of(tmp_path)
    disk.advance(MEMBER)
    disk.advance(STARTED)
    assert Disk(tmp_path, OWN).claim().stage == MEMBER


def test_peers_are_kept_and_a_damaged_list_is_none(tmp_path: Path) -> None:
    """What was remembered comes back once it is settled; what cannot be read is nobody, not an error."""
    disk = Disk(tmp_path, OWN)
    disk.claim()
    assert disk.remembered() == ()
    disk.remember((PEER,))
    assert disk.remembered() == ()
    disk.settle()
    assert disk.remembered() == (PEER,)
    (tmp_path / PEERS).unlink()
    disk.settle()
    assert disk.remembered() == (), "it was kept once, and what comes next is a mark only"
    for text in ("", "[[[[", json.dumps([{"peer_id": 1}]), "\udcff"):
        (tmp_path / PEERS).write_bytes(text.encode("utf-8", "surrogateescape"))
        assert disk.remembered() == ()


def test_a_place_that_cannot_be_used_is_one_error(tmp_path: Path) -> None:
    """A file in the way: said with the path and what to do."""
    (tmp_path / "d").write_text("a file")
    with pytest.raises(DiskError, match="MESH_DATA_DIR"):
        Disk(tmp_path / "d", OWN).claim()


NAME = f"2-{'ab' * 32}"


def test_manifests_are_kept_for_good(tmp_path: Path) -> None:
    """Private, whole, each under its name; a damaged one is written anew, and half a write is none. Nobody waits."""
    disk = Disk(tmp_path / "d", OWN)
    assert disk.manifests() == {}
    disk.claim()
    disk.keep_manifest(NAME, "a.b")
    path = tmp_path / "d" / MANIFESTS / NAME
    assert not path.exists()
    disk.settle()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("a.b", 0o600)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    disk.keep_manifest(NAME, "a.b")
    disk.settle()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_text("a.")
    (path.parent / f".{NAME}.new").write_text("a")
    assert Disk(tmp_path / "d", OWN).manifests() == {NAME: "a."}
    disk.settle()
    assert path.read_text() == "a.", "nothing was to be kept"
    disk.keep_manifest(NAME, "a.b")
    disk.settle()
    assert disk.manifests() == {NAME: "a.b"}


def test_what_cannot_be_read_of_the_manifests_is_there_as_nothing(tmp_path: Path) -> None:
    """It is named later, and ends nothing; of what is too much the newest is read."""
    disk = Disk(tmp_path, OWN)
    disk.claim()
    folder = tmp_path / MANIFESTS
    (folder / "5-x").mkdir(parents=True)
    (folder / NAME).write_bytes(b"\xff" * (MAX_STORED + 10))
    (folder / "gone").symlink_to(folder / "nowhere")
    assert disk.manifests() == {"5-x": "", NAME: "\ufffd" * (MAX_STORED + 1), "gone": ""}
    for number in range(3, 3 + MAX_HISTORY // MAX_STORED):
        (folder / f"{number}-{'ab' * 32}").write_bytes(b"x" * MAX_STORED)
    names = set(disk.manifests())
    assert NAME not in names
    assert f"3-{'ab' * 32}" in names


def test_a_manifest_that_the_disk_does_not_take_is_tried_again(tmp_path: Path) -> None:
    """Until it is there, and the probe says so meanwhile."""
    disk = Disk(tmp_path, OWN)
    disk.claim()
    (tmp_path / MANIFESTS).write_text("a file in the way")
    disk.keep_manifest(NAME, "a.b")
    for _ in range(2):
        with pytest.raises(OSError, match=r"."):
            disk.settle()
    (tmp_path / MANIFESTS).unlink()
    disk.settle()
    assert disk.manifests() == {NAME: "a.b"}
