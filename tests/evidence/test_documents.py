"""App-compose texts: which the manifest names, and what passes for one."""

from __future__ import annotations

import hashlib

import pytest

from evidence.documents import MAX_DOCUMENT, DocumentError, check, digest, named
from tests.coordinator.world import API_COMPOSE, CLIENT_COMPOSE, COORDINATOR_COMPOSE, make_manifest

TEXT = '{"name":"ä"}'
NAME = hashlib.sha256(TEXT.encode()).hexdigest()


def test_every_compose_hash_of_the_manifest_is_named() -> None:
    """Of the coordinators and of each group, as the CVMs' quotes have them."""
    assert named(make_manifest()) == {
        digest(COORDINATOR_COMPOSE): "coordinator",
        digest(API_COMPOSE): "api",
        digest(CLIENT_COMPOSE): "client",
    }


def test_a_text_counts_by_its_hash() -> None:
    """And none at all are fine, too."""
    check({}, ())
    check({NAME: TEXT}, (NAME, "ab" * 32))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (NAME, TEXT + "\n", "has the compose hash"),
        ("ab" * 32, TEXT, "names no compose hash ab"),
        (NAME.upper(), TEXT, "names no compose hash"),
        (NAME, "\ud800", "is no UTF-8"),
    ],
)
def test_what_is_no_text_of_the_manifest_is_refused(name: str, text: str, said: str) -> None:
    """The message names the hash."""
    with pytest.raises(DocumentError, match=said):
        check({name: text}, (NAME,))


def test_a_text_has_a_length() -> None:
    """In bytes: it goes into Consul's KV as one value."""
    long = "ä" * (MAX_DOCUMENT // 2)
    check({digest(long): long}, (digest(long),))
    with pytest.raises(DocumentError, match=f"{MAX_DOCUMENT} at most"):
        check({digest(long + "x"): long + "x"}, (digest(long + "x"),))
