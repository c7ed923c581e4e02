"""TDX quotes as bytes: `parse` takes version 4 and 5 apart and refuses every byte that it cannot account for. Pure.

Nothing here is authenticated: a `Quote` is worth something only after `evidence.verify`. Layout: Intel, "TDX DCAP Quote
Generation Library and Quote Verification Library", appendix A.3 (little endian throughout).
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import EvidenceError

MAX_QUOTE = 64 * 1024
"""Bytes. Real quotes are about 5,000; the platform's buffer is 16 KiB."""
TEE_TDX = 0x81
ECDSA_P256 = 2
QE_VENDOR_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_HEADER = 48
_TD10 = 584
_TD15 = 648
_QE_REPORT = 384
_SIGNATURE = 64
_KEY = 64
_CERTIFICATION_HEADER = 6
_AUTH = 32
_QE_REPORT_CERTIFICATION = 6
_PEM_CHAIN = 5
PADDING = _SIGNATURE + _CERTIFICATION_HEADER
"""Intel's quoting enclave sizes its buffer by one signature and one certification header too many (seen in every real
vector), so a
real quote ends in exactly that many zero bytes. They are not signed: any other trailing byte is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The fields of one TDX quote. Every `bytes` field has its fixed length."""

    version: int
    """4 or 5."""
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    """All zero for Intel's own TDX module."""
    seam_attributes: bytes
    td_attributes: bytes
    """8 bytes, the lowest bit first: 0 is DEBUG, 29 MIGRATABLE."""
    xfam: bytes
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    """64 bytes, chosen by the program that asked for the quote."""
    mr_service_td: bytes
    """Measurement of a service (migration) TD; 48 zero bytes where the report has no such field."""
    body_end: int
    """Offset of the first byte that the quote's signature does not cover. Four bytes on are that signature and the key
    that made it, the quoting enclave's attestation key."""

    @property
    def debug(self) -> bool:
        """True when the host may read and change the TD's memory."""
        return bool(self.td_attributes[0] & 1)

    @property
    def migratable(self) -> bool:
        """True when a service TD of the host's choice may move the TD, with all its memory, elsewhere.

        Bit 29, MIGRATABLE (Intel, TDX Module Base Architecture Specification, ATTRIBUTES). A version 4 quote has no
        field for the service TD, so this bit is all that shows.
        """
        return bool(self.td_attributes[3] & 0x20)


def parse(raw: bytes) -> Quote:
    """The quote in `raw`; EvidenceError QUOTE_INVALID when it is not exactly one whole TDX quote."""
    if len(raw) > MAX_QUOTE:
        raise _bad(f"{len(raw)} bytes, more than {MAX_QUOTE}")
    version = _uint(raw, 0, 2)
    if version not in (4, 5):
        raise _bad(f"version {version}, expected 4 or 5")
    if _uint(raw, 2, 2) != ECDSA_P256:
        raise _bad(f"attestation key type {_uint(raw, 2, 2)}, expected {ECDSA_P256} (ECDSA P-256)")
    if _uint(raw, 4, 4) != TEE_TDX:
        raise _bad(f"TEE type {_uint(raw, 4, 4):#x}, expected {TEE_TDX:#x} (TDX)")
    if _take(raw, 12, 16) != QE_VENDOR_INTEL:
        raise _bad(f"quoting enclave vendor {_take(raw, 12, 16).hex()}, expected Intel's")
    body, size = _body(raw, version)
    _check_tail(raw, body + size)
    return _fields(raw, version, body, size)


def signature(raw: bytes, quote: Quote) -> tuple[bytes, bytes, bytes]:
    """What is signed in `raw`, which was read as `quote`, the signature (r, s) and the attestation key (x, y)."""
    start = quote.body_end + 4
    key = start + _SIGNATURE
    return raw[: quote.body_end], raw[start:key], raw[key : key + _KEY]


def machine(raw: bytes, quote: Quote) -> bytes:
    """What is the same in each quote over CVMs of one OS image on one machine: all of `raw` but MRCONFIGID, RTMR3,
    report data, and the signature over these. The rest keeps its place, so two that are equal here differ nowhere else.
    """
    body = _HEADER if quote.version == 4 else _HEADER + 6
    after = quote.body_end + 4 + _SIGNATURE
    return raw[: body + 184] + raw[body + 232 : body + 472] + raw[body + 584 : quote.body_end + 4] + raw[after:]


