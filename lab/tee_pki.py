"""The development PKI that stands in for Intel's: root, PCK chain, revocation lists, TCB info and QE identity, all from
one seed.

Everything is a function of seed, knobs and day, so that processes that share a seed agree without talking. Shapes:
Intel's PCS API version 4 and "SGX PCK Certificate and CRL Profile Specification" 1.5.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

FMSPC = bytes.fromhex("c0ffee000000")
"""Names a kind of platform that Intel never made."""
PCE_ID = bytes(2)
PCE_SVN = 13
CPU_SVN = bytes(16)
QE_MRSIGNER = hashlib.sha256(b"cvm-mesh DEVELOPMENT quoting enclave").digest()
QE_SVN = 4
EVALUATION_DATA_NUMBER = 20
_SGX_EXTENSION = "1.2.840.113741.1.13.1"
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BIRTH = datetime(2020, 1, 1, tzinfo=UTC)
_END = datetime(2099, 1, 1, tzinfo=UTC)
_VALIDITY = timedelta(days=30)
_ENUMERATED, _SEQUENCE = 0x0A, 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbState:
    """What the development "Intel" says about its platform."""

    status: str = "UpToDate"
    """Any status of Intel's TCB info, for example `OutOfDate` or `Revoked`."""
    advisory_ids: tuple[str, ...] = ()
    pck_revoked: bool = False
    evaluation_data_number: int = EVALUATION_DATA_NUMBER
    lifetime: timedelta = _VALIDITY
    """From the midnight before: negative makes collateral that is past its time."""


