"""What a quote covers, computed by hand as others do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import pytest

from evidence.statement import HeadName, Member, Statement, encode, evidence_digest, members_digest, report_data

STATEMENT = Statement(
    cluster="demo", peer_id="coordinator-0", app_id="ab" * 20, head=HeadName(epoch=3, digest="cd" * 32),
    root_sha256="01" * 32, mesh_ca_sha256="02" * 32, members_sha256="03" * 32, issued_at=1_800_000_000,
)  # fmt: skip
MEMBER = Member(peer_id="api-0", group="api", compose_hash="aa", leaf_key_sha256="bb", evidence_sha256="cc")
OTHER = {"epoch": HeadName(epoch=4, digest="cd" * 32), "digest": HeadName(epoch=3, digest="ce" * 32)}


def test_the_report_data_is_that_of_the_documents() -> None:
    """By hand: context, digest of the canonical JSON, root."""
    canonical = json.dumps(asdict(STATEMENT), sort_keys=True, separators=(",", ":")).encode()
    assert encode(STATEMENT) == canonical
    root = bytes(range(32))
    wanted = hashlib.sha256(b"cvm-mesh attest v1\0" + hashlib.sha256(canonical).digest() + root).digest()
    assert report_data(STATEMENT, root) == wanted + bytes(32)


@pytest.mark.parametrize(
    "changed",
    [
        *(replace(STATEMENT, **{name: "x"}) for name in asdict(STATEMENT) if name not in ("head", "issued_at")),
        replace(STATEMENT, issued_at=1),
        *(replace(STATEMENT, head=head) for head in OTHER.values()),
    ],
)
def test_every_field_is_covered(changed: Statement) -> None:
    """None can be changed behind the quote's back, nor the root."""
    assert report_data(changed, bytes(32)) != report_data(STATEMENT, bytes(32))
    assert report_data(STATEMENT, bytes(31) + b"\1") != report_data(STATEMENT, bytes(32))


def test_members_are_covered_in_order() -> None:
    """Each field of each, and their order."""
    other = replace(MEMBER, peer_id="api-1")
    found = {members_digest(each) for each in ((), (MEMBER,), (other,), (MEMBER, other), (other, MEMBER))}
    assert len(found) == 5
    for name in asdict(MEMBER):
        assert members_digest((replace(MEMBER, **{name: "x"}),)) != members_digest((MEMBER,))


def test_no_two_texts_have_one_digest() -> None:
    """Half a surrogate, which JSON can name, is no question mark."""
    assert encode(replace(STATEMENT, cluster="?")) != encode(replace(STATEMENT, cluster="\ud800"))


def test_the_digest_of_evidence_is_that_of_the_documents() -> None:
    """Of the texts that the CVM sent."""
    sent = {"binding": "b", "nonce": "n", "quote": "q", "event_log": "[]", "vm_config": "{}"}
    wanted = hashlib.sha256(b'{"binding":"b","event_log":"[]","nonce":"n","quote":"q","vm_config":"{}"}').hexdigest()
    assert evidence_digest(**sent) == wanted