def certificates(raw: bytes) -> bytes:
    """The certificate chain of the machine in the quote `raw`. EvidenceError where it has none at its place."""
    body, size = _body(raw, _uint(raw, 0, 2))
    start = body + size + 4 + _SIGNATURE + _KEY + _CERTIFICATION_HEADER + _QE_REPORT + _SIGNATURE + 2 + _AUTH
    return _take(raw, start + _CERTIFICATION_HEADER, _uint(raw, start + 2, 4))


def _body(raw: bytes, version: int) -> tuple[int, int]:
    """Offset and size of the TD report."""
    if version == 4:
        return _HEADER, _TD10
    kind, size = _uint(raw, _HEADER, 2), _uint(raw, _HEADER + 2, 4)
    # Type 4 (the 1.5 extension) is left out: no OS that dstack ships asks for it, so nothing could have been tried
    # against it.
    if (kind, size) not in ((2, _TD10), (3, _TD15)):
        raise _bad(f"body type {kind} of {size} bytes, expected type 2 ({_TD10}) or 3 ({_TD15})")
    return _HEADER + 6, size


def _fields(raw: bytes, version: int, body: int, size: int) -> Quote:
    def at(offset: int, length: int) -> bytes:
        return _take(raw, body + offset, length)

    return Quote(
        version=version,
        tee_tcb_svn=at(0, 16),
        mr_seam=at(16, 48),
        mr_signer_seam=at(64, 48),
        seam_attributes=at(112, 8),
        td_attributes=at(120, 8),
        xfam=at(128, 8),
        mrtd=at(136, 48),
        mr_config_id=at(184, 48),
        mr_owner=at(232, 48),
        mr_owner_config=at(280, 48),
        rtmr0=at(328, 48),
        rtmr1=at(376, 48),
        rtmr2=at(424, 48),
        rtmr3=at(472, 48),
        report_data=at(520, 64),
        mr_service_td=at(600, 48) if size == _TD15 else bytes(48),
        body_end=body + size,
    )


def _check_tail(raw: bytes, body_end: int) -> None:
    """The signature data must nest without slack: its sizes are not signed, so slack would be room for anything."""
    start = body_end + 4
    end = start + _uint(raw, body_end, 4)
    outer = start + _SIGNATURE + _KEY
    report = outer + _CERTIFICATION_HEADER
    auth = report + _QE_REPORT + _SIGNATURE
    chain = auth + 2 + _AUTH
    expected = (
        ("certification type", _uint(raw, outer, 2), _QE_REPORT_CERTIFICATION),
        ("certification size", _uint(raw, outer + 2, 4), end - report),
        ("quoting enclave authentication size", _uint(raw, auth, 2), _AUTH),
        ("certificate data type", _uint(raw, chain, 2), _PEM_CHAIN),
        ("certificate data size", _uint(raw, chain + 2, 4), end - chain - _CERTIFICATION_HEADER),
    )
    for what, found, wanted in expected:
        if found != wanted:
            raise _bad(f"{what} {found}, expected {wanted}")
    trailing = raw[end:]
    if len(raw) < end:
        raise _bad(f"{len(raw)} bytes, its sizes say {end}")
    if trailing and trailing != bytes(PADDING):
        raise _bad(
            f"{len(trailing)} bytes after the quote, expected none (or the quoting library's {PADDING} zero bytes)"
        )


def _take(raw: bytes, offset: int, length: int) -> bytes:
    piece = raw[offset : offset + length]
    if len(piece) != length:
        raise _bad(f"ends at byte {len(raw)}, expected at least {offset + length}")
    return piece


def _uint(raw: bytes, offset: int, length: int) -> int:
    return int.from_bytes(_take(raw, offset, length), "little")


def _bad(what: str) -> EvidenceError:
    return EvidenceError("QUOTE_INVALID", f"the quote is not a whole TDX quote: {what}")
