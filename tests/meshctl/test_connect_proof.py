"""What `./mesh connect` takes for proven."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from meshctl import connect_proof
from meshctl.connect_proof import Anchor, Proof
from meshctl.errors import UserError
from tests.meshctl.proofs import ANCHORS, chain, write


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen is in a folder of the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def read(folder: Path, *anchors: Anchor) -> Proof:
    """What `folder` proves, by the simulated TEE unless by others."""
    return asyncio.run(connect_proof.read(folder, anchors or ANCHORS))


def refusal(folder: Path, *anchors: Anchor) -> UserError:
    """The error with which `folder` is refused."""
    with pytest.raises(UserError) as caught:
        read(folder, *anchors)
    return caught.value


def test_what_verify_wrote_is_read(tmp_path: Path) -> None:
    """The manifest in force and both authorities, as the files beside it have them."""
    history = chain(2, "web")
    write(tmp_path / "verify", history)
    for anchors in (ANCHORS, (Anchor(), *ANCHORS)):
        found = read(tmp_path / "verify", *anchors)
        assert (found.manifest, found.digest) == (history[1].manifest, history[1].digest)
        assert found.mesh_ca == (tmp_path / "verify" / "mesh-ca.2.pem").read_text()
        assert found.root_ca == (tmp_path / "verify" / "root-ca.pem").read_text()
        assert found.insecure


def test_without_it_there_is_nothing_to_verify_by(tmp_path: Path) -> None:
    """And what to do is said."""
    caught = refusal(tmp_path / "verify")
    assert "nothing to verify by: " in caught.message
    assert "verify/bundle.json cannot be read" in caught.message
    assert caught.remedy.startswith("./mesh verify first")
    assert connect_proof.stamp(tmp_path / "verify") is None


def test_what_proves_nothing_is_refused(tmp_path: Path) -> None:
    """No quote or another one, another authority, another manifest, none, and what is no bundle."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    history = chain(2, "web")
    write(older, history[:1])
    write(newer, history)
    path = newer / "bundle.json"
    good = json.loads(path.read_text())
    other = json.loads((older / "bundle.json").read_text())
    for changes, said in (
        ({"quote": ""}, "does not verify"),
        ({"quote": other["quote"]}, "does not verify"),
        ({"mesh_ca": other["mesh_ca"]}, "the mesh CA is not the one that the quote covers"),
        ({"history": good["history"][:1]}, "the coordinator enforces epoch 2"),
        ({"history": []}, "it has no manifest"),
        ({"history": ["x"]}, "does not verify"),
        ({"version": 9}, "of version 9"),
    ):
        path.write_text(json.dumps({**good, **changes}))
        caught = refusal(newer)
        assert said in caught.message
        assert caught.remedy == "./mesh verify writes it anew"


def test_a_simulated_tee_is_not_believed_by_accident(tmp_path: Path) -> None:
    """Without a development root Intel's counts."""
    write(tmp_path / "verify", chain(1, "web"))
    assert "does not verify" in refusal(tmp_path / "verify", Anchor()).message


def test_what_is_older_than_what_this_machine_has_seen_is_refused(tmp_path: Path) -> None:
    """A folder of before is no proof of what is in force."""
    history = chain(2, "web")
    write(tmp_path / "verify", history[:1])
    seen = tmp_path / "seen.json"
    root = json.loads((tmp_path / "verify" / "bundle.json").read_text())["statement"]
    stated = json.loads(root) if isinstance(root, str) else root
    seen.write_text(json.dumps({"epoch": 2, "digest": history[1].digest, "root_sha256": stated["root_sha256"]}))
    anchor = Anchor(development_root=ANCHORS[0].development_root, seen=seen)
    assert "epoch 2" in refusal(tmp_path / "verify", anchor).message


def test_a_folder_that_was_written_anew_is_noticed(tmp_path: Path) -> None:
    """By its file's place, time or size."""
    history = chain(2, "web")
    write(tmp_path / "verify", history[:1])
    before = connect_proof.stamp(tmp_path / "verify")
    assert before == connect_proof.stamp(tmp_path / "verify")
    write(tmp_path / "verify", history)
    assert connect_proof.stamp(tmp_path / "verify") != before
