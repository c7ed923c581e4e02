"""Answers of the admission API, strictly decoded."""

from __future__ import annotations

import base64
from dataclasses import asdict

import pytest

from admission.broker import decode_admission, decode_challenge, decode_renewal
from admission.client import CoordinatorError
from runtime.gossip import Ring
from runtime.secret import Secret
from tests.sidecar.world import peer

GOSSIP = base64.b64encode(b"s3cret-gossip".ljust(32)).decode()
ADMISSION = {
    "peer_id": "api-0",
    "address": "100.96.0.10",
    "consul": {
        "datacenter": "demo",
        "token": "s3cret-token",
        "token_expires_at": 1000,
        "gossip_ring": "1+0",
        "gossip_keys": [GOSSIP, "A" * 43 + "="],
        "ca_pem": "CA",
        "certificate_pem": "CERT",
        "servers": ["100.96.0.9"],
    },
    "peers": [asdict(peer("coordinator-0", "100.96.0.9", "coordinator"))],
    "lease": "s3cret-lease",
    "lease_seconds": 15,
    "manifest": "envelope",
    "manifest_epoch": 3,
    "workload_token": "s3cret-workload",
    "secrets": {"database": "s3cret-database"},
    "manifest_digest": "d1" * 32,
    "leaf_pem": "LEAF",
    "authorities_pem": "MESH-CA",
    "public_pems": {},
}


def test_admission_is_decoded_with_its_secrets_wrapped() -> None:
    """Token, gossip key and lease hide themselves; whole numbers do for seconds."""
    admitted = decode_admission(ADMISSION, "https://one.test")
    assert admitted.token == Secret("s3cret-token")
    assert admitted.workload_token == Secret("s3cret-workload")
    assert admitted.secrets == {"database": Secret("s3cret-database")}
    assert admitted.lease_seconds == 15.0
    assert admitted.servers == ("100.96.0.9",)
    assert admitted.peers == (peer("coordinator-0", "100.96.0.9", "coordinator"),)
    assert admitted.gossip == Ring(name="1+0", keys=(Secret(GOSSIP), Secret("A" * 43 + "=")))
    assert "s3cret" not in repr(admitted)
    assert GOSSIP not in repr(admitted)


@pytest.mark.parametrize("keys", [["A"], ["A" * 44], [""], ["\u00fc" * 44], [GOSSIP] * 3], ids=repr)
def test_a_gossip_key_that_consul_would_not_start_with_is_refused(keys: list[str]) -> None:
    """It is that coordinator's failure, at an admission and at a renewal. Its text is not in what is said."""
    consul = ADMISSION["consul"]
    assert isinstance(consul, dict)
    with pytest.raises(CoordinatorError) as caught:
        decode_admission({**ADMISSION, "consul": {**consul, "gossip_keys": keys}}, "u")
    assert GOSSIP not in str(caught.value)
    for bad in (keys, []):
        with pytest.raises(CoordinatorError, match=r"the renewal cannot be used: .* gossip key"):
            decode_renewal({"lease_seconds": 15, "manifest_epoch": 3, "gossip_ring": "1", "gossip_keys": bad})
    good = decode_renewal({"lease_seconds": 15, "manifest_epoch": 3, "gossip_ring": "1", "gossip_keys": [GOSSIP]})
    assert good.gossip == Ring(name="1", keys=(Secret(GOSSIP),))


@pytest.mark.parametrize("name", ["../hosts", "consul-token", "", ".x", "a/b", "A"])
def test_secret_that_could_not_be_a_file_of_its_own_is_refused(name: str) -> None:
    """Names become those of files: none leads out of the folder, or to the token's file."""
    with pytest.raises(CoordinatorError, match="names cannot be those of files"):
        decode_admission({**ADMISSION, "secrets": {name: "x"}}, "u")


@pytest.mark.parametrize(
    "broken", ["peer_id", "consul", "lease", "peers", "lease_seconds", "workload_token", "secrets", "leaf_pem"]
)
def test_admission_that_does_not_fit_is_refused_without_quoting_it(broken: str) -> None:
    """Every part is needed in its form, and no secret gets into the error."""
    for value in (None, 7, {"token": "s3cret-token"}, ["s3cret"]):
        if (broken, value) in (("lease_seconds", 7), ("secrets", {"token": "s3cret-token"})):
            continue
        with pytest.raises(CoordinatorError) as caught:
            decode_admission({**ADMISSION, broken: value}, "u")
        assert "s3cret" not in str(caught.value)


def test_challenge_and_renewal() -> None:
    """A nonce is 32 bytes in hex; a renewal may come without a token."""
    for nonce in ("00" * 31, "zz" * 32, ""):
        with pytest.raises(CoordinatorError):
            decode_challenge({"nonce": nonce, "peer_id": "api-0", "expires_in": 60})
    plain = decode_renewal({"lease_seconds": 15, "token": None, "token_expires_at": None, "manifest_epoch": 3})
    assert plain.token is None
    fresh = decode_renewal({"lease_seconds": 15.0, "token": "s3cret", "token_expires_at": 5, "manifest_epoch": 3})
    assert fresh.token == Secret("s3cret")
    assert (fresh.workload_token, fresh.secrets) == (None, None)
    more = decode_renewal(
        {"lease_seconds": 15, "manifest_epoch": 3, "workload_token": "", "secrets": {"database": "s3cret"}}
    )
    assert (more.workload_token, more.secrets) == (Secret(""), {"database": Secret("s3cret")})
    assert "s3cret" not in repr(more)
    with pytest.raises(CoordinatorError) as caught:
        decode_renewal({"lease_seconds": "s3cret"})
    assert "s3cret" not in str(caught.value)
