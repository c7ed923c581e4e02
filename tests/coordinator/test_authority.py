"""The mesh's own certificates: whose they are, which names they have, and who takes them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from admission.protocol import MAX_AUTHORITIES
from coordinator.authority import MeshCa, Window, authorities, issue, issue_public, mesh_ca, root, windows
from coordinator.keys import ClusterKeys, Inherited, derive
from runtime.secret import Secret
from tests.coordinator.world import make_manifest

SEED = Secret("ab" * 32)
KEYS = derive(SEED, "tests")
NOW = 1_800_000_000.0
OLD, NEW = "aa" * 32, "bb" * 32
HOURS = 8


def spki(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """The public half, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


KEY = spki(ec.generate_private_key(ec.SECP256R1()))


def leaf(ca: MeshCa | None = None, key: bytes = KEY) -> list[x509.Certificate]:
    """The chain of a CVM of group api."""
    found = issue(ca or mesh_ca(KEYS, 2, NEW), key, group="api", peer_id="api-0", hours=HOURS, now=NOW)
    return x509.load_pem_x509_certificates(found.encode())


def trusted(chain: list[x509.Certificate], *anchors: x509.Certificate, at: float = NOW) -> bool:
    """Whether a client and a server that trust `anchors` take the chain."""
    verifier = PolicyBuilder().store(Store(anchors)).time(dt.datetime.fromtimestamp(at, dt.UTC))
    try:
        verifier.build_client_verifier().verify(chain[0], chain[1:])
        verifier.build_server_verifier(x509.DNSName("api-0.peer.mesh")).verify(chain[0], chain[1:])
    except VerificationError:
        return False
    return True


def everything(keys: ClusterKeys) -> list[bytes]:
    """All certificates of two generations."""
    found = [root(keys)]
    for ca in (mesh_ca(keys, 1, OLD), mesh_ca(keys, 2, NEW)):
        found += [ca.certificate, ca.cross]
    return [each.public_bytes(Encoding.DER) for each in found]


def test_all_coordinators_have_the_same_authorities() -> None:
    """The same bytes from the same seed; nothing in common with another seed, cluster or manifest."""
    found = everything(KEYS)
    assert found == everything(derive(SEED, "tests"))
    assert len(set(found)) == len(found)
    for other in (derive(Secret("cd" * 32), "tests"), derive(SEED, "other")):
        assert not set(found) & set(everything(other))
    assert spki(mesh_ca(KEYS, 1, OLD).key) != spki(mesh_ca(KEYS, 1, NEW).key)


def test_a_mesh_ca_says_of_which_manifest_it_is() -> None:
    """By URI, in both of its certificates, which share name and key."""
    ca = mesh_ca(KEYS, 2, NEW)
    for certificate in (ca.certificate, ca.cross):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.UniformResourceIdentifier(f"spiffe://tests/manifest/2/{NEW}")]
        limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (limits.ca, limits.path_length) == (True, 0)
    assert ca.certificate.subject == ca.cross.subject == ca.certificate.issuer
    assert ca.certificate.public_key() == ca.cross.public_key()
    assert ca.cross.issuer == root(KEYS).subject


def test_a_leaf_has_its_two_names_and_nothing_else() -> None:
    """Whatever was asked for: of the client's there is nothing in it but the key."""
    certificate = leaf()[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://tests/api"), x509.DNSName("api-0.peer.mesh")]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == KEY
    assert certificate.not_valid_before_utc.timestamp() == NOW - 3600
    assert certificate.not_valid_after_utc.timestamp() == NOW + HOURS * 3600


def test_who_pins_the_root_or_the_generation_takes_a_leaf() -> None:
    """And who pins another generation, another cluster or its own time does not."""
    chain, ca = leaf(), mesh_ca(KEYS, 2, NEW)
    assert trusted(chain, root(KEYS))
    assert trusted(chain, ca.certificate)
    assert trusted(chain, mesh_ca(KEYS, 1, OLD).certificate, ca.certificate)
    assert not trusted(chain, mesh_ca(KEYS, 1, OLD).certificate)
    assert not trusted(chain, mesh_ca(KEYS, 3, "cc" * 32).certificate)
    assert not trusted(chain, root(derive(SEED, "other")))
    assert not trusted(chain, ca.certificate, at=NOW + HOURS * 3600 + 1)


@pytest.mark.parametrize(("anchor", "good"), [("root", True), ("new", True), ("old", False)])
def test_openssl_agrees(tmp_path: Path, anchor: str, good: bool) -> None:
    """curl and Envoy's library build chains likewise: the mesh CA that the leaf brings leads to the root."""
    ca = mesh_ca(KEYS, 2, NEW)
    anchors = {"root": root(KEYS), "new": ca.certificate, "old": mesh_ca(KEYS, 1, OLD).certificate}
    names = ("anchor.pem", "chain.pem", "leaf.pem")
    chain = leaf()
    files = [[anchors[anchor]], chain[1:], chain[:1]]
    for name, found in zip(names, files, strict=True):
        (tmp_path / name).write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in found))
    paths = [str(tmp_path / name) for name in names]
    # -partial_chain is what curl sets: whatever is pinned is an end.
    argv = ["openssl", "verify", "-partial_chain", "-attime", str(int(NOW)), "-purpose", "sslserver"]
    run = subprocess.run(
        [*argv, "-CAfile", paths[0], "-untrusted", paths[1], paths[2]], capture_output=True, text=True, check=False
    )
    assert (run.returncode == 0) is good, run.stdout + run.stderr


