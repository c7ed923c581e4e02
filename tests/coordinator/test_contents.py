"""What a coordinator states about itself."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator import authority
from coordinator.contents import Own, contents
from evidence.statement import members_digest
from tests.evidence.bundles import HOLDERS, KEYS, NOW, envelopes, signed_chain

CHAIN = signed_chain(2)
OWN = Own(peer_id="coordinator-0", app_id="12" * 20)


def test_it_states_what_it_enforces_and_under_which_authorities() -> None:
    """Digest and epoch of the manifest, digests of the certificates, and who is admitted."""
    found = contents(OWN, KEYS, CHAIN[1], envelopes(CHAIN), {}, HOLDERS, NOW + 0.7)
    stated = found.statement
    assert (stated.peer_id, stated.app_id, stated.cluster) == ("coordinator-0", OWN.app_id, "tests")
    assert (stated.head.epoch, stated.head.digest, stated.issued_at) == (2, CHAIN[1].digest, NOW)
    mesh = authority.mesh_ca(KEYS, 2, CHAIN[1].digest)
    for pem, digest, certificate in (
        (found.root_ca, stated.root_sha256, authority.root(KEYS)),
        (found.mesh_ca, stated.mesh_ca_sha256, mesh.certificate),
        (found.mesh_ca_by_root, None, mesh.cross),
    ):
        assert x509.load_pem_x509_certificate(pem.encode()) == certificate
        assert digest in (None, hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest())
    assert stated.members_sha256 == members_digest(found.members)


def test_members_are_sorted_and_named_by_what_was_proven() -> None:
    """Whatever the order of the records; a coordinator has no certificate's key."""
    found = contents(
        OWN, KEYS, CHAIN[1], envelopes(CHAIN), {}, (*HOLDERS, replace(HOLDERS[0], peer_id="c", leaf_key="")), NOW
    )
    assert [member.peer_id for member in found.members] == ["api-0", "api-1", "c", "client-0"]
    first = next(holder for holder in HOLDERS if holder.peer_id == "api-0")
    assert found.members[0].leaf_key_sha256 == hashlib.sha256(base64.b64decode(first.leaf_key)).hexdigest()
    assert (found.members[0].evidence_sha256, found.members[0].compose_hash) == (first.evidence, first.compose_hash)
    assert found.members[2].leaf_key_sha256 == ""


def test_no_secret_and_no_address_is_in_it() -> None:
    """Anyone may read it: tokens, instances and WireGuard keys are nobody's business."""
    found = repr(contents(OWN, KEYS, CHAIN[1], envelopes(CHAIN), {}, HOLDERS, NOW))
    assert HOLDERS[0].instance_id not in found
    assert HOLDERS[0].leaf_key not in found
