"""Everything secret that the coordinators of one cluster share, derived from the app's GetKey: no exchange, no
storage, no environment.

GetKey gives the same bytes to every instance of the coordinators' app, so all coordinators derive
equal tokens, keys and certificate authorities, also after all of them were lost at once. Pure: the seed is an argument.
"""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.secret import Secret

GETKEY_PATH = "cvm-mesh/coordinator/v1"
"""Path of GetKey that everything here is derived from."""
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Fixed, so that every coordinator makes the same certificate bytes.
_CA_NOT_BEFORE = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
_CA_NOT_AFTER = dt.datetime(2049, 12, 31, tzinfo=dt.UTC)
AGENT_CERTIFICATE_DAYS = 365
"""Life of an agent's RPC certificate, which is renewed at half of that (`agent_due`). Its key dies with the CVM's boot,
and without a token it opens nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """What comes from coordinators of another app, whose keys nobody has here (`coordinator.heir`)."""

    secrets: Mapping[tuple[str, str, int], Secret] = field(default_factory=dict)
    """Texts of workload secrets by owner, name and rotation: the next rotation is derived here."""
    authorities: Mapping[str, str] = field(default_factory=dict)
    """Mesh CAs by their manifest's digest, PEM, the newest first."""
    until: float = 0.0
    """Unix seconds until which those are trusted."""


NOTHING = Inherited()
"""Of a mesh that began with these coordinators."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterKeys:
    """The derived secrets of one cluster. Equal to itself only, so that what is derived from them can be remembered."""

    management_token: Secret
    """Consul's initial management token, a UUID."""
    gossip_root: Secret
    """What the gossip keys are derived from; hex."""
    broker_key: bytes = field(repr=False)
    """HMAC key of challenges and leases."""
    workload_root: Secret
    """What workload secrets are derived from; hex."""
    link_root: Secret
    """What the coordinators' WireGuard keys are derived from; hex."""
    rpc_ca_key: ec.EllipticCurvePrivateKey
    rpc_ca: x509.Certificate
    cluster: str
    authority_root: Secret
    """What the keys of the mesh's certificate authorities (`coordinator.authority`) are derived from; hex."""
    inheritance_key: bytes = field(repr=False)
    """What `inherited` is sealed with in the records."""
    inherited: Inherited = field(default=NOTHING, repr=False)

    @property
    def rpc_ca_pem(self) -> str:
        """The CA of the agents' RPC TLS."""
        return self.rpc_ca.public_bytes(serialization.Encoding.PEM).decode()


def derive(seed: Secret, cluster: str) -> ClusterKeys:
    """All secrets of `cluster` out of the GetKey answer `seed` (64 hex digits)."""
    root = bytes.fromhex(seed.reveal())
    rpc_key = _p256(root, cluster, "rpc-ca")
    return ClusterKeys(
        management_token=Secret(str(uuid.UUID(bytes=_bytes(root, cluster, "management-token", 16), version=4))),
        gossip_root=Secret(_bytes(root, cluster, "gossip", 32).hex()),
        broker_key=_bytes(root, cluster, "broker", 32),
        workload_root=Secret(_bytes(root, cluster, "workload-secrets", 32).hex()),
        link_root=Secret(_bytes(root, cluster, "wireguard", 32).hex()),
        rpc_ca_key=rpc_key,
        rpc_ca=_authority(f"{cluster} agents", rpc_key),
        cluster=cluster,
        authority_root=Secret(_bytes(root, cluster, "mesh-authorities", 32).hex()),
        inheritance_key=_bytes(root, cluster, "inheritance", 32),
    )


