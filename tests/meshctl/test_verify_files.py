"""What `./mesh verify` keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from evidence.outside import Cause, Seen, UnprovenError
from meshctl import verify_files
from meshctl.errors import UserError
from tests.evidence.bundles import DOCUMENTS, NONCE, Coordinator, check
from topology.envelope import open_envelope

HONEST = Coordinator()
FOUND = check(HONEST.bundle(), HONEST.trusted)
DATA = HONEST.answer(NONCE)[0]
SEEN = Seen(epoch=3, digest="ab" * 32, root_sha256="cd" * 32)


def test_the_folder_has_everything_that_one_needs_later(tmp_path: Path) -> None:
    """Certificates, the history to read and to check, members, and the bundle itself."""
    folder = tmp_path / "deep" / "verify"
    verify_files.write(folder, FOUND, DATA)
    assert (folder / "bundle.json").read_bytes() == DATA
    assert (folder / "mesh-ca.pem").read_text() == (folder / "mesh-ca.3.pem").read_text() == HONEST.bundle().mesh_ca
    assert (folder / "root-ca.pem").read_text() == HONEST.bundle().root_ca
    texts = {path.stem: path.read_text() for path in (folder / "app-compose").iterdir()}
    assert texts == DOCUMENTS
    assert len(json.loads((folder / "members.json").read_text())) == 3
    names = {path.name for path in (folder / "history").iterdir()}
    assert names == {
        f"{n + 1}-{each.digest}.{kind}" for n, each in enumerate(HONEST.chain) for kind in ("json", "signed")
    }
    first = HONEST.chain[0]
    text = (folder / "history" / f"1-{first.digest}.signed").read_text()
    assert open_envelope(text, None) == first
    assert json.loads((folder / "history" / f"1-{first.digest}.json").read_text())["epoch"] == 1


def test_the_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Nothing of the one before stays, and nothing lies beside it."""
    folder = tmp_path / "verify"
    older = Coordinator(chain=HONEST.chain[:2])
    verify_files.write(folder, check(older.bundle(), older.trusted), older.answer(NONCE)[0])
    assert (folder / "mesh-ca.2.pem").exists()
    verify_files.write(folder, FOUND, DATA)
    assert not (folder / "mesh-ca.2.pem").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["verify"]


def test_a_folder_that_is_not_ours_stays(tmp_path: Path) -> None:
    """One without a bundle, a file, a link. An empty one may be had."""
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "file", "link"):
        with pytest.raises(UserError):
            verify_files.check_target(tmp_path / name)
    verify_files.check_target(tmp_path / "empty")
    verify_files.check_target(tmp_path / "none")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """It is said, and nothing is left."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        verify_files.write(tmp_path / "file" / "verify", FOUND, DATA)
    with pytest.raises(UserError, match="cannot be written"):
        verify_files.write_seen(tmp_path / "file" / "seen.json", SEEN)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_seen_is_remembered(tmp_path: Path) -> None:
    """Until something newer is, also where two processes see different things at once."""
    path = tmp_path / "seen" / "demo.json"
    assert verify_files.read_seen(path) is None
    verify_files.write_seen(path, SEEN)
    assert verify_files.read_seen(path) == SEEN
    newer = dataclasses.replace(SEEN, epoch=SEEN.epoch + 1)
    for seen in (newer, SEEN):
        verify_files.write_seen(path, seen)
        assert verify_files.read_seen(path) == newer
    for other in (dataclasses.replace(newer, digest="ef" * 32), dataclasses.replace(newer, root_sha256="ef" * 32)):
        with pytest.raises(UnprovenError, match="and meanwhile this machine has seen it") as caught:
            verify_files.write_seen(path, other)
        assert caught.value.cause is Cause.ROLLBACK
        assert verify_files.read_seen(path) == newer
    assert sorted(each.name for each in path.parent.iterdir()) == ["demo.json", "demo.lock"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"epoch": true, "digest": "", "root_sha256": ""}', "[" * 100_000])
def test_a_damaged_memory_is_no_reason_to_forget(tmp_path: Path, text: str) -> None:
    """Else whoever can damage it can roll back."""
    path = tmp_path / "seen.json"
    path.write_text(text)
    with pytest.raises(UserError, match="seen enforced"):
        verify_files.read_seen(path)


def test_each_mesh_has_a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two clusters of one name differ in their coordinators' app."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    known = (("demo", "ab" * 20), ("demo", "cd" * 20), ("more", "ab" * 20), ("../../x", "/"), ("../../x", "../y"))
    found = {verify_files.seen_path(*who) for who in known}
    assert len(found) == len(known)
    assert {path.parent for path in found} == {tmp_path / "cvm-mesh" / "seen"}


@pytest.mark.parametrize("ends", [KeyboardInterrupt, OSError])
def test_what_ends_it_between_the_renames_takes_no_folder_away(tmp_path: Path, ends: type[BaseException]) -> None:
    """The pinned certificates of before are still there."""
    made, folder, before = (tmp_path / name for name in ("made", "verify", "before"))
    for each in (made, folder):
        each.mkdir()
    (folder / "root-ca.pem").touch()

    def rename(one: Path, other: Path) -> None:
        if one == made:
            raise ends
        one.rename(other)

    with pytest.raises(ends):
        verify_files.put_in_place(made, folder, before, rename)
    assert (folder / "root-ca.pem").exists()
