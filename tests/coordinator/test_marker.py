"""Whose a data folder is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.marker import (
    MARKER,
    MEMBER,
    NEW,
    STARTED,
    ForeignDataError,
    Marker,
    Owner,
    encode,
    first,
    judge,
)

OWN = Owner(cluster="shop", app_id="ab" * 20, peer_id="coordinator-0")
ID = "3f0e6f0e-0000-4000-8000-000000000000"


def test_an_empty_folder_has_no_owner() -> None:
    """Nothing, what a file system brings, and a marker that was being written when power failed: empty."""
    assert judge("/d", [], None, OWN) is None
    assert judge("/d", ["lost+found", f".{MARKER}.new"], None, OWN) is None


@pytest.mark.parametrize("stage", [NEW, STARTED, MEMBER])
def test_what_was_written_is_read(stage: str) -> None:
    """A marker comes back as it was, at every stage."""
    marker = Marker(version=1, cluster="shop", app_id="ab" * 20, peer_id="coordinator-0", server_id=ID, stage=stage)
    assert judge("/d", [MARKER, "consul"], encode(marker), OWN) == marker
    assert first(OWN, ID).stage == NEW


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Owner(cluster="other", app_id="ab" * 20, peer_id="coordinator-0"), "cluster 'other'"),
        (Owner(cluster="shop", app_id="cd" * 20, peer_id="coordinator-0"), "cdcdcd"),
        (Owner(cluster="shop", app_id="ab" * 20, peer_id="coordinator-1"), "'coordinator-1'"),
    ],
)
def test_a_foreign_folder_is_refused_by_name(other: Owner, named: str) -> None:
    """Another cluster's, app's or coordinator's: the refusal says whose it is, whose was expected, what to do."""
    with pytest.raises(ForeignDataError) as refused:
        judge("/d", [MARKER], encode(first(other, ID)), OWN)
    assert named in str(refused.value)
    assert "expected 'coordinator-0' of cluster 'shop'" in str(refused.value)
    assert "Mount the right volume" in str(refused.value)


def test_data_without_a_marker_is_refused() -> None:
    """Somebody's files, whosoever: named, and not taken for an empty folder."""
    with pytest.raises(ForeignDataError, match=r"holds consul but no mesh\.json"):
        judge("/d", ["consul"], None, OWN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        encode(first(OWN, ID))[:40],
        "[" * 100_000,
        json.dumps({**json.loads(encode(first(OWN, ID))), "version": 2}),
        json.dumps({**json.loads(encode(first(OWN, ID))), "stage": "finished"}),
        json.dumps({**json.loads(encode(first(OWN, ID))), "more": 1}),
    ],
    ids=["empty", "cut", "deep", "version", "stage", "unknown"],
)
def test_a_marker_that_cannot_be_read_is_refused(text: str) -> None:
    """Cut short, of another version, or not ours: refused with what to do, never taken for none."""
    with pytest.raises(ForeignDataError, match="cannot be read"):
        judge("/d", [MARKER, "consul"], text, OWN)


@given(st.text(max_size=300))
def test_any_text_is_judged(text: str) -> None:
    """Whatever a disk holds ends in an answer or the one error."""
    try:
        judge("/d", [MARKER], text, OWN)
    except ForeignDataError:
        return