PUBLIC = ("web.example.com", "203.0.113.34", "2001:db8::1", "https://web.example.com")


def public(ca: MeshCa) -> list[x509.Certificate]:
    """The chain of a public listener."""
    return x509.load_pem_x509_certificates(issue_public(ca, KEY, sans=PUBLIC, hours=HOURS, now=NOW).encode())


def test_a_public_certificate_has_the_public_names_and_is_for_servers_alone() -> None:
    """DNS names, addresses and URIs, each as what it is; no subject, so nobody's name in the mesh; and no client."""
    found = public(mesh_ca(KEYS, 2, NEW))[0]
    extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [(type(name), str(name.value)) for name in extension.value] == [
        (x509.DNSName, PUBLIC[0]),
        (x509.IPAddress, PUBLIC[1]),
        (x509.IPAddress, PUBLIC[2]),
        (x509.UniformResourceIdentifier, PUBLIC[3]),
    ]
    assert (extension.critical, list(found.subject)) == (True, [])
    usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert found.serial_number != leaf(mesh_ca(KEYS, 2, NEW))[0].serial_number


@pytest.mark.parametrize(("anchor", "good"), [("root", True), ("same", True), ("other", False)])
def test_who_pins_the_root_or_the_generation_takes_a_public_certificate(anchor: str, good: bool) -> None:
    """For its names and no others, and nobody as a client's."""
    new, old = mesh_ca(KEYS, 2, NEW), mesh_ca(KEYS, 1, OLD)
    chain = public(new)
    store = Store([{"root": root(KEYS), "same": new.certificate, "other": old.certificate}[anchor]])
    verifier = PolicyBuilder().store(store).time(dt.datetime.fromtimestamp(NOW, dt.UTC))
    for name in (x509.DNSName(PUBLIC[0]), x509.IPAddress(ip_address(PUBLIC[1])), x509.DNSName("other.example.com")):
        taken = good and name.value != "other.example.com"
        with contextlib.nullcontext() if taken else pytest.raises(VerificationError):
            verifier.build_server_verifier(name).verify(chain[0], chain[1:])
    with pytest.raises(VerificationError):
        verifier.build_client_verifier().verify(chain[0], chain[1:])


def _compressed() -> bytes:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    body = algorithm + b"\x03" + bytes([len(point) + 1]) + b"\0" + point
    return b"\x30" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"garbage",
        spki(ed25519.Ed25519PrivateKey.generate()),
        spki(ec.generate_private_key(ec.SECP384R1())),
        _compressed(),
        KEY + b"\0",
    ],
    ids=["empty", "garbage", "ed25519", "p384", "compressed", "longer"],
)
def test_other_keys_get_no_leaf(key: bytes) -> None:
    """P-256 in the one form that a quote covers, and nothing else."""
    with pytest.raises(ValueError, match=r".+"):
        leaf(key=key)


def test_the_predecessor_is_trusted_for_the_window_and_no_longer() -> None:
    """From the moment of the adoption; a first manifest has no predecessor."""
    first = make_manifest()
    second = dataclasses.replace(first, epoch=2, previous=OLD, overlap_seconds=120)
    both = mesh_ca(KEYS, 2, NEW).pem + mesh_ca(KEYS, 1, OLD).pem
    assert authorities(KEYS, 2, NEW, windows(second, NOW), NOW + 119) == both
    assert authorities(KEYS, 2, NEW, windows(second, NOW), NOW + 120) == mesh_ca(KEYS, 2, NEW).pem
    assert windows(first, NOW) == ()


def test_every_authority_whose_window_is_open_is_named() -> None:
    """After two manifests close to each other, CVMs that run still show a certificate of the first; each window ends by
    itself, and of too many the oldest are left out.
    """
    first = make_manifest()
    opened: tuple[Window, ...] = ()
    for n in range(1, 40):
        manifest = dataclasses.replace(first, epoch=n + 1, previous=f"{n:064x}", overlap_seconds=120)
        opened = windows(manifest, NOW + 10 * n, opened)
        assert [each.epoch for each in opened] == list(range(n, max(0, n - 12), -1)), n
        assert [each.until for each in opened] == [NOW + 10 * each.epoch + 120 for each in opened]
    named = authorities(KEYS, 40, f"{40:064x}", opened, NOW + 390 + 75)
    assert named == "".join(mesh_ca(KEYS, n, f"{n:064x}").pem for n in (40, 39, 38, 37, 36, 35))
    many = tuple(Window(epoch=n, digest=f"{n:064x}", until=NOW) for n in range(39, 0, -1))
    assert authorities(KEYS, 40, NEW, many, NOW - 1).count("BEGIN") == MAX_AUTHORITIES


def test_nothing_shows() -> None:
    """A dump of an authority holds no key."""
    shown = repr(mesh_ca(KEYS, 2, NEW))
    assert "PrivateKey" not in shown


def test_former_coordinators_certificates_count_while_the_handover_lasts() -> None:
    """As they made them: with the keys here theirs would be others."""
    window = Window(epoch=1, digest="22" * 32, until=1e12)
    former = Inherited(authorities={"22" * 32: "FORMER"}, until=50.0)
    keys = dataclasses.replace(derive(Secret("11" * 32), "tests"), inherited=former)
    own = mesh_ca(keys, 2, "33" * 32).pem
    assert authorities(keys, 2, "33" * 32, (window,), 49.0) == own + "FORMER"
    assert authorities(keys, 2, "33" * 32, (window,), 50.0) == own
