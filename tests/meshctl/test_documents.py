"""App-compose texts as files: which of a folder are handed over, and in how many requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evidence.documents import digest
from meshctl.documents import beside, missing, parts, read
from meshctl.errors import UserError
from tests.coordinator.world import API_COMPOSE, CLIENT_COMPOSE, COORDINATOR_COMPOSE, make_manifest

MANIFEST = make_manifest()


def test_a_folder_gives_what_the_manifest_names(tmp_path: Path) -> None:
    """Whatever the files are called; what else lies there is named."""
    (tmp_path / "one.json").write_text(API_COMPOSE)
    (tmp_path / "two").write_text(COORDINATOR_COMPOSE)
    (tmp_path / "edited.json").write_text(CLIENT_COMPOSE + "\n")
    (tmp_path / "binary").write_bytes(b"\xff" * 10)
    found, others = read(tmp_path, MANIFEST)
    assert found == {digest(text): text for text in (API_COMPOSE, COORDINATOR_COMPOSE)}
    assert others == ["binary", "edited.json"]
    assert missing(found, MANIFEST) == {digest(CLIENT_COMPOSE): "client"}


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(UserError, match="nowhere"):
        read(tmp_path / "nowhere", MANIFEST)


def test_a_manifest_may_have_the_folder_beside_it(tmp_path: Path) -> None:
    """Or none."""
    assert beside(tmp_path / "manifest.json") is None
    (tmp_path / "app-compose").mkdir()
    assert beside(tmp_path / "manifest.json") == tmp_path / "app-compose"


def test_texts_are_handed_over_in_as_many_requests_as_it_takes() -> None:
    """Each within the room, but for a text that is longer than that; every one once."""
    texts = {str(n): "x" * n * 10 for n in range(1, 20)} | {"long": "y" * 1000}
    made = parts(texts, 400)
    assert [name for part in made for name in part] == list(texts)
    assert all(len(part) == 1 or len(json.dumps(part)) <= 400 + 2 * len(part) for part in made)
    assert len(made) < len(texts)
    assert parts({}, 400) == []
