"""`evidence.ratls`: certificates of both OS generations, and what may not pass for one."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from evidence import ratls
from evidence.errors import EvidenceError
from evidence.eventlog import parse
from lab.agent_tls import attestation, event_log_json
from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import NOW, boot, verifier

_KEY = ec.derive_private_key(7, ec.SECP256R1())
_SPKI = _KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate(extensions: dict[x509.ObjectIdentifier, bytes], *, wrap: bool = True) -> bytes:
    """A self-signed certificate of the test key with these extensions, DER."""
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=_KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2040, 1, 1, tzinfo=UTC))
    )
    for oid, value in extensions.items():
        data = asn1.encode_der(value) if wrap else value
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, data), critical=False)
    return builder.sign(_KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def quoted(tee: DevTee, cvm: CvmIdentity, key: bytes = _SPKI) -> bytes:
    """A quote that speaks for `key`."""
    return tee.quote(cvm.measurements, ratls.expected_report_data(key))


def old_style(tee: DevTee, cvm: CvmIdentity, log: bytes | None = None) -> bytes:
    """A certificate as OS 0.5.8 and earlier make it."""
    text = event_log_json(cvm.boot_events, stripped=True).encode()
    return certificate({ratls.OID_QUOTE: quoted(tee, cvm), ratls.OID_EVENT_LOG: text if log is None else log})


def new_style(tee: DevTee, cvm: CvmIdentity, *, config: str | None = None) -> bytes:
    """A certificate as OS 0.5.9 and later make it."""
    vm_config = cvm.vm_config if config is None else config
    return certificate({ratls.OID_ATTESTATION: attestation(quoted(tee, cvm), cvm.boot_events, b"", vm_config)})


def refused(cert_der: bytes) -> str:
    """The reason why `cert_der` gives no evidence."""
    with pytest.raises(EvidenceError) as caught:
        ratls.extract(cert_der)
    assert caught.value.code == "QUOTE_INVALID"
    return caught.value.reason


@pytest.mark.parametrize("style", [old_style, new_style])
def test_both_generations_verify(tee: DevTee, cvm: CvmIdentity, style: Callable[[DevTee, CvmIdentity], bytes]) -> None:
    """The same facts come out of both certificate forms."""
    facts = asyncio.run(ratls.verify_certificate(verifier(tee), style(tee, cvm), NOW))
    assert (facts.app_id, facts.compose_hash) == (cvm.app_id, cvm.compose_hash)


def test_a_compressed_event_log_is_unpacked(tee: DevTee, cvm: CvmIdentity) -> None:
    """The gzip form gives the same log."""
    text = event_log_json(cvm.boot_events, stripped=True)
    found = ratls.extract(old_style(tee, cvm, ratls.GZIP_MARK + gzip.compress(text.encode())))
    assert found.event_log == text


def test_a_gzip_bomb_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """Little that unpacks to much stops at the limit."""
    bomb = ratls.GZIP_MARK + gzip.compress(bytes(ratls.MAX_EVENT_LOG * 4))
    assert "unpacks" in refused(old_style(tee, cvm, bomb))


EMPTY_LOG = b"ELGZv1" + gzip.compress(b"[]", mtime=0)


@pytest.mark.parametrize("log", [b"ELGZv1garbage", EMPTY_LOG[:-3], EMPTY_LOG + b"x", b"\xff"])
def test_a_broken_event_log_is_refused(tee: DevTee, cvm: CvmIdentity, log: bytes) -> None:
    """Cut, extended or foreign bytes are no log."""
    assert "event log" in refused(old_style(tee, cvm, log))


def test_a_stolen_quote_does_not_fit_another_key(tee: DevTee, cvm: CvmIdentity) -> None:
    """The evidence of one key in a certificate for another is refused."""
    text = event_log_json(cvm.boot_events, stripped=True).encode()
    stolen = certificate({ratls.OID_QUOTE: quoted(tee, cvm, b"another key"), ratls.OID_EVENT_LOG: text})
    with pytest.raises(EvidenceError) as caught:
        asyncio.run(ratls.verify_certificate(verifier(tee), stolen, NOW))
    assert caught.value.code == "REPORT_DATA_MISMATCH"


def test_the_attestation_carries_the_claimed_configuration(tee: DevTee) -> None:
    """The newer form's vm_config is checked like any other."""
    cvm = boot(tee)
    lie = new_style(tee, cvm, config=json.dumps({"os_image_hash": "ab" * 32}))
    with pytest.raises(EvidenceError, match="claims OS image"):
        asyncio.run(ratls.verify_certificate(verifier(tee), lie, NOW))


def test_runtime_events_alone_make_a_log(tee: DevTee, cvm: CvmIdentity) -> None:
    """An attestation whose event list has no runtime events takes them from the second list."""
    whole = attestation(quoted(tee, cvm), cvm.boot_events, b"", "")
    firmware = [event for event in cvm.boot_events if event.imr != 3]
    without = attestation(quoted(tee, cvm), firmware, b"", "")
    # The second list begins with its count, one byte before the first name's length; an empty one is that byte alone,
    # followed by 64 bytes of report data and an empty configuration.
    second_list = whole[whole.rindex(b"system-preparing") - 2 :]
    data = without[: -(1 + 64 + 1)] + second_list
    log = parse(ratls.extract(certificate({ratls.OID_ATTESTATION: data})).event_log)
    assert log.replay()[3] == cvm.measurements.rtmr3


def test_two_lists_that_differ_are_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """An attestation may not tell two stories."""
    data = attestation(quoted(tee, cvm), cvm.boot_events, b"", "")
    last = data.rindex(b"system-preparing")
    assert "other runtime events" in refused(
        certificate({ratls.OID_ATTESTATION: data[:last] + b"System-preparing" + data[last + 16 :]})
    )


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "expected 00"),
        (b"\x83", "expected 00"),
        (b"\0\1", "platform 1"),
        (b"\0\0\3", "1 GiB"),
        (b"\0\0\xfe\xff\xff\xff", "cut off"),
        (b"\0\0\0\xfe\xff\xff\xff", "cut off"),
    ],
)
def test_broken_attestations_are_refused(data: bytes, word: str) -> None:
    """Each defect gives its own reason."""
    assert word in refused(certificate({ratls.OID_ATTESTATION: data}))


def test_bytes_after_an_attestation_are_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """Nothing may follow."""
    data = attestation(quoted(tee, cvm), cvm.boot_events, b"", "") + b"x"
    assert "too many" in refused(certificate({ratls.OID_ATTESTATION: data}))


def test_a_certificate_without_evidence_is_refused() -> None:
    """An ordinary certificate proves nothing here."""
    assert "no evidence" in refused(certificate({}))
    assert "no evidence" in refused(certificate({ratls.OID_QUOTE: b"only a quote"}))


def test_an_extension_that_is_no_octet_string_is_refused() -> None:
    """The wrapping is part of the format."""
    assert "OCTET STRING" in refused(certificate({ratls.OID_ATTESTATION: b"\x30\0"}, wrap=False))


def test_a_giant_certificate_is_refused_unread() -> None:
    """Size is checked first."""
    assert "more than" in refused(bytes(ratls.MAX_CERTIFICATE + 1))


@given(st.binary(max_size=300))
def test_garbage_only_gives_typed_errors(data: bytes) -> None:
    """Neither as certificate nor as attestation does garbage raise anything but EvidenceError."""
    refused(data)
    refused(certificate({ratls.OID_ATTESTATION: b"\0\0" + data}))
