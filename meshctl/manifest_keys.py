"""`./mesh keygen`: the owner key. The private half is a file of the owner's, the public one goes into compose files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl.errors import UserError

if TYPE_CHECKING:
    from topology.cluster import Cluster
    from topology.manifest import Manifest
    from topology.owners import Owners, PrivateKey


def default_path(cluster_name: str) -> Path:
    """Where a cluster's owner key is kept unless told otherwise: in the owner's configuration, not in any checkout."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "cvm-mesh" / f"{cluster_name}.owner.pem"


def load(path: Path) -> PrivateKey:
    """The private key in `path`. UserError when it is none, or others may read it."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from topology.owners import OwnerError, key_of

    try:
        if path.stat().st_mode & 0o077:
            raise UserError(f"the owner key {path} may be read by others", f"chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UserError(f"the owner key {path} cannot be read: {error.strerror}", "./mesh keygen CLUSTER") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no private key: {error}", "give the file that ./mesh keygen made") from error
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise UserError(f"{path} holds a {type(key).__name__}, expected Ed25519 or P-256", "./mesh keygen CLUSTER")
    try:
        key_of(key)
    except OwnerError as error:
        raise UserError(f"the owner key {path} {error}", "./mesh keygen CLUSTER") from error
    return key


def create(path: Path, alg: str = "ed25519") -> PrivateKey:
    """A new private key, written to `path` (0600), which must not exist."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from topology.owners import P256

    key = ec.generate_private_key(ec.SECP256R1()) if alg == P256 else Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def public_half(key: PrivateKey) -> str:
    """The public key as compose files have it."""
    from topology.owners import key_of, name_of

    return name_of(key_of(key))


def signature(key: PrivateKey, manifest: Manifest) -> bytes:
    """The signature of `manifest` by `key`."""
    from topology.envelope import message
    from topology.owners import sign

    return sign(key, message(manifest))


def owners(cluster: Cluster) -> Owners:
    """The owners that all compose files name. UserError when one names none, or others."""
    from topology.owners import text_of
    from topology.render import owners_of

    named = {path: owners_of(path.read_text(encoding="utf-8")) for path in compose_files(cluster).values()}
    first = None
    for path, found in named.items():
        if found is None:
            raise UserError(f"{path} has no MESH_OWNERS that name a public key", f"./mesh keygen {cluster.folder}")
        first = first or found
        if found != first:
            raise UserError(
                f"{path} has other MESH_OWNERS ({text_of(found)}) than {next(iter(named))} ({text_of(first)})",
                "write the same into all compose files",
            )
    assert first is not None
    return first


def compose_files(cluster: Cluster) -> dict[str, Path]:
    """The compose file of each app, `coordinator` first."""
    from topology.model import COORDINATOR

    return {COORDINATOR: cluster.coordinator_compose, **{group.name: group.compose for group in cluster.groups}}


def write_public(cluster: Cluster, key: PrivateKey) -> list[Path]:
    """Puts the public key into the cluster's compose files; those that changed. One that names it among others stays.
    UserError names a file without place, and one that names several owners of which it is none.
    """
    from topology.owners import Owners, key_of, text_of
    from topology.render import owners_of, with_owners

    own = key_of(key)
    texts: dict[Path, str] = {}
    for path in dict.fromkeys(compose_files(cluster).values()):
        text = path.read_text(encoding="utf-8")
        found = owners_of(text)
        if found is not None and own in found.keys:
            continue
        if found is not None and len(found.keys) > 1:
            raise UserError(
                f"{path} names several owners ({text_of(found)}), and this key ({public_half(key)}) is none of them",
                "write the owners that you want into all compose files, or add --no-write",
            )
        try:
            keyed = with_owners(text, Owners(keys=(own,)))
        except ValueError as error:
            raise UserError(f"{path}: {error}", "mend the compose file; clusters/starter shows how it looks") from error
        if keyed != text:
            texts[path] = keyed
    for path, keyed in texts.items():
        path.write_text(keyed, encoding="utf-8")
    return list(texts)


@click.command()
@click.argument("cluster")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="File of the private key. Default: ~/.config/cvm-mesh/<cluster>.owner.pem",
)
@click.option("--alg", type=click.Choice(["ed25519", "p256"]), default="ed25519", help="Of a new key.")
@click.option("--no-write", is_flag=True, help="Leave the compose files: for an owner beside others.")
def keygen(cluster: str, key: Path | None, alg: str, no_write: bool) -> None:
    """Make the owner key of CLUSTER and write its public half into the compose files.

    The private key signs manifests and nothing else; who has it decides what may join. It stays in a file of yours
    (0600): no CVM, no Terraform and no cloud ever gets it. A key that is there already is used again.
    """
    from meshctl.manifest import load_cluster

    found = load_cluster(cluster)
    path = (key or default_path(found.name)).absolute()
    if any((folder / ".git").exists() for folder in path.parents):
        raise UserError(
            f"{path} is inside a git checkout, from where a private key gets published", "--key ~/owner.pem"
        )
    made = not path.exists()
    private = create(path, alg) if made else load(path)
    click.echo(
        f"made the owner key {path}; keep a copy of it in a safe place" if made else f"found the owner key {path}"
    )
    click.echo(f"public half: {public_half(private)}")
    if no_write:
        click.echo('name it in MESH_OWNERS of every compose file: "2 of KEY, KEY, KEY"')
        return
    changed = write_public(found, private)
    for file in changed:
        click.echo(f"written into {file}")
    if not changed:
        click.echo("the compose files have it already")
    elif not made and key is None:
        click.echo(
            f"warning: this key was made before, for a cluster of the same name. If {found.folder.name} is to be "
            f"another one, it needs its own: set cluster_name (it is {found.name!r}) in "
            f"{found.folder.name}/terraform.tfvars, and run this again",
            err=True,
        )
