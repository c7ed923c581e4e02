"""The mesh's certificate authorities and the certificates that they give. Pure.

The *root CA* is the cluster's for as long as its coordinators have their seed. Each manifest has a *mesh CA* of its
own, whose key follows from the seed and the manifest's digest: whoever trusts it trusts what that manifest admits and
nothing that an older one did. It exists twice, with one key and one name: self-signed, for who pins a generation, and
certified by the root, for who pins the root. A *leaf* is a CVM's certificate, for a key that its quote covers.

There are no name constraints: every certificate is made here, from the slot that the evidence proved, so no name that a
client asks for ever gets in; and verifiers differ in what they take of constraints on URIs (the `cryptography` package
refuses a chain that has some).
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
from dataclasses import dataclass, field
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from admission.protocol import MAX_AUTHORITIES
from coordinator.keys import ClusterKeys, ca_builder, derived_key
from topology.manifest import Manifest

BACKDATED = dt.timedelta(hours=1)
"""A leaf is good from so long before it is made: clocks of two CVMs differ, by `admission.clocks.MAX_SKEW` at
most."""
GENERATIONS = MAX_AUTHORITIES
"""Mesh CAs that are kept: making one costs 1 ms, and so many are asked for at a time, one or two as a rule."""


_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=False,
    crl_sign=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)
"""Of a leaf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshCa:
    """The CA of one manifest."""

    cluster: str
    digest: str
    """The manifest's, hex."""
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    """Self-signed."""
    cross: x509.Certificate
    """The same name and key, certified by the root."""

    pem: str
    """The self-signed one: for who trusts this manifest and no other."""
    cross_pem: str
    identifier: x509.AuthorityKeyIdentifier
    """Of its key, for what it certifies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A manifest that another one took the place of, and how long its CA is trusted still."""

    epoch: int
    digest: str
    until: float
    """Unix seconds."""


@functools.lru_cache(maxsize=2)
def root(keys: ClusterKeys) -> x509.Certificate:
    """The cluster's root CA: the same bytes at every coordinator and start."""
    key = derived_key(keys, "mesh-root")
    name = _name(keys.cluster, "mesh root", "mesh root")
    return ca_builder(name, name, key.public_key(), key.public_key(), path_length=1).sign(
        key, hashes.SHA256(), ecdsa_deterministic=True
    )


@functools.lru_cache(maxsize=GENERATIONS)
def mesh_ca(keys: ClusterKeys, epoch: int, digest: str) -> MeshCa:
    """The CA of the manifest with that epoch and digest (hex): the same bytes at every coordinator and start."""
    key, root_key = derived_key(keys, f"mesh-ca/{digest}"), derived_key(keys, "mesh-root")
    public = key.public_key()
    name = _name(keys.cluster, f"mesh CA of epoch {epoch}", digest)
    uri = x509.UniformResourceIdentifier(f"spiffe://{keys.cluster}/manifest/{epoch}/{digest}")
    alternative = x509.SubjectAlternativeName([uri])
    own = ca_builder(name, name, public, public, path_length=0).add_extension(alternative, critical=False)
    cross = ca_builder(name, root(keys).subject, public, root_key.public_key(), path_length=0)
    certificate = own.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    crossed = cross.add_extension(alternative, critical=False).sign(root_key, hashes.SHA256(), ecdsa_deterministic=True)
    return MeshCa(
        cluster=keys.cluster,
        digest=digest,
        key=key,
        certificate=certificate,
        cross=crossed,
        pem=_pem(certificate),
        cross_pem=_pem(crossed),
        identifier=x509.AuthorityKeyIdentifier.from_issuer_public_key(public),
    )


def authorities(keys: ClusterKeys, epoch: int, digest: str, windows: tuple[Window, ...], now: float) -> str:
    """What a CVM trusts under the manifest with that epoch and digest: its mesh CA, and those of `windows` that are
    open at `now` (Unix seconds), and former coordinators'. PEM, its own first.
    """
    former = keys.inherited.authorities
    found = [mesh_ca(keys, epoch, digest).pem]
    found += [mesh_ca(keys, it.epoch, it.digest).pem for it in windows if now < it.until and it.digest not in former]
    # Theirs were made with keys that are not here.
    found += former.values() if now < keys.inherited.until else ()
    return "".join(found[:MAX_AUTHORITIES])


