"""Derived secrets."""

from __future__ import annotations

import base64
import dataclasses
import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.keys import (
    ClusterKeys,
    Inherited,
    agent_certificate,
    derive,
    gossip_key,
    wireguard_key,
    workload_secret,
)
from runtime.secret import Secret

SEED = Secret("ab" * 32)
NOW = 1_800_000_000.0


def everything(keys: ClusterKeys) -> tuple[str, ...]:
    """All derived values as texts."""
    return (
        keys.management_token.reveal(),
        keys.gossip_root.reveal(),
        gossip_key(keys, 0).reveal(),
        gossip_key(keys, 1).reveal(),
        gossip_key(keys, 11).reveal(),
        keys.broker_key.hex(),
        keys.workload_root.reveal(),
        workload_secret(keys, "db", "database", 0).reveal(),
        wireguard_key(keys, "coordinator-0").reveal(),
        wireguard_key(keys, "coordinator-1").reveal(),
        keys.rpc_ca_pem,
        keys.authority_root.reveal(),
    )


def spki(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """The public half, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_all_coordinators_derive_the_same() -> None:
    """The same seed gives the same bytes, certificates included; all values differ from each other."""
    found = everything(derive(SEED, "tests"))
    assert found == everything(derive(SEED, "tests"))
    assert len(set(found)) == len(found)


def test_seed_and_cluster_change_everything() -> None:
    """Another app, and another cluster of one app, share nothing."""
    found = everything(derive(SEED, "tests"))
    for other in (derive(Secret("cd" * 32), "tests"), derive(SEED, "other")):
        assert not set(found) & set(everything(other))


def test_workload_secrets_differ_by_name_owner_and_rotation() -> None:
    """Each is 64 hex digits, the same at every derivation; no two of them, nor owner and name shifted, meet."""
    keys = derive(SEED, "tests")
    entries = (("db", "a", 0), ("db", "b", 0), ("api", "a", 0), ("d", "ba", 0), ("db", "a", 1), ("db", "a", 11))
    found = [workload_secret(keys, *entry).reveal() for entry in entries]
    assert len(set(found)) == len(entries)
    assert all(len(bytes.fromhex(text)) == 32 for text in found)
    assert workload_secret(derive(SEED, "tests"), "db", "a", 0).reveal() == found[0]


def test_a_gossip_key_is_one_that_consul_takes() -> None:
    """32 bytes in base64."""
    assert len(base64.b64decode(gossip_key(derive(SEED, "tests"), 3).reveal(), validate=True)) == 32


def test_the_management_token_is_a_uuid() -> None:
    """Consul takes no other form."""
    assert uuid.UUID(derive(SEED, "tests").management_token.reveal()).version == 4


def test_nothing_shows() -> None:
    """The dump of the keys holds no secret."""
    keys = derive(SEED, "tests")
    shown = repr(keys)
    assert keys.management_token.reveal() not in shown
    assert keys.gossip_root.reveal() not in shown
    assert keys.broker_key.hex() not in shown
    assert repr(keys.broker_key) not in shown


def test_agent_certificates() -> None:
    """A server's certificate has the name that agents ask for, a client's has not; both chain to the derived CA."""
    keys = derive(SEED, "tests")
    key = ec.generate_private_key(ec.SECP256R1())
    names = {}
    for server in (True, False):
        pem = agent_certificate(keys, spki(key), node="n", datacenter="tests", server=server, now=NOW)
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(keys.rpc_ca)
        assert certificate.not_valid_before_utc.timestamp() < NOW < certificate.not_valid_after_utc.timestamp()
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names[server] = found.get_values_for_type(x509.DNSName)
    assert names == {True: ["server.tests.consul", "n.node.tests.consul"], False: ["n.node.tests.consul"]}


@pytest.mark.parametrize("der", [b"garbage", spki(ed25519.Ed25519PrivateKey.generate())], ids=["garbage", "ed25519"])
def test_other_keys_get_no_certificate(der: bytes) -> None:
    """Only elliptic-curve keys are signed."""
    with pytest.raises(ValueError, match=r".+"):
        agent_certificate(derive(SEED, "tests"), der, node="n", datacenter="tests", server=False, now=NOW)


def test_a_secret_that_came_with_the_mesh_stays_until_it_is_rotated() -> None:
    """Programs that run know it; the next one is derived here, where the former coordinators' key is not."""
    own = derive(SEED, "tests")
    keys = dataclasses.replace(own, inherited=Inherited(secrets={("db", "a", 3): Secret("before")}))
    assert workload_secret(keys, "db", "a", 3).reveal() == "before"
    for name, rotation in (("a", 4), ("a", 2), ("b", 3)):
        found = workload_secret(keys, "db", name, rotation).reveal()
        assert found == workload_secret(own, "db", name, rotation).reveal()
