"""`./mesh keygen`: the owner key. The private half is a file of the owner's, the public one goes into compose files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from topology.cluster import Cluster


def default_path(cluster_name: str) -> Path:
    """Where a cluster's owner key is kept unless told otherwise: in the owner's configuration, not in any checkout."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "cvm-mesh" / f"{cluster_name}.owner.pem"


def load(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`. UserError when it is none, or others may read it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if path.stat().st_mode & 0o077:
            raise UserError(f"the owner key {path} may be read by others", f"chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UserError(f"the owner key {path} cannot be read: {error.strerror}", "./mesh keygen CLUSTER") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no private key: {error}", "give the file that ./mesh keygen made") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} holds a {type(key).__name__}, expected an Ed25519 key", "./mesh keygen CLUSTER")
    return key


def create(path: Path) -> Ed25519PrivateKey:
    """A new private key, written to `path` (0600), which must not exist."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def public_half(key: Ed25519PrivateKey) -> str:
    """The public key as compose files have it: base64url without padding."""
    import base64

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def compose_files(cluster: Cluster) -> dict[str, Path]:
    """The compose file of each app, `coordinator` first."""
    from topology.model import COORDINATOR

    return {COORDINATOR: cluster.coordinator_compose, **{group.name: group.compose for group in cluster.groups}}


def write_public(cluster: Cluster, public: str) -> list[Path]:
    """Puts the public key into the cluster's compose files; those that changed. UserError names one without place."""
    from topology.render import with_owner_key

    changed = []
    for path in dict.fromkeys(compose_files(cluster).values()):
        text = path.read_text(encoding="utf-8")
        try:
            keyed = with_owner_key(text, public)
        except ValueError as error:
            raise UserError(f"{path}: {error}", "mend the compose file; clusters/starter shows how it looks") from error
        if keyed != text:
            path.write_text(keyed, encoding="utf-8")
            changed.append(path)
    return changed


@click.command()
@click.argument("cluster")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="File of the private key. Default: ~/.config/cvm-mesh/<cluster>.owner.pem",
)
def keygen(cluster: str, key: Path | None) -> None:
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
    private = create(path) if made else load(path)
    changed = write_public(found, public_half(private))
    click.echo(
        f"made the owner key {path}; keep a copy of it in a safe place" if made else f"found the owner key {path}"
    )
    click.echo(f"public half: {public_half(private)}")
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
