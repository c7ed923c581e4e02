"""The signed envelope of a manifest."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.support import sealed
from tests.topology.test_render import KEY, OWNERS, deployment, starter
from topology import envelope as envelopes
from topology import render
from topology.envelope import MAX_ENVELOPE, open_envelope, seal
from topology.manifest import encode
from topology.owners import MAX_SIGNATURE
from topology.trees import ManifestError

MADE = render.manifest(starter(), deployment())


def resealed(payload: bytes) -> str:
    """An envelope of any bytes, signed by the owner."""
    return sealed(payload, KEY)


def test_the_digest_is_of_what_owners_sign() -> None:
    """As documented, so that others can compute it; the same for who wrote the manifest and who opens it."""
    found = open_envelope(seal(MADE, KEY), OWNERS)
    assert found.manifest == MADE
    assert (
        found.digest == hashlib.sha256(b"cvm-mesh manifest v2\0" + encode(MADE)).hexdigest() == envelopes.digest(MADE)
    )


def test_a_foreign_signature_is_refused() -> None:
    """Another key, another payload, and no signature at all."""
    other = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    newer = dataclasses.replace(MADE, epoch=8)
    mixed = seal(newer, KEY).partition(".")[0] + "." + seal(MADE, KEY).partition(".")[2]
    for envelope in (seal(MADE, other), mixed, seal(MADE)):
        with pytest.raises(ManifestError, match="signed by 0 of the owner keys"):
            open_envelope(envelope, OWNERS)


def test_a_manifest_has_one_form() -> None:
    """Spaces, another order or an entry that is there twice would be another digest for the same manifest."""
    tree = json.loads(encode(MADE))
    twice = encode(MADE)[:-1] + b',"epoch":7}'
    for payload in (json.dumps(tree).encode(), json.dumps(dict(reversed(tree.items()))).encode(), twice):
        with pytest.raises(ManifestError, match=r"not canonical|is there twice"):
            open_envelope(resealed(payload), OWNERS)


def test_an_envelope_has_one_form() -> None:
    """Another text for the same manifest would be a newer one to who compares texts, and open its window anew."""
    whole = seal(MADE, KEY)
    payload, dot, signature = whole.partition(".")
    for text in (payload[:8] + "!!!!" + payload[8:], payload + "=", payload[:8] + "\n" + payload[8:]):
        with pytest.raises(ManifestError, match="base64url"):
            open_envelope(text + dot + signature, OWNERS)
    assert open_envelope(whole, OWNERS).envelope == whole


def test_what_a_newer_program_wrote_keeps_its_digest() -> None:
    """Entries that are left out count in the digest."""
    tree = json.loads(encode(MADE)) | {"teleport": 1}
    payload = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    found = open_envelope(resealed(payload), OWNERS)
    assert (found.manifest, found.unknown) == (MADE, ("manifest.teleport",))
    assert found.digest != envelopes.digest(MADE)


@given(st.text(max_size=40))
def test_no_text_breaks_the_opening(text: str) -> None:
    """Any word is refused with a ManifestError, signed or not."""
    for owners in (OWNERS, None):
        with pytest.raises(ManifestError):
            open_envelope(text, owners)


@pytest.mark.parametrize("payload", [b"", b"[" * 100_000, b'{"version":2,"x":"\\ud800"}', b"9" * 5000, b"{}"])
def test_signed_garbage_is_refused(payload: bytes) -> None:
    """Also with the owner's signature."""
    with pytest.raises(ManifestError):
        open_envelope(resealed(payload), OWNERS)


def test_an_envelope_is_bounded() -> None:
    """In size and in signatures that are tried."""
    with pytest.raises(ManifestError, match="characters at most"):
        open_envelope("A" * MAX_ENVELOPE + ".AA", OWNERS)
    flood = seal(MADE) + ".".join(["AA"] * 1000) + "." + seal(MADE, KEY).partition(".")[2]
    long = f"{seal(MADE)}{'A' * (MAX_SIGNATURE * 4 // 3 + 1)}"
    for envelope in (flood, long):
        for owners in (OWNERS, None):
            with pytest.raises(ManifestError, match="signatures that nobody makes"):
                open_envelope(envelope, owners)


def test_what_an_envelope_says_of_itself_needs_no_signature() -> None:
    """Version, epoch and cluster, also of a form that is not known; nothing from what is no envelope."""
    tree = json.loads(encode(MADE)) | {"version": 9, "groups": 5}
    found = envelopes.claims(resealed(json.dumps(tree).encode()))
    app_id, previous = MADE.coordinators.app_id, MADE.previous or ""
    assert found == envelopes.Claims(version=9, epoch=MADE.epoch, cluster="starter", app_id=app_id, previous=previous)
    for coordinators in ({}, 5, {"app_id": 5}):
        other = tree | {"coordinators": coordinators, "previous": None}
        elsewhere = envelopes.claims(resealed(json.dumps(other).encode()))
        assert elsewhere == envelopes.Claims(version=9, epoch=MADE.epoch, cluster="starter")
    for text in ("", "garbage", ".", "e30.", f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.AA", "A" * (1 << 21)):
        assert envelopes.claims(text) is None
