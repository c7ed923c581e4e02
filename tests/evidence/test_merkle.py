"""The tree of nonces."""

from __future__ import annotations

import hashlib

import pytest

from evidence.merkle import MAX_STEPS, Step, climb, leaf, tree


def nonce(number: int) -> bytes:
    """One of many."""
    return number.to_bytes(32, "big")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 33, 64])
def test_every_path_leads_to_the_root(count: int) -> None:
    """Whatever the number of nonces, and no other nonce gets there by that path."""
    nonces = [nonce(number) for number in range(count)]
    root, paths = tree(nonces)
    assert len(paths) == count
    for own, path in zip(nonces, paths, strict=True):
        assert climb(own, path) == root
        assert climb(nonce(1000), path) != root


def test_the_form_is_that_of_the_documents() -> None:
    """Three nonces by hand: others compute it by docs/attestation.md."""
    a, b, c = (hashlib.sha256(b"\0" + nonce(number)).digest() for number in range(3))
    above = hashlib.sha256(b"\1" + a + b).digest()
    root, paths = tree([nonce(number) for number in range(3)])
    assert root == hashlib.sha256(b"\1" + above + c).digest()
    assert paths[2] == (Step(side="left", hash=above.hex()),)
    assert paths[0] == (Step(side="right", hash=b.hex()), Step(side="right", hash=c.hex()))


def test_one_nonce_twice_is_in_the_tree_twice() -> None:
    """Two askers may choose one nonce; both are answered."""
    root, paths = tree([nonce(1), nonce(1)])
    assert [climb(nonce(1), path) for path in paths] == [root, root]


def test_an_inner_node_is_no_leaf() -> None:
    """Nobody passes the two halves of a node for a nonce."""
    a, b = leaf(nonce(0)), leaf(nonce(1))
    assert leaf(a + b) != tree([nonce(0), nonce(1)])[0]


@pytest.mark.parametrize(
    "path",
    [
        [Step(side="up", hash="00" * 32)],
        [Step(side="left", hash="00" * 31)],
        [Step(side="left", hash="zz" * 32)],
        [Step(side="left", hash="00" * 32)] * (MAX_STEPS + 1),
    ],
    ids=["side", "short", "no hex", "long"],
)
def test_what_is_no_path_is_refused(path: list[Step]) -> None:
    """It comes from whoever answers."""
    with pytest.raises(ValueError, match=r"of the path|the path has"):
        climb(nonce(0), path)
