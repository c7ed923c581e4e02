"""The guest agent's TLS certificates and attestations: RA-TLS extensions by OS version, SCALE encoded attestation
(version 0)."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from evidence.eventlog import Event
from evidence.ratls import OID_ATTESTATION, OID_EVENT_LOG, OID_QUOTE, expected_report_data

from .tee import CvmIdentity, DevTee
from .tee_pki import Keys

_OID_USAGE = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.4")
_NOT_BEFORE = datetime(1975, 1, 1, tzinfo=UTC)
_LIFETIME = timedelta(days=3650)
_ACPI = b"ACPI DATA"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsRequest:
    """What a caller of GetTlsKey asked for."""

    subject: str
    alt_names: tuple[str, ...] = ()
    ra_tls: bool = False
    server: bool = False
    client: bool = False
    not_before: int | None = None
    """Unix seconds."""
    not_after: int | None = None


def event_log_json(events: Sequence[Event], *, stripped: bool, keep_acpi: bool = False) -> str:
    """A log as compact JSON. `stripped` as GetQuote since 0.5.6: payloads only of runtime events, and digests only of
    the others.

    `keep_acpi`: 0.6.0 leaves the ACPI events' payload in.
    """
    return json.dumps(event_items(events, stripped=stripped, keep_acpi=keep_acpi), separators=(",", ":"))


def event_items(events: Sequence[Event], *, stripped: bool, keep_acpi: bool = False) -> list[dict[str, int | str]]:
    """The same as a list of objects."""
    return [
        {
            "imr": event.imr,
            "event_type": event.event_type,
            "digest": "" if stripped and event.imr == 3 else event.digest.hex(),
            "event": event.name,
            "event_payload": event.payload.hex() if _keeps_payload(event, stripped, keep_acpi) else "",
        }
        for event in events
    ]


def attestation(quote: bytes, events: Sequence[Event], report_data: bytes, vm_config: str) -> bytes:
    """A TDX attestation of version 0 in SCALE."""
    runtime = [event for event in events if event.imr == 3]
    return b"".join(
        (
            b"\0\0",
            _octets(quote),
            _compact(len(events)),
            *(_scale_event(event) for event in events),
            _compact(len(runtime)),
            *(_octets(event.name.encode()) + _octets(event.payload) for event in runtime),
            report_data.ljust(64, b"\0"),
            _octets(vm_config.encode()),
        )
    )


def issue(
    tee: DevTee,
    cvm: CvmIdentity,
    events: Sequence[Event],
    quote: bytes | None,
    request: TlsRequest,
    key: ec.EllipticCurvePrivateKey,
    now: float,
) -> list[str]:
    """The chain for `key`: leaf and the KMS's CA, PEM. `quote` is there where RA-TLS was asked for. ValueError:
    impossible request.
    """
    moment = datetime.fromtimestamp(int(now), UTC)
    starts = _NOT_BEFORE if request.not_before is None else _moment(request.not_before)
    ends = moment + _LIFETIME if request.not_after is None else _moment(request.not_after)
    ca = _kms_ca(tee)
    builder = (
        x509.CertificateBuilder(
            issuer_name=ca.subject, subject_name=_subject(request.subject), public_key=key.public_key()
        )
        .serial_number(int.from_bytes(secrets.token_bytes(20), "big") >> 1 or 1)
        .not_valid_before(starts)
        .not_valid_after(ends)
        .add_extension(_key_usage(), critical=True)
    )
    usages = [
        usage
        for usage, wanted in (
            (ExtendedKeyUsageOID.SERVER_AUTH, request.server),
            (ExtendedKeyUsageOID.CLIENT_AUTH, request.client),
        )
        if wanted
    ]
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if request.alt_names:
        names = [_alt_name(name, cvm.os_version) for name in request.alt_names]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if quote is not None:
        for oid, value in _extensions(cvm, events, quote, key):
            unrecognized = x509.UnrecognizedExtension(oid, asn1.encode_der(value))
            builder = builder.add_extension(unrecognized, critical=False)
    leaf = builder.sign(tee.kms_ca_key, hashes.SHA256())
    return [certificate.public_bytes(Encoding.PEM).decode() for certificate in (leaf, ca)]


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def ratls_report_data(key: ec.EllipticCurvePrivateKey) -> bytes:
    """What a quote must say to speak for `key`."""
    return expected_report_data(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _extensions(
    cvm: CvmIdentity, events: Sequence[Event], quote: bytes, key: ec.EllipticCurvePrivateKey
) -> list[tuple[x509.ObjectIdentifier, bytes]]:
    usage = (_OID_USAGE, b"app:custom")
    if cvm.os_version == "0.5.7":
        log = event_log_json(events, stripped=True)
        return [(OID_QUOTE, quote), (OID_EVENT_LOG, log.encode()), usage]
    kept = [event for event in events if event.imr == 3 or event.payload == _ACPI]
    return [usage, (OID_ATTESTATION, attestation(quote, kept, ratls_report_data(key), cvm.vm_config))]


def _kms_ca(tee: DevTee) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Dstack"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "cvm-mesh DEVELOPMENT"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Dstack KMS CA"),
        ]
    )
    key = tee.kms_ca_key
    return (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(tee.root_der).digest()[:16], "big") >> 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(datetime(2099, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )


def derived_key(tee: DevTee, name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that stays the same for one seed: for the certificate that Info shows."""
    return Keys(tee.seed).derive(name)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _alt_name(name: str, os_version: str) -> x509.GeneralName:
    # 0.5.7 writes addresses as DNS names, which no TLS client matches; 0.6.0 writes them as addresses.
    if os_version != "0.5.7":
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            pass
    return x509.DNSName(name)


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(f"time {seconds} is out of range") from error


def _keeps_payload(event: Event, stripped: bool, keep_acpi: bool) -> bool:
    return not stripped or event.imr == 3 or (keep_acpi and event.payload == _ACPI)


def _scale_event(event: Event) -> bytes:
    runtime = event.imr == 3
    return b"".join(
        (
            event.imr.to_bytes(4, "little"),
            event.event_type.to_bytes(4, "little"),
            _octets(b"" if runtime else event.digest),
            _octets(event.name.encode()),
            _octets(event.payload if _keeps_payload(event, True, True) else b""),
        )
    )


def _octets(data: bytes) -> bytes:
    return _compact(len(data)) + data


def _compact(number: int) -> bytes:
    """SCALE's compact length: the lowest two bits of the first byte say how many bytes it takes."""
    for mode, size in ((0, 1), (1, 2), (2, 4)):
        if number < 1 << (8 * size - 2):
            return (number << 2 | mode).to_bytes(size, "little")
    raise ValueError(f"{number} items are too many for an attestation")
