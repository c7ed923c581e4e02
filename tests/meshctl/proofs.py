"""Folders as `./mesh verify` writes them, of a mesh whose `api` is public; and its public servers."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from coordinator.authority import issue_public, mesh_ca
from evidence.bundle import decode
from meshctl import verify_files
from meshctl.connect_proof import Anchor
from tests.coordinator.world import OWNER, TEE, make_manifest
from tests.evidence.bundles import KEYS, NONCE, Coordinator, check
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.manifest import Manifest, RouteEntry
from topology.public import Public

APP_ID = make_manifest().groups["api"].app_id
GATEWAY = f"{APP_ID}-443s.gw.example.com"
ROUTES = tuple(
    RouteEntry(name=name, vip=f"127.10.0.{n}", port=9090, group="api", backend=backend, service="api", role=None)
    for n, (name, backend) in enumerate((("api", "api"), ("private", "private")), 60)
)


ANCHORS = (Anchor(development_root=TEE.root_der),)
"""Of their simulated TEE."""


def public_manifest(*sans: str, wildcard: bool = False) -> Manifest:
    """The first manifest of a mesh with a public route `api` and another, `private`."""
    base = make_manifest()
    api = base.groups["api"]
    private = api.backends["api"]
    public = Public(port=443, sans=sans, wildcard=wildcard)
    backends = {
        "api": replace(private, port=9091, sidecar_port=21001, ingress="tls", public=public),
        "private": private,
    }
    return replace(base, groups={**base.groups, "api": replace(api, backends=backends)}, routes=ROUTES)


def chain(length: int, *sans: str) -> tuple[Signed, ...]:
    """That manifest and those that follow."""
    found = [opened(public_manifest(*sans), OWNER)]
    while len(found) < length:
        found.append(opened(after(found[-1], leaf_hours=1 + len(found)), OWNER))
    return tuple(found)


def write(folder: Path, history: tuple[Signed, ...]) -> None:
    """`folder`, as `./mesh verify` writes it when the last of `history` is in force."""
    coordinator = Coordinator(chain=history, now=time.time())
    data = coordinator.answer(NONCE)[0]
    verify_files.write(folder, check(decode(data), coordinator.trusted, now=coordinator.now), data)


def server(folder: Path, head: Signed, *names: str) -> ssl.SSLContext:
    """What a public listener with `names` shows under the manifest `head`; its files are in `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ca = mesh_ca(KEYS, head.manifest.epoch, head.digest)
    (folder / "chain.pem").write_text(issue_public(ca, spki, sans=names, hours=1, now=time.time()))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context
