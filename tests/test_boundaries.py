"""What another party sends is parsed, or is that party's failure: never an error that nobody foresaw."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from admission.broker import decode_admission, decode_challenge, decode_renewal
from admission.client import CoordinatorError, decode_answer
from coordinator.authority import load_p256
from coordinator.leases import LeaseError, unseal
from evidence.errors import EvidenceError
from evidence.ratls import extract
from peer import control
from peer.spec import LinkError
from runtime import consul, guest, values
from sidecar.certificate_reading import CertificateError, Expected, parse
from tests.sidecar.world import DIGEST, NOW, granted

NONSENSE = {
    "a number of 5,000 digits": b'{"index": ' + b"1" * 5000 + b"}",
    "a list 100,000 deep": b"[" * 100_000,
    "an object 100,000 deep": b'{"a":' * 100_000,
    "no UTF-8": b'{"a": "\xff"}',
    "half a surrogate": b'{"a": "\\ud800"}',
    "not a number": b'{"index": NaN, "lease_seconds": NaN}',
    "no end": b'{"index": Infinity}',
    "nothing": b"",
    "a list": b"[]",
}
READERS: dict[str, tuple[Callable[[bytes], Any], type[Exception]]] = {
    "rendezvous": (control.decode_table, LinkError),
    "coordinator": (lambda body: decode_challenge(decode_answer("url", 200, body)), CoordinatorError),
    "guest agent": (lambda body: guest._text(guest._object("Info", 200, body), "Info", "x"), guest.GuestError),
    "a variable": (lambda body: values.json_list(body.decode(errors="replace"), "things")[0]["x"], ValueError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_failure_that_was_foreseen(reader: str, body: bytes) -> None:
    """Each reader's own error, and no other."""
    read, error = READERS[reader]
    if reader == "a variable" and body == b"[]":
        return
    with pytest.raises(error):
        read(body)


def test_consul_that_answers_nonsense_is_an_error_of_consul() -> None:
    """Numbers and depth that Python does not take."""
    for body in ("1" * 5000, "[" * 100_000):
        with pytest.raises(consul.ConsulError):
            consul._parse(body)


def test_a_lease_of_nonsense_is_none() -> None:
    """Sealed by nobody, or by a coordinator of another version."""
    for text in ("", "a.b", "." * 5000, "x" * 100_000):
        with pytest.raises(LeaseError):
            unseal(text, b"k" * 32)


CONSUL = {
    "datacenter": "d", "token": "t", "token_expires_at": 1, "gossip_ring": "0", "gossip_keys": ["A" * 43 + "="],
    "ca_pem": "c", "certificate_pem": "c", "servers": [],
}  # fmt: skip
ADMISSION = {
    "peer_id": "api-0", "address": "100.96.0.10", "consul": CONSUL, "peers": [], "lease": "l", "lease_seconds": 15,
    "manifest": "m", "manifest_epoch": 3, "workload_token": "", "secrets": {}, "public_pems": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        *({"lease_seconds": value} for value in (0, -1, 1e9, float("nan"), float("inf"), 10**400, "15", None)),
        *({"manifest_epoch": value} for value in (0, -3, float("inf"), 1.5, 10**400, True, None)),
    ],
    ids=repr,
)
def test_numbers_of_a_coordinator_have_a_range(changes: dict[str, Any]) -> None:
    """A lease of no length would be renewed without a pause, and one without end never."""
    certificate = granted(KEY)
    assert decode_admission({**ADMISSION, **certificate}, "url").lease_seconds == 15.0
    with pytest.raises(CoordinatorError):
        decode_admission({**ADMISSION, **certificate, **changes}, "url")
    renewal = {"lease_seconds": 15.0, "manifest_epoch": 3, **certificate}
    with pytest.raises(CoordinatorError):
        decode_renewal({**renewal, **changes})


PRIVATE = ec.generate_private_key(ec.SECP256R1())
SPKI = PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
KEY = base64.b64encode(SPKI).decode()
VERSION_3, VERSION_4 = bytes.fromhex("a003020102"), bytes.fromhex("a003020103")
P256, UNKNOWN = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030163")
"""The curve's object identifier, and one that names none."""


def certificate() -> bytes:
    """A certificate (DER) that says nothing."""
    name = x509.Name([])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(PRIVATE.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + dt.timedelta(days=9999))
    return builder.sign(PRIVATE, hashes.SHA256()).public_bytes(Encoding.DER)


ODD = {
    "version 4": lambda der: der.replace(VERSION_3, VERSION_4, 1),
    "an unknown curve": lambda der: der.replace(P256, UNKNOWN, 1),
    "cut off": lambda der: der[:-10],
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_odd_certificates_are_no_evidence(change: Callable[[bytes], bytes]) -> None:
    """Anybody may show one where a coordinator is expected: nothing is verified yet."""
    odd = change(certificate())
    assert odd != certificate()
    with pytest.raises(EvidenceError):
        extract(odd)


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
@pytest.mark.parametrize("field", ["leaf_pem", "authorities_pem"])
def test_odd_certificates_are_none_for_a_sidecar(field: str, change: Callable[[bytes], bytes]) -> None:
    """An attested coordinator may be out of order."""
    answer = granted(KEY)
    first = x509.load_pem_x509_certificates(answer[field].encode())[0].public_bytes(Encoding.PEM).decode()
    odd = change(base64.b64decode("".join(first.splitlines()[1:-1])))
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(odd).decode()}-----END CERTIFICATE-----\n"
    answer[field] = answer[field].replace(first, pem)
    expected = Expected(cluster="demo", group="api", peer_id="api-0", leaf_key=SPKI)
    with pytest.raises(CertificateError):
        parse(
            digest=DIGEST, leaf_pem=answer["leaf_pem"], authorities_pem=answer["authorities_pem"], expected=expected,
            now=NOW,
        )  # fmt: skip


def test_odd_keys_are_no_keys() -> None:
    """Before a nonce is used up, and without a stack trace in the log."""
    for odd in (SPKI.replace(P256, UNKNOWN), SPKI[:-1], b"", json.dumps({}).encode()):
        with pytest.raises(ValueError, match=r"is not a"):
            load_p256(odd)
