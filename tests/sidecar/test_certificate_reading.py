"""What a coordinator gives as certificates: what is read, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from coordinator.authority import mesh_ca
from coordinator.keys import derive
from runtime.secret import Secret
from sidecar import identity
from sidecar.certificate_reading import CertificateError, Expected, parse
from tests.sidecar.world import CLUSTER_KEYS, DIGEST, NOW, given, granted, published

KEYS = identity.make()
KEY = KEYS.public.leaf
PUBLIC_KEY = KEYS.public.public
NEXT = "e2" * 32


def answer(**changes: Any) -> dict[str, Any]:
    """A good answer, with changes."""
    return granted(KEY) | changes


def foreign(what: str) -> str:
    """That part of a good answer of another cluster's coordinators."""
    keys = derive(Secret("aa" * 32), "demo" if what == "seed" else "other")
    return mesh_ca(keys, 3, DIGEST).pem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"authorities_pem": ""}, "authorities cannot be read"),
        ({"authorities_pem": "x"}, "authorities cannot be read"),
        ({"authorities_pem": granted(KEY)["authorities_pem"] * 17}, "there are 17 authorities"),
        ({"authorities_pem": foreign("cluster")}, "expected a manifest of cluster demo"),
        ({"authorities_pem": foreign("seed")}, "not of the mesh CA that comes with it"),
        ({"authorities_pem": granted(KEY)["leaf_pem"]}, "expected a manifest of cluster demo"),
        ({"manifest_digest": ""}, "first authority is of manifest"),
        ({"manifest_digest": NEXT}, "first authority is of manifest"),
        ({"leaf_pem": ""}, "chain cannot be read"),
        ({"leaf_pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "chain cannot be read"),
        ({"leaf_pem": granted(KEY)["leaf_pem"] * 2}, "the chain has 4"),
        ({"leaf_pem": granted(KEY, NEXT)["leaf_pem"]}, "not of the mesh CA that comes with it"),
        ({"leaf_pem": granted(identity.make().public.leaf)["leaf_pem"]}, "another key"),
        ({"leaf_pem": granted(KEY, group="db")["leaf_pem"]}, "the leaf names"),
        ({"leaf_pem": granted(KEY, peer_id="api-1")["leaf_pem"]}, "the leaf names"),
    ],
)
def test_what_is_no_certificate_for_us_is_refused(changes: dict[str, Any], words: str) -> None:
    """Whatever a coordinator says: our key, our names, one generation. The message says what was expected."""
    found = answer(**changes)
    expected = Expected(cluster="demo", group="api", peer_id="api-0", leaf_key=_der(KEY))
    with pytest.raises(CertificateError, match=words):
        parse(
            digest=found["manifest_digest"], leaf_pem=found["leaf_pem"], authorities_pem=found["authorities_pem"],
            expected=expected, now=NOW,
        )  # fmt: skip


@pytest.mark.parametrize("moment", [NOW - 3 * 3600, NOW + 9 * 3600], ids=["not yet", "no more"])
def test_a_leaf_that_is_not_good_now_is_refused(moment: float) -> None:
    """A coordinator whose clock is hours off must not take a good certificate's place by one that nobody believes."""
    found = answer()
    with pytest.raises(CertificateError, match="clock"):
        parse(
            digest=found["manifest_digest"], leaf_pem=found["leaf_pem"], authorities_pem=found["authorities_pem"],
            expected=Expected(cluster="demo", group="api", peer_id="api-0", leaf_key=_der(KEY)), now=moment,
        )  # fmt: skip


def _der(key: str) -> bytes:
    return base64.b64decode(key)


def test_good_answer_is_read_whole() -> None:
    """The end of the leaf is what it says itself; its mesh CA, which every peer has, is not shown with it."""
    found = given(KEY, NEXT, DIGEST, epoch=4)
    assert found.leaf is not None
    assert found.leaf.pem.count("BEGIN CERTIFICATE") == 1
    assert [each.pem for each in found.authorities] == [
        mesh_ca(CLUSTER_KEYS, 4, NEXT).pem,
        mesh_ca(CLUSTER_KEYS, 3, DIGEST).pem,
    ]


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        ("no certificate", "the chain cannot be read"),
        (published(PUBLIC_KEY).split("-----END CERTIFICATE-----\n", 1)[1], "the chain has 1 certificates"),
        (published(KEY), "web is for another key than the one that was attested"),
        (published(PUBLIC_KEY, digest=NEXT), "web is not of the mesh CA that comes with it"),
        (published(PUBLIC_KEY, "spiffe://demo/api"), "which is somebody in the mesh"),
    ],
)
def test_a_public_certificate_that_is_none_is_refused(pem: str, said: str) -> None:
    """By the backend's name; the admission is then no admission, and what is held stays."""
    with pytest.raises(CertificateError, match=said):
        given(KEY, public_key=PUBLIC_KEY, public_pems={"web": pem})
