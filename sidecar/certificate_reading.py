"""What a coordinator gives this CVM as certificates, read into values. Pure.

`sidecar.certificate` says what becomes of them. Whoever answers is a coordinator that was verified; what it gives is
checked all the same, for Envoy takes it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from admission.protocol import MAX_AUTHORITIES

if TYPE_CHECKING:
    from cryptography.x509 import Certificate as Parsed


class CertificateError(ValueError):
    """What a coordinator gave is no certificate for this CVM. The message says what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a leaf has to be for this CVM."""

    cluster: str
    group: str
    peer_id: str
    leaf_key: bytes
    """SubjectPublicKeyInfo, DER."""
    public_key: bytes = b""
    """Likewise of what its public listeners show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A mesh CA."""

    digest: str
    """Of its manifest, hex."""
    pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate of this CVM."""

    digest: str
    """Of the manifest whose mesh CA gave it, hex."""
    pem: str
    """The leaf alone. Peers trust its mesh CA itself; and TLS 1.3 puts what a client shows into each of its session
    tickets, so the CA's certificate would cost 650 bytes in each ticket, twice a connection, and in each resumption."""
    expires_at: int
    """Unix seconds."""
    begins_at: int = 0
    """Likewise."""
    public: Mapping[str, str] = field(default_factory=dict)
    """By backend: the certificate of its public listener, PEM with its mesh CA as the root certified it, for who pins
    the root. It came with the leaf and ends with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a coordinator's answer says, checked."""

    authorities: tuple[Authority, ...]
    """That of the manifest which it enforces, then those of the ones before whose window is open, the last first."""
    leaf: Leaf | None = None
    """None: what this CVM holds is good."""
    all_trust: bool = False
    """Every CVM that lives trusts the first of `authorities`."""


def parse(
    *,
    digest: str,
    leaf_pem: str | None,
    authorities_pem: str,
    public_pems: Mapping[str, str] = {},
    all_trust: bool = False,
    expected: Expected,
    now: float,
) -> Given:
    """A coordinator's words as values. CertificateError unless they are MAX_AUTHORITIES at most, the first of which is
    the mesh CA of manifest `digest` and certified the leaf, and the leaf is for our key, says our names and no more,
    and is good at `now` (Unix seconds); and unless what is for public listeners is likewise, for that key, and nobody's
    name in the mesh.
    """
    try:
        found = _parse(digest, leaf_pem, authorities_pem, all_trust, expected, now)
        if found.leaf is None or not public_pems:
            return found
        authority = _load(authorities_pem, "authorities")[0]
        public = {name: _public(name, pem, authority, expected, now) for name, pem in public_pems.items()}
        return replace(found, leaf=replace(found.leaf, public=public))
    except CertificateError:
        raise
    except Exception as error:  # the library has an error of its own for each oddity of a certificate
        raise CertificateError(f"a certificate cannot be read: {error!r:.200}") from error


def agent_end(pem: str, key: bytes, now: float) -> int:
    """Unix seconds at which the RPC certificate in `pem` ends. CertificateError unless that is one certificate, for
    `key` (SubjectPublicKeyInfo, DER), and good at `now` (Unix seconds). Who issued it is for Consul to judge.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    what = "certificate of the Consul agent"
    try:
        found = _load(pem, what)
        if len(found) != 1:
            raise CertificateError(f"there are {len(found)} certificates for the Consul agent, expected one")
        if found[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != key:
            raise CertificateError(f"the {what} is for another key than the one that was attested")
        return int(_end(found[0], now, what))
    except CertificateError:
        raise
    except Exception as error:  # as in `parse`
        raise CertificateError(f"the {what} cannot be read: {error!r:.200}") from error


def _parse(
    digest: str, leaf_pem: str | None, authorities_pem: str, all_trust: bool, expected: Expected, now: float
) -> Given:
    found = _load(authorities_pem, "authorities")
    if not 1 <= len(found) <= MAX_AUTHORITIES:
        raise CertificateError(f"there are {len(found)} authorities, expected 1 to {MAX_AUTHORITIES}")
    authorities = tuple(_authority(each, expected.cluster) for each in found)
    if authorities[0].digest != digest:
        raise CertificateError(
            f"the first authority is of manifest {authorities[0].digest:.80}, expected {digest!r:.80}"
        )
    return Given(
        authorities=authorities,
        leaf=None if leaf_pem is None else _leaf(leaf_pem, found[0], digest, expected, now),
        all_trust=all_trust,
    )


def _authority(certificate: Parsed, cluster: str) -> Authority:
    from cryptography import x509

    uris = _names(certificate, x509.UniformResourceIdentifier)
    found = re.fullmatch(rf"spiffe://{re.escape(cluster)}/manifest/\d+/([0-9a-f]{{64}})", "".join(uris))
    if found is None:
        raise CertificateError(f"an authority has the URIs {uris!r:.200}, expected a manifest of cluster {cluster}")
    return Authority(digest=found[1], pem=_pem(certificate))


def _leaf(pem: str, authority: Parsed, digest: str, expected: Expected, now: float) -> Leaf:
    from cryptography import x509

    leaf = _issued(pem, authority, expected.leaf_key, "leaf")
    uris, names = _names(leaf, x509.UniformResourceIdentifier), _names(leaf, x509.DNSName)
    wanted = ([f"spiffe://{expected.cluster}/{expected.group}"], [f"{expected.peer_id}.peer.mesh"])
    if (uris, names) != wanted:
        raise CertificateError(f"the leaf names {(uris, names)!r:.300}, expected {wanted!r:.300}")
    return Leaf(
        digest=digest,
        pem=_pem(leaf),
        expires_at=int(_end(leaf, now, "leaf")),
        begins_at=int(leaf.not_valid_before_utc.timestamp()),
    )


def _public(name: str, pem: str, authority: Parsed, expected: Expected, now: float) -> str:
    """The certificate of the public listener of backend `name`, with its chain."""
    from cryptography import x509

    what = f"certificate of the public listener {name:.80}"
    found = _issued(pem, authority, expected.public_key, what)
    uris = _names(found, x509.UniformResourceIdentifier)
    if any(uri.lower().startswith("spiffe:") for uri in uris):
        raise CertificateError(f"the {what} names {uris!r:.300}, which is somebody in the mesh")
    _end(found, now, what)
    return pem


def _issued(pem: str, authority: Parsed, key: bytes, what: str) -> Parsed:
    """The first of a chain of two, which is for `key`, and which `authority` issued."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    chain = _load(pem, "chain")
    if len(chain) != 2:
        raise CertificateError(f"the chain has {len(chain)} certificates, expected the {what} and its mesh CA")
    leaf = chain[0]
    try:
        leaf.verify_directly_issued_by(authority)
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise CertificateError(f"the {what} is not of the mesh CA that comes with it: {error!r:.100}") from None
    if spki != key:
        raise CertificateError(f"the {what} is for another key than the one that was attested")
    return leaf


def _end(leaf: Parsed, now: float, what: str) -> float:
    """Unix seconds at which it ends. CertificateError where it is not good now."""
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if not begins <= now < ends:
        raise CertificateError(
            f"the {what} is good from {begins - now:+.0f} s to {ends - now:+.0f} s from now by this CVM's clock; set "
            "the clock of this CVM or of the coordinator"
        )
    return ends


def _load(pem: str, what: str) -> list[Parsed]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise CertificateError(f"the {what} cannot be read, expected PEM certificates") from None


def _pem(certificate: Parsed) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _names(certificate: Parsed, kind: type) -> list[str]:
    """The alternative names of that kind; none where the extension is missing or cannot be read."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return list(found.get_values_for_type(kind))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
