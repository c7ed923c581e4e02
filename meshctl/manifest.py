"""`./mesh manifest`: from a deployment to the signed manifest. Reads files, asks `manifest_facts`, writes files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshctl import manifest_keys
from meshctl import manifest_sign as signing
from meshctl.errors import UserError

if TYPE_CHECKING:
    from topology.cluster import Cluster
    from topology.manifest import Manifest, OsImage

DRAFT = "manifest.json"


def load_cluster(text: str) -> Cluster:
    """The cluster in the folder that `text` names. UserError with every problem."""
    from meshctl.bring_up import cluster_folder
    from topology.cluster import ClusterError, load

    folder = cluster_folder(text)
    try:
        return load(folder)
    except ClusterError as error:
        count = len(error.problems)
        raise UserError(f"{folder.name} has {count} problem(s):\n{error}", "mend the entries named above") from error


@click.group()
def command() -> None:
    """Render, sign and show the manifest: what may join the mesh, as whom, with which rights."""


_outputs = click.option(
    "--outputs",
    type=click.Path(path_type=Path),
    help="What `terraform output -json deployment` printed. Default: ask Terraform.",
)


@command.command()
@click.argument("cluster")
@_outputs
@click.option(
    "--os-images",
    "images",
    type=click.Path(path_type=Path),
    help="JSON list of the OS images that you approve (docs/deploying.md).",
)
@click.option("--take-reported-images", is_flag=True, help="Approve the OS images that the cloud reports.")
@click.option("--accept-pre-launch", multiple=True, metavar="SHA256", help="A pre-launch script that you have read.")
@click.option(
    "--keep-hashes", is_flag=True, help="Also let revisions in that the signed manifest allows, for an update."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it. Default: manifest.json in the folder.")
def render(
    cluster: str,
    outputs: Path | None,
    images: Path | None,
    take_reported_images: bool,
    accept_pre_launch: tuple[str, ...],
    keep_hashes: bool,
    out: Path | None,
) -> None:
    """Make the manifest of CLUSTER as deployed, for you to read and sign.

    Every app's measured app-compose.json is compared with the files here; what differs is refused, what cannot be
    compared is listed.
    """
    from meshctl import manifest_facts as facts
    from topology import render as renders
    from topology.manifest import encode
    from topology.problems import ClusterError

    if (images is None) == (not take_reported_images):
        raise UserError(
            "say which OS images may run: exactly one of --os-images FILE and --take-reported-images",
            "--os-images FILE (docs/deploying.md has its form)\n--take-reported-images (trusts the cloud's word)",
        )
    found = load_cluster(cluster)
    before = signing.head(found)
    files = {name: path.read_text(encoding="utf-8") for name, path in manifest_keys.compose_files(found).items()}
    try:
        report = facts.read(_deployment(found.folder, outputs))
        reviewed = facts.review(
            found,
            report,
            files,
            images=_images(images) if images else None,
            pre_launch=frozenset(accept_pre_launch),
            earlier=before.manifest if keep_hashes and before else None,
            owners=signing.next_owners(found, before),
            after=before,
        )
        made = renders.manifest(found, reviewed.deployment)
    except ClusterError as error:
        raise UserError(f"the deployment is not what these files say:\n{error}", "mend what is named above") from error
    target = out or found.folder / DRAFT
    target.write_text(json.dumps(json.loads(encode(made)), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    summary(made)
    for note in reviewed.notes:
        click.echo(f"look at: {note}")
    click.echo(f"\nwritten: {target}\nread it, then: ./mesh manifest sign {cluster}")


@command.command()
@click.argument("cluster")
@click.option(
    "--key", type=click.Path(path_type=Path), help="File of an owner's private key. Default: as ./mesh keygen."
)
@click.option(
    "--draft", type=click.Path(path_type=Path), help="The manifest to sign. Default: manifest.json in the folder."
)
@click.option("--prepare", type=click.Path(path_type=Path), help="Write the bytes to sign to this file; sign nothing.")
@click.option("--signature", type=click.Path(path_type=Path), help="Take the signature in this file, made elsewhere.")
def sign(cluster: str, key: Path | None, draft: Path | None, prepare: Path | None, signature: Path | None) -> None:
    """Sign the manifest of CLUSTER as one of its owners; writes manifest.signed, which is no secret.

    Where several owners have to sign, each runs this in turn with a key of their own.
    """
    from meshctl.plan_changes import coordinators_go
    from topology.manifest import ManifestError, decode

    if sum(it is not None for it in (key, prepare, signature)) > 1:
        raise UserError("--key, --prepare and --signature exclude each other", "give one of them")
    found = load_cluster(cluster)
    source = draft or found.folder / DRAFT
    private = manifest_keys.load(key or manifest_keys.default_path(found.name)) if not (prepare or signature) else None
    try:
        manifest = decode(source.read_bytes())
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}", f"./mesh manifest render {cluster}") from error
    except ManifestError as error:
        raise UserError(f"{source} is no manifest: {error}", f"./mesh manifest render {cluster}") from error
    before = signing.head(found)
    if before is not None and before.manifest == manifest:
        click.echo(f"signed already: {before.name}")
        return
    signing.check(manifest, found, before, source)
    if prepare is not None:
        signing.prepare(manifest, prepare, cluster)
        return
    if private is not None:
        made, origin = manifest_keys.signature(private, manifest), str(key or manifest_keys.default_path(found.name))
    else:
        assert signature is not None
        made, origin = signing.read_signature(signature), str(signature)
    envelope = signing.add(manifest, found, before, made, origin)
    if envelope is None:
        return
    target = found.folder / signing.SIGNED
    target.write_text(f"{envelope}\n", encoding="ascii")
    click.echo(f"signed epoch {manifest.epoch}: {target}")
    for warning in coordinators_go(_coordinators(before.manifest), _coordinators(manifest)) if before else ():
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"next: ./mesh set -c URL --manifest {target}, which restarts nobody")
    if before is None or before.manifest.coordinators != manifest.coordinators:
        click.echo(f"and: terraform -chdir={found.folder} apply -parallelism=1: CVMs are told where coordinators are")


@command.command()
@click.argument("cluster")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest itself.")
def show(cluster: str, as_json: bool) -> None:
    """Show the signed manifest of CLUSTER, after its signatures were checked."""
    from topology.manifest import encode
    from topology.owners import name_of

    loaded = load_cluster(cluster)
    found = signing.head(loaded)
    if found is None:
        raise UserError(f"{cluster} has no {signing.SIGNED} yet", f"./mesh manifest render {cluster}")
    if as_json:
        click.echo(json.dumps(json.loads(encode(found.manifest)), indent=2, sort_keys=True))
        return
    summary(found.manifest)
    for note in found.notes:
        click.echo(f"look at: {note}")
    click.echo(f"  digest {found.digest}")
    click.echo(f"  signed by {', '.join(name_of(key) for key in signing.by(found, loaded))}")
    if not signing.by_the_compose_files(loaded, found):
        click.echo("look at: the owners in the compose files did not sign it: they were changed since")


@command.command()
@click.argument("cluster")
@click.argument("app")
@_outputs
def script(cluster: str, app: str, outputs: Path | None) -> None:
    """Print the pre-launch script that APP of CLUSTER measured (the platform puts one in), for you to read."""
    from meshctl import manifest_facts as facts
    from topology.problems import ClusterError

    found = load_cluster(cluster)
    try:
        report = facts.read(_deployment(found.folder, outputs))
        click.echo(facts.script_of(report, app), nl=False)
    except ClusterError as error:
        raise UserError(str(error), "terraform apply first") from error


def _deployment(folder: Path, outputs: Path | None) -> str:
    if outputs is not None:
        try:
            return sys.stdin.read() if str(outputs) == "-" else outputs.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{outputs} cannot be read: {error}", "terraform output -json deployment > outputs.json"
            ) from error
    terraform = shutil.which("terraform")
    if terraform is None:
        raise UserError(
            "terraform is not on PATH, so it cannot be asked", "--outputs FILE, or install Terraform 1.5 or newer"
        )
    argv = [terraform, f"-chdir={folder}", "output", "-json", "-no-color", "deployment"]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(
            f"terraform has no output `deployment` in {folder}:\n{result.stderr.strip()}", "terraform apply first"
        )
    return result.stdout


def _coordinators(manifest: Manifest) -> list[str]:
    return [peer.peer_id for peer in manifest.coordinators.peers]


def _images(path: Path) -> tuple[OsImage, ...]:
    from topology.manifest import ManifestError, OsImage, from_tree

    try:
        found: Any = from_tree(tuple[OsImage, ...], json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, ManifestError) as error:
        form = '[{"os_image_hash": "…", "mrtd": "…", "rtmr0": "…", "rtmr1": "…", "rtmr2": "…"}]'
        raise UserError(f"{path} is no list of OS images: {error}", form) from error
    if not found:
        raise UserError(f"{path} approves no OS image", "list at least one")
    return tuple(found)


def summary(manifest: Manifest) -> None:
    """Prints what a person has to know of `manifest`."""
    from meshctl.plan_calls import names_of
    from topology.owners import name_of

    click.echo(f"manifest of {manifest.cluster}, epoch {manifest.epoch}")
    click.echo(f"  follows {manifest.previous or 'none: it is the first'}")
    owners = manifest.owners
    click.echo(f"  what follows needs {owners.threshold} of: {', '.join(name_of(key) for key in owners.keys)}")
    click.echo(f"  keys from {manifest.key_provider.name} {manifest.key_provider.id:.24}…")
    for image in manifest.os_images:
        click.echo(f"  OS image {image.os_image_hash or '(no hash)'} MRTD {image.mrtd:.16}… RTMR1 {image.rtmr1:.16}…")
    click.echo(f"  TCB {', '.join(manifest.tcb.allowed_statuses)}")
    own = manifest.coordinators
    click.echo(
        f"  coordinators: app {own.app_id}, {len(own.peers)} CVM(s), "
        f"compose {', '.join(h[:16] for h in own.compose_hashes)}…"
    )
    for name, group in sorted(manifest.groups.items()):
        hashes = ", ".join(h[:16] for h in group.compose_hashes)
        click.echo(f"  group {name}: app {group.app_id}, {len(group.peers)} CVM(s), compose {hashes}…")
        for variable, value in sorted(group.env.items()):
            # Whoever signs it should see what becomes public.
            click.echo(f"    variable {variable} is {value!r}, for everybody to read")
        for served, backend in sorted(group.backends.items()):
            click.echo(f"    {served} may be called by {names_of(backend.callers)}")
    for route in manifest.routes:
        role = f" ({route.role})" if route.role else ""
        click.echo(f"  route {route.name}:{route.port} → {route.group}/{route.backend}{role}")
    for name, secret in sorted(manifest.secrets.items()):
        click.echo(f"  secret {name}: {secret.owner} and {', '.join(secret.groups)}")
    for entry in manifest.rendezvous:
        click.echo(f"  rendezvous {entry.endpoint}")