def windows(manifest: Manifest, adopted_at: float, others: tuple[Window, ...] = ()) -> tuple[Window, ...]:
    """The windows from `adopted_at` (Unix seconds) on, when the coordinators adopted `manifest`: that of the manifest
    before it, for `overlap_seconds`, and of `others` those that are open. The last one first.
    """
    found = {each.digest: each for each in others if each.until > adopted_at}
    if manifest.previous is not None:
        until = adopted_at + manifest.overlap_seconds
        found[manifest.previous] = Window(epoch=manifest.epoch - 1, digest=manifest.previous, until=until)
    return tuple(sorted(found.values(), key=lambda each: each.epoch, reverse=True)[:MAX_AUTHORITIES])


def issue(ca: MeshCa, spki: bytes, *, group: str, peer_id: str, hours: int, now: float) -> str:
    """The leaf of the CVM `peer_id` of `group` and its mesh CA as the root certified it, PEM: good for `hours` from
    `now` (Unix seconds). `spki` is its public key, SubjectPublicKeyInfo in DER; ValueError unless that is on P-256.

    Its names are the group's SPIFFE ID and the peer's name in the mesh, whatever the client asked for.
    """
    names = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(f"spiffe://{ca.cluster}/{group}"),
            x509.DNSName(f"{peer_id}.peer.mesh"),
        ]
    )
    builder = _leaf(ca, spki, peer_id, hours, now).subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer_id)])
    )
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _signed(builder.add_extension(names, critical=False), usages, ca)


def issue_public(ca: MeshCa, spki: bytes, *, sans: tuple[str, ...], hours: int, now: float) -> str:
    """The certificate of a public listener: as `issue`, for the names `sans` as a manifest has them, and for servers
    alone. It says nobody's name in the mesh, so nobody in the mesh takes it for a CVM's.
    """
    names = x509.SubjectAlternativeName([_general_name(san) for san in sans])
    # Without a subject the names are critical (RFC 5280, 4.2.1.6).
    builder = _leaf(ca, spki, "\0".join(sans), hours, now).subject_name(x509.Name([]))
    return _signed(builder.add_extension(names, critical=True), [ExtendedKeyUsageOID.SERVER_AUTH], ca)


def _leaf(ca: MeshCa, spki: bytes, who: str, hours: int, now: float) -> x509.CertificateBuilder:
    """What every leaf has. `who` is whatever tells it from other leaves for the same key."""
    public = load_p256(spki)
    start = dt.datetime.fromtimestamp(int(now), dt.UTC)
    # Of what it is made from: coordinators need no common counter, and the same leaf has the same number.
    serial = hashlib.sha256(b"\0".join((ca.digest.encode(), who.encode(), str(int(now)).encode(), spki))).digest()
    return (
        x509.CertificateBuilder()
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(_serial(serial))
        .not_valid_before(start - BACKDATED)
        .not_valid_after(start + dt.timedelta(hours=hours))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(ca.identifier, critical=False)
    )


def _signed(builder: x509.CertificateBuilder, usages: list[x509.ObjectIdentifier], ca: MeshCa) -> str:
    leaf = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).sign(
        ca.key, hashes.SHA256(), ecdsa_deterministic=True
    )
    return _pem(leaf) + ca.cross_pem


def _general_name(san: str) -> x509.GeneralName:
    """A public name as a certificate has it (`topology.public`)."""
    if "://" in san:
        return x509.UniformResourceIdentifier(san)
    try:
        return x509.IPAddress(ip_address(san))
    except ValueError:
        return x509.DNSName(san)


def load_p256(spki: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key in `spki` (SubjectPublicKeyInfo, DER). ValueError when it is none, or in another form than the one
    that DER gives it.
    """
    try:
        public = load_der_public_key(spki)
    except Exception as error:  # noqa: BLE001 -- the library has an error of its own for each oddity of a key
        raise ValueError(f"is not a public key: {error!r:.100}") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("is not a P-256 public key")
    if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise ValueError("is not in the one form that DER gives a P-256 key (uncompressed, named curve)")
    return public


def _name(cluster: str, unit: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _serial(digest: bytes) -> int:
    """Positive and of 16 bytes at most (RFC 5280 allows 20)."""
    return int.from_bytes(digest[:16], "big") >> 1 or 1


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
