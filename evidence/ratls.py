"""RA-TLS: takes the evidence out of a dstack certificate and verifies that it speaks for the certificate's key.

Nothing about the issuer is used: whoever signed the certificate, the quote names the key, and the TLS handshake proves
that the peer holds it. Extensions: dstack-types, `1.3.6.1.4.1.62397.1.*`; each value is a DER OCTET STRING around the
bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .errors import EvidenceError
from .eventlog import RUNTIME_EVENT
from .verify import Evidence, EvidenceVerifier

OID_QUOTE = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.1")
OID_EVENT_LOG = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.2")
OID_ATTESTATION = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.8")
MAX_CERTIFICATE = 256 * 1024
"""Bytes of DER."""
MAX_EVENT_LOG = 1024 * 1024
"""Bytes of event log after decompression. 16 kB of gzip can hold 16 MB of zeros."""
GZIP_MARK = b"ELGZv1"
_TDX = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaTlsEvidence:
    """What a certificate carries. Not verified."""

    quote: bytes
    event_log: str
    spki: bytes
    """SubjectPublicKeyInfo of the certificate's key, DER."""
    vm_config: str = ""
    """Only the newer form (`.8`) carries one."""


def expected_report_data(spki: bytes) -> bytes:
    """What the quote must say to speak for the key `spki` (DER): SHA-512("ratls-cert:" || spki), 64 bytes."""
    return hashlib.sha512(b"ratls-cert:" + spki).digest()


async def verify_certificate(verifier: EvidenceVerifier, cert_der: bytes, now: float) -> Evidence:
    """The facts that the certificate's evidence proves about the holder of its key; EvidenceError otherwise."""
    found = extract(cert_der)
    return await verifier.verify(
        quote=found.quote,
        event_log=found.event_log,
        vm_config=found.vm_config,
        report_data=expected_report_data(found.spki),
        now=now,
    )


def extract(cert_der: bytes) -> RaTlsEvidence:
    """The evidence in a certificate: `.8` where it is (OS 0.5.9 and later), else `.1` with `.2`. EvidenceError
    QUOTE_INVALID.
    """
    if len(cert_der) > MAX_CERTIFICATE:
        raise _bad(f"{len(cert_der)} bytes, more than {MAX_CERTIFICATE}")
    try:
        certificate = x509.load_der_x509_certificate(cert_der)
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        values = {
            extension.oid: extension.value.value
            for extension in certificate.extensions
            if isinstance(extension.value, x509.UnrecognizedExtension)
        }
    except Exception as error:  # the library has an error of its own for each oddity of a certificate
        raise _bad(f"not an X.509 certificate with a known key: {error!r:.200}") from error
    if OID_ATTESTATION in values:
        quote, event_log, vm_config = _attestation(_octets(values[OID_ATTESTATION]))
        return RaTlsEvidence(quote=quote, event_log=event_log, spki=spki, vm_config=vm_config)
    if OID_QUOTE in values and OID_EVENT_LOG in values:
        event_log = _event_log(_octets(values[OID_EVENT_LOG]))
        return RaTlsEvidence(quote=_octets(values[OID_QUOTE]), event_log=event_log, spki=spki)
    raise _bad("it carries no evidence; expected extension 1.3.6.1.4.1.62397.1.8, or .1 with .2")


def _octets(value: bytes) -> bytes:
    try:
        return asn1.decode_der(bytes, value)
    except ValueError as error:
        raise _bad(f"an evidence extension is not an OCTET STRING: {error}") from error


def _event_log(data: bytes) -> str:
    if data.startswith(GZIP_MARK):
        inflate = zlib.decompressobj(wbits=31)
        try:
            data = inflate.decompress(data[len(GZIP_MARK) :], MAX_EVENT_LOG)
        except zlib.error as error:
            raise _bad(f"its event log is not gzip: {error}") from error
        if not inflate.eof or inflate.unused_data:
            raise _bad(f"its event log is cut off, has bytes after it, or unpacks to more than {MAX_EVENT_LOG} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"its event log is not UTF-8: {error}") from error


def _attestation(data: bytes) -> tuple[bytes, str, str]:
    """Quote, event log and vm_config from a SCALE encoded attestation of version 0."""
    if data[:1] != b"\0":
        raise _bad(f"its attestation begins with {data[:1].hex()!r}, expected 00 (SCALE V0; event_log_version 1)")
    scale = _Scale(data, 1)
    if (variant := scale.uint(1)) != _TDX:
        raise _bad(f"its attestation is of platform {variant}, expected {_TDX} (TDX)")
    quote = scale.octets()
    events = [_scale_event(scale) for _ in range(scale.compact())]
    runtime = [{"event": scale.text(), "event_payload": scale.octets().hex()} for _ in range(scale.compact())]
    scale.take(64)  # Report data: the quote says it too, and only that copy is signed.
    vm_config = scale.text()
    if scale.offset != len(data):
        raise _bad(f"its attestation has {len(data) - scale.offset} bytes too many")
    logged = [{name: event[name] for name in ("event", "event_payload")} for event in events if event["imr"] == 3]
    if not logged:
        events += [{"imr": 3, "event_type": RUNTIME_EVENT, "digest": "", **event} for event in runtime]
    elif logged != runtime:
        raise _bad("its attestation lists other runtime events than its event log")
    return quote, json.dumps(events), vm_config


def _scale_event(scale: _Scale) -> dict[str, int | str]:
    return {
        "imr": scale.uint(4),
        "event_type": scale.uint(4),
        "digest": scale.octets().hex(),
        "event": scale.text(),
        "event_payload": scale.octets().hex(),
    }


class _Scale:
    """Reads SCALE (Parity's simple concatenated encoding) front to back; EvidenceError past the end."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self.offset = offset

    def take(self, length: int) -> bytes:
        piece = self._data[self.offset : self.offset + length]
        if len(piece) != length:
            raise _bad("its attestation is cut off")
        self.offset += length
        return piece

    def uint(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def compact(self) -> int:
        """A length: 1, 2 or 4 bytes by the lowest two bits of the first. Longer ones exceed every limit here."""
        first = self.uint(1)
        mode = first & 3
        if mode == 3:
            raise _bad("its attestation claims a length of 1 GiB or more")
        rest = self.uint((1 << mode) - 1)
        return (first | rest << 8) >> 2

    def octets(self) -> bytes:
        return self.take(self.compact())

    def text(self) -> str:
        try:
            return self.octets().decode()
        except UnicodeDecodeError as error:
            raise _bad(f"its attestation has a text that is not UTF-8: {error}") from error


def _bad(what: str) -> EvidenceError:
    return EvidenceError("QUOTE_INVALID", f"the certificate cannot be used: {what}")