def derived_key(keys: ClusterKeys, name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of the certificate authority `name`."""
    return _p256(bytes.fromhex(keys.authority_root.reveal()), keys.cluster, name)


def wireguard_key(keys: ClusterKeys, peer_id: str) -> Secret:
    """The WireGuard private key (32 bytes, base64) of the coordinator `peer_id`.

    The same at each boot, so that running CVMs take up the tunnel to a coordinator that comes back without being told
    a new key: they could only be told once its Consul leads, and that has to wait until they are there
    (`coordinator.formation`).
    """
    info = f"cvm-mesh wireguard {peer_id}".encode()
    root = bytes.fromhex(keys.link_root.reveal())
    return Secret(
        base64.b64encode(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(root)).decode()
    )


def gossip_key(keys: ClusterKeys, rotation: int) -> Secret:
    """The key that Consul's gossip is sealed with, base64 of 32 bytes: for the manifest's `rotate.gossip` another one
    each time, and none follows from another.
    """
    info = f"cvm-mesh gossip {rotation}".encode()
    root = bytes.fromhex(keys.gossip_root.reveal())
    return Secret(
        base64.b64encode(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(root)).decode()
    )


def workload_secret(keys: ClusterKeys, owner: str, name: str, rotation: int) -> Secret:
    """The secret `name` that group `owner` declares: 32 bytes as 64 hex digits, text that any program takes.

    It follows from the coordinators' GetKey and the manifest's `rotation` of it: the same at every coordinator and
    start. Where the mesh was taken over with that text, it is the former coordinators'.
    """
    if (text := keys.inherited.secrets.get((owner, name, rotation))) is not None:
        return text
    info = f"cvm-mesh workload secret {owner}/{name}/{rotation}".encode()
    root = bytes.fromhex(keys.workload_root.reveal())
    return Secret(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(root).hex())


def agent_certificate(
    keys: ClusterKeys, public_key_der: bytes, *, node: str, datacenter: str, server: bool, now: float
) -> str:
    """A certificate (PEM) for an agent's RPC TLS key, given as SubjectPublicKeyInfo DER. ValueError when that is no
    such key.
    """
    public_key = serialization.load_der_public_key(public_key_der)
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise ValueError("the agent's TLS key must be an elliptic-curve key")
    start = dt.datetime.fromtimestamp(now, dt.UTC)
    names = [f"{node}.node.{datacenter}.consul"]
    if server:
        # What agents ask of a server (verify_server_hostname).
        names.insert(0, f"server.{datacenter}.consul")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(node))
        .issuer_name(keys.rpc_ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # Clocks of two CVMs may differ.
        .not_valid_before(start - dt.timedelta(hours=1))
        .not_valid_after(start + dt.timedelta(days=AGENT_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(keys.rpc_ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def agent_due(expires_at: int, now: float) -> bool:
    """Whether an agent whose RPC certificate ends at `expires_at` is to have a new one at `now` (Unix seconds): from
    half of its life on. Half a year is time enough for any failure to be seen.
    """
    return expires_at < now + AGENT_CERTIFICATE_DAYS * 86400 / 2


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """SEC1 PEM, the form that Consul reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


def _bytes(root: bytes, cluster: str, name: str, size: int) -> bytes:
    info = f"cvm-mesh {cluster} {name}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=None, info=info).derive(root)


def _p256(root: bytes, cluster: str, name: str) -> ec.EllipticCurvePrivateKey:
    # 16 bytes more than the order has: the bias of the reduction is below 2^-128.
    number = int.from_bytes(_bytes(root, cluster, name, 48), "big")
    return ec.derive_private_key(number % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _authority(name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    public = key.public_key()
    builder = ca_builder(_name(name), _name(name), public, public, path_length=None)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def ca_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    path_length: int | None,
) -> x509.CertificateBuilder:
    """The certificate of a certificate authority, ready to be signed: the same whenever and wherever it is made.
    `path_length` is how many CAs may stand below it; None: any number.
    """
    own = x509.SubjectKeyIdentifier.from_public_key(public)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(int.from_bytes(own.digest[:16], "big") | 1)
        .not_valid_before(_CA_NOT_BEFORE)
        .not_valid_after(_CA_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(own, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )
