"""A throw-away certificate authority for tests: roots and leaves with SPIFFE URI SANs."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from runtime.secret import Secret
from xds.spec import Leaf

_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])


class Authority:
    """A root that issues leaves."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_NAME, self._key.public_key()).add_extension(
            x509.BasicConstraints(True, None), critical=True
        )
        self._certificate = builder.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> str:
        """The root certificate."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    def leaf(self, name: str, uri: str) -> Leaf:
        """A fresh leaf whose only SAN is `uri`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(x509.Name([]), key.public_key())
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        certificate = builder.add_extension(san, critical=True).sign(self._key, hashes.SHA256())
        return Leaf(
            name=name,
            uri=uri,
            chain_pem=certificate.public_bytes(Encoding.PEM).decode(),
            key_pem=Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()),
        )

    def server(self, folder: Path, *names: str, hours: int = 1) -> ssl.SSLContext:
        """What a TLS server outside of the mesh shows: a certificate for `names`, host names and IP addresses, that is
        good for `hours` from now on. Its files are in `folder`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(x509.Name([]), key.public_key(), hours)
        certificate = builder.add_extension(x509.SubjectAlternativeName([*map(_san, names)]), critical=True)
        pem = certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file = folder / "server.pem"
        file.write_bytes(pem)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: x509.Name, key: ec.EllipticCurvePublicKey, hours: int = 1) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_NAME)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now + timedelta(hours=hours))
    )
