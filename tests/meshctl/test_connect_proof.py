"""What `./mesh connect` takes for proven."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshctl import connect_proof
from meshctl.errors import UserError
from tests.meshctl.proofs import chain, write


def test_what_verify_wrote_is_read(tmp_path: Path) -> None:
    """The manifest in force and both authorities, as the files beside it have them."""
    history = chain(2, "web")
    write(tmp_path / "verify", history)
    found = connect_proof.read(tmp_path / "verify")
    assert (found.manifest, found.digest) == (history[1].manifest, history[1].digest)
    assert found.mesh_ca == (tmp_path / "verify" / "mesh-ca.2.pem").read_text()
    assert found.root_ca == (tmp_path / "verify" / "root-ca.pem").read_text()


def test_without_it_there_is_nothing_to_verify_by(tmp_path: Path) -> None:
    """And what to do is said."""
    with pytest.raises(UserError, match=r"nothing to verify by: .*verify/bundle.json cannot be read") as caught:
        connect_proof.read(tmp_path / "verify")
    assert caught.value.remedy.startswith("./mesh verify first")
    assert connect_proof.stamp(tmp_path / "verify") is None


def test_what_does_not_hang_together_is_refused(tmp_path: Path) -> None:
    """Another authority, another manifest, none, and what is no bundle."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    history = chain(2, "web")
    write(older, history[:1])
    write(newer, history)
    path = newer / "bundle.json"
    good = json.loads(path.read_text())
    other = json.loads((older / "bundle.json").read_text())
    for changes, said in (
        ({"mesh_ca": other["mesh_ca"]}, "the mesh CA is not the one that the quote covers"),
        ({"history": good["history"][:1]}, "its last manifest is not the one that was proven"),
        ({"history": []}, "it has no manifest"),
        ({"history": ["x"]}, "does not hang together"),
        ({"version": 9}, "of version 9"),
    ):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(UserError) as caught:
            connect_proof.read(newer)
        assert said in caught.value.message
        assert caught.value.remedy == "./mesh verify writes it anew"


def test_a_folder_that_was_written_anew_is_noticed(tmp_path: Path) -> None:
    """By its file's place, time or size."""
    history = chain(2, "web")
    write(tmp_path / "verify", history[:1])
    before = connect_proof.stamp(tmp_path / "verify")
    assert before == connect_proof.stamp(tmp_path / "verify")
    write(tmp_path / "verify", history)
    assert connect_proof.stamp(tmp_path / "verify") != before