class Keys:
    """P-256 keys by name, derived from a seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def derive(self, name: str) -> ec.EllipticCurvePrivateKey:
        """The key called `name`."""
        digest = hashlib.sha512(b"cvm-mesh DEVELOPMENT key\0" + self._seed + b"\0" + name.encode()).digest()
        return ec.derive_private_key(int.from_bytes(digest, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())


class DevPki:
    """Certificates and collateral of one seed."""

    def __init__(self, seed: bytes, state: TcbState) -> None:
        keys = Keys(seed)
        self._root_key, self._ca_key = keys.derive("root"), keys.derive("pck-ca")
        self._tcb_key, self.pck_key = keys.derive("tcb-signing"), keys.derive("pck")
        self._state = state
        root_name = _name("cvm-mesh DEVELOPMENT Root CA")
        ca_name = _name("cvm-mesh DEVELOPMENT PCK Platform CA")
        self._root = _certificate(root_name, root_name, self._root_key, self._root_key, ca=True)
        self._ca = _certificate(ca_name, root_name, self._ca_key, self._root_key, ca=True)
        self._tcb = _certificate(_name("cvm-mesh DEVELOPMENT TCB Signing"), root_name, self._tcb_key, self._root_key)
        self._ca_name = ca_name
        self._pcks: dict[bytes, x509.Certificate] = {}
        self._days: dict[datetime, dict[str, str]] = {}

    @property
    def root_der(self) -> bytes:
        """The root certificate."""
        return self._root.public_bytes(Encoding.DER)

    def pck_chain(self, ppid: bytes) -> bytes:
        """PEM, leaf first: what a quote carries that was made on the machine `ppid` (16 bytes)."""
        return _pem(self._pck(ppid), self._ca, self._root).encode()

    def _pck(self, ppid: bytes) -> x509.Certificate:
        """All machines have one key and serial number: this Intel revokes all of them, or none."""
        if ppid not in self._pcks:
            name = _name("cvm-mesh DEVELOPMENT PCK Certificate")
            extension = _sgx_extension(ppid)
            self._pcks[ppid] = _certificate(name, self._ca_name, self.pck_key, self._ca_key, extension=extension)
        return self._pcks[ppid]

    def collateral(self, now: float) -> dict[str, str]:
        """Collateral in date at Unix time `now`, with dcap_qvl's JSON keys (revocation lists and signatures in hex)."""
        today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if today not in self._days:
            self._days = {today: self._make(today)}
        return self._days[today]

    def _make(self, issued: datetime) -> dict[str, str]:
        until = issued + self._state.lifetime
        issued = min(issued, until - timedelta(days=1))
        revoked = [self._pck(bytes(16)).serial_number] if self._state.pck_revoked else []
        tcb_info = _text(self._tcb_info(issued, until))
        qe_identity = _text(_qe_identity(issued, until, self._state))
        return {
            "pck_crl_issuer_chain": _pem(self._ca, self._root),
            "root_ca_crl": _crl(self._root, self._root_key, issued, until, []).hex(),
            "pck_crl": _crl(self._ca, self._ca_key, issued, until, revoked).hex(),
            "tcb_info_issuer_chain": _pem(self._tcb, self._root),
            "tcb_info": tcb_info,
            "tcb_info_signature": sign(self._tcb_key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": _pem(self._tcb, self._root),
            "qe_identity": qe_identity,
            "qe_identity_signature": sign(self._tcb_key, qe_identity.encode()).hex(),
        }

    def _tcb_info(self, issued: datetime, until: datetime) -> dict[str, object]:
        level = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": 0}] * 16,
                "pcesvn": PCE_SVN,
                "tdxtcbcomponents": [{"svn": 0}] * 16,
            },
            "tcbDate": "2024-01-01T00:00:00Z",
            "tcbStatus": self._state.status,
            "advisoryIDs": list(self._state.advisory_ids),
        }
        return {
            "id": "TDX",
            "version": 3,
            "issueDate": _time(issued),
            "nextUpdate": _time(until),
            "fmspc": FMSPC.hex(),
            "pceId": PCE_ID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": self._state.evaluation_data_number,
            "tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8},
            "tcbLevels": [level],
        }


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA-P256-SHA256 as raw r || s, 64 bytes, the same ones every time."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _qe_identity(issued: datetime, until: datetime, state: TcbState) -> dict[str, object]:
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": _time(issued),
        "nextUpdate": _time(until),
        "tcbEvaluationDataNumber": state.evaluation_data_number,
        "miscselect": "00000000",
        "miscselectMask": "ffffffff",
        "attributes": "11" + "00" * 15,
        "attributesMask": "fb" + "ff" * 7 + "00" * 8,
        "mrsigner": QE_MRSIGNER.hex(),
        "isvprodid": 2,
        "tcbLevels": [{"tcb": {"isvsvn": QE_SVN}, "tcbDate": "2024-01-01T00:00:00Z", "tcbStatus": "UpToDate"}],
    }


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    extension: bytes | None = None,
) -> x509.Certificate:
    serial = int.from_bytes(hashlib.sha256(subject.public_bytes()).digest()[:16], "big") >> 1
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        .serial_number(serial)
        .not_valid_before(_BIRTH)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(_key_usage(ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if extension is not None:
        value = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX_EXTENSION), extension)
        builder = builder.add_extension(value, critical=False)
    return builder.sign(issuer_key, hashes.SHA256(), ecdsa_deterministic=True)


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _crl(
    issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, issued: datetime, until: datetime, revoked: list[int]
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder(issuer_name=issuer.subject)
        .last_update(issued)
        .next_update(until)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=issued).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def _sgx_extension(ppid: bytes) -> bytes:
    """Intel's SGX extension of a PCK certificate: a SEQUENCE of {OID, value} pairs, some of them SEQUENCEs of pairs."""
    components = [(f"2.{number}", asn1.encode_der(0)) for number in range(1, 17)]
    tcb = [*components, ("2.17", asn1.encode_der(PCE_SVN)), ("2.18", asn1.encode_der(CPU_SVN))]
    configuration = [(f"7.{number}", asn1.encode_der(True)) for number in range(1, 4)]
    return _pairs(
        [
            ("1", asn1.encode_der(ppid)),
            ("2", _pairs(tcb)),
            ("3", asn1.encode_der(PCE_ID)),
            ("4", asn1.encode_der(FMSPC)),
            ("5", _tagged(_ENUMERATED, b"\1")),
            ("6", asn1.encode_der(hashlib.md5(b"cvm-mesh DEVELOPMENT", usedforsecurity=False).digest())),
            ("7", _pairs(configuration)),
        ]
    )


def _pairs(items: list[tuple[str, bytes]]) -> bytes:
    encoded = [
        _tagged(_SEQUENCE, asn1.encode_der(x509.ObjectIdentifier(f"{_SGX_EXTENSION}.{number}")) + value)
        for number, value in items
    ]
    return _tagged(_SEQUENCE, b"".join(encoded))


def _tagged(tag: int, content: bytes) -> bytes:
    """One DER value. `asn1` knows no ENUMERATED and no SEQUENCE whose members are decided at run time."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cvm-mesh DEVELOPMENT, no hardware behind it"),
        ]
    )


def _pem(*certificates: x509.Certificate) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _text(tree: dict[str, object]) -> str:
    return json.dumps(tree, separators=(",", ":"))


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
