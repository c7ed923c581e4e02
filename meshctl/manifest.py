"""`./mesh sign` and `./mesh manifest`: from the manifest that `./mesh generate` wrote to the signed one. Files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import manifest_keys
from meshctl import manifest_sign as signing
from meshctl.errors import UserError, printable
from meshctl.writing import write

if TYPE_CHECKING:
    from topology.cluster import Cluster
    from topology.manifest import Manifest
    from topology.references import Reference

DRAFT = "manifest.json"
LAB_SIGNED = "manifest.lab.signed"
"""What a lab's owner signed: Terraform must not find it."""
LAB_PARTIAL = "manifest.lab.partial"
"""What lacks signatures of a lab's other owners."""


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
    """Show the signed manifest: what may join the mesh, as whom, with which rights."""


@click.command()
@click.argument("cluster")
@click.option(
    "--key", type=click.Path(path_type=Path), help="File of an owner's private key. Default: as ./mesh keygen."
)
@click.option(
    "--draft", type=click.Path(path_type=Path), help="The manifest to sign. Default: manifest.json in the folder."
)
@click.option("--prepare", type=click.Path(path_type=Path), help="Write the bytes to sign to this file; sign nothing.")
@click.option("--signature", type=click.Path(path_type=Path), help="Take the signature in this file, made elsewhere.")
@click.option("--name", help="Which lab, when several run.")
def sign(
    cluster: str,
    key: Path | None,
    draft: Path | None,
    prepare: Path | None,
    signature: Path | None,
    name: str | None,
) -> None:
    """Sign the manifest of CLUSTER as one of its owners; writes manifest.signed, which is no secret.

    Where several owners have to sign, each runs this in turn with a key of their own. A manifest that was generated
    from a lab is signed with the lab's own key unless --key names another owner's, and written as manifest.lab.signed.
    """
    from meshctl.bring_up import cluster_folder
    from meshctl.generate_sources import LAB, source_of
    from meshctl.plan_changes import coordinators_go

    if sum(it is not None for it in (key, prepare, signature)) > 1:
        raise UserError("--key, --prepare and --signature exclude each other", "give one of them")
    source = draft or cluster_folder(cluster) / DRAFT
    if not source.exists():
        raise UserError(f"{source} is not there, and it is what is signed", f"./mesh generate {cluster}")
    if source_of(source) == LAB:
        _sign_for_lab(source, cluster, name, key, prepare, signature)
        return
    found = load_cluster(cluster)
    own = key or manifest_keys.default_path(found.name)
    made = _made(own, prepare, signature)
    manifest = _draft(source, cluster)
    before = signing.head(found)
    if before is not None and before.manifest == manifest:
        click.echo(f"signed already: {before.name}")
        return
    signing.check(manifest, found, before, source)
    if prepare is not None:
        signing.prepare(manifest, prepare, cluster)
        return
    sets = signing.wanted(manifest, signing.measured(found), before)
    envelope = signing.add(manifest, sets, found.folder / signing.PARTIAL, *made(manifest))
    if envelope is None:
        return
    target = found.folder / signing.SIGNED
    write(target, f"{envelope}\n")
    click.echo(f"signed epoch {manifest.epoch}: {target}")
    for warning in coordinators_go(_coordinators(before.manifest), _coordinators(manifest)) if before else ():
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"next: ./mesh set -c URL --manifest {target}, which restarts nobody")
    if before is None or before.manifest.coordinators != manifest.coordinators:
        click.echo(f"and: terraform -chdir={found.folder} apply -parallelism=1: CVMs are told where coordinators are")


def _made(key: Path, prepare: Path | None, signature: Path | None) -> Callable[[Manifest], tuple[bytes, str]]:
    """What gives the signature of a manifest, and where it comes from: the file `signature`, or the private key in
    `key`. UserError where that cannot be read, at once: before anything else is judged.
    """
    if signature is not None:
        found = signing.read_signature(signature)
        return lambda _: (found, str(signature))
    private = manifest_keys.load(key) if prepare is None else None

    def sign(manifest: Manifest) -> tuple[bytes, str]:
        assert private is not None, "nothing is signed where bytes are prepared"
        return manifest_keys.signature(private, manifest), str(key)

    return sign


def _sign_for_lab(
    source: Path, cluster: str, name: str | None, key: Path | None, prepare: Path | None, signature: Path | None
) -> None:
    """Signs `source` for the lab that it was generated from: with the lab's own key, or as another owner that its
    manifests name. UserError.
    """
    from meshctl import owner_access
    from meshctl.bring_up import cluster_folder
    from meshctl.generate_sources import lab_of

    run = lab_of(cluster_folder(cluster), name)
    if run is None:
        raise UserError(f"{source} is of a lab, and no lab of {cluster} runs", f"./mesh up {cluster}")
    here = owner_access.lab(run.name)
    made = _made(key or here.key, prepare, signature)
    manifest = _draft(source, cluster)
    head = here.head()
    if manifest == head.manifest:
        click.echo(f"in force already: {head.name}")
        return
    signing.check_follows(manifest, head, source, cluster)
    if prepare is not None:
        signing.prepare(manifest, prepare, cluster)
        return
    own = signing.Wanted(owners=here.owners, why="the lab's own owner")
    sets = signing.wanted(manifest, own, head)
    envelope = signing.add(manifest, sets, source.with_name(LAB_PARTIAL), *made(manifest))
    if envelope is None:
        return
    target = source.with_name(LAB_SIGNED)
    write(target, f"{envelope}\n")
    click.echo(f"signed epoch {manifest.epoch}: {target}\nnext: ./mesh set --manifest {target}")


def _draft(source: Path, cluster: str) -> Manifest:
    """The manifest in `source`, which nobody has signed. UserError."""
    from topology.manifest import decode
    from topology.trees import ManifestError

    try:
        return decode(source.read_bytes())
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}", f"./mesh generate {cluster}") from error
    except ManifestError as error:
        raise UserError(f"{source} is no manifest: {error}", f"mend it, or ./mesh generate {cluster}") from error


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
        raise UserError(f"{cluster} has no {signing.SIGNED} yet", f"./mesh generate {cluster}")
    if as_json:
        click.echo(json.dumps(json.loads(encode(found.manifest)), indent=2, sort_keys=True))
        return
    summary(found.manifest)
    for note in found.notes:
        _say(f"look at: {note}")
    click.echo(f"  digest {found.digest}")
    click.echo(f"  signed by {', '.join(name_of(key) for key in signing.by(found, loaded))}")
    if not signing.by_the_compose_files(loaded, found):
        click.echo("look at: the owners in the compose files did not sign it: they were changed since")


@command.command()
@click.argument("cluster")
@click.argument("app")
@click.option(
    "--outputs",
    type=click.Path(path_type=Path),
    help="What `terraform output -json deployment` printed. Default: ask Terraform.",
)
def script(cluster: str, app: str, outputs: Path | None) -> None:
    """Print the pre-launch script that APP of CLUSTER measured (the platform puts one in), for you to read."""
    from meshctl import manifest_facts as facts
    from meshctl.generate_sources import terraform_output
    from topology.problems import ClusterError

    found = load_cluster(cluster)
    try:
        report = facts.read(terraform_output(found.folder, outputs))
        text = facts.script_of(report, app)
        # What is read has to be what runs: on a terminal a control character could hide a line.
        shown = "\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text
        click.echo(shown, nl=False)
    except ClusterError as error:
        raise UserError(str(error), "terraform apply first") from error


def _coordinators(manifest: Manifest) -> list[str]:
    return [peer.peer_id for peer in manifest.coordinators.peers]


def _say(line: str) -> None:
    """Prints a line of a manifest that somebody else may have written."""
    click.echo(printable(line))


def _summary_of(reference: Reference) -> None:
    _say(f"  reference {reference.name}: what a CVM has to be, all of it")
    # The end: the beginning of a public key is the same for every key of its kind.
    _say(f"    keys from {reference.key_provider.name} …{reference.key_provider.id[-24:]}")
    for image in reference.os_images:
        kind = " (development: root login)" if image.development else ""
        told = f"MRTD {image.mrtd:.16}… RTMR1 {image.rtmr1:.16}…{kind}"
        _say(f"    OS image {image.os_image_hash or '(no hash)'} {told}")
    tcb, grace = reference.tcb, ""
    if tcb.grace_until:
        grace = f"; out of date counts, too, until {datetime.fromtimestamp(tcb.grace_until, UTC):%Y-%m-%d %H:%M} UTC"
    _say(f"    TCB {', '.join(tcb.allowed_statuses)}{grace}")
    for device in reference.devices:
        _say(f"    only on the machine {device}")


def summary(manifest: Manifest) -> None:
    """Prints what a person has to know of `manifest`."""
    from meshctl.plan_calls import names_of
    from meshctl.plan_egress import destination
    from meshctl.plan_snapshot import egress_facts
    from topology.owners import name_of

    _say(f"manifest of {manifest.cluster}, epoch {manifest.epoch}")
    _say(f"  follows {manifest.previous or 'none: it is the first'}")
    owners = manifest.owners
    _say(f"  what follows needs {owners.threshold} of: {', '.join(name_of(key) for key in owners.keys)}")
    for reference in manifest.references:
        _summary_of(reference)
    own = manifest.coordinators
    _say(
        f"  coordinators: app {own.app_id}, {len(own.peers)} CVM(s), "
        f"compose {', '.join(h[:16] for h in own.compose_hashes)}…"
    )
    if (given := own.handover) is not None:
        _say(f"    take the mesh over from app {given.from_app_id} at {', '.join(given.urls)}")
        _say(f"    until {datetime.fromtimestamp(given.until, UTC):%Y-%m-%d %H:%M} UTC")
    for name, group in sorted(manifest.groups.items()):
        hashes = ", ".join(h[:16] for h in group.compose_hashes)
        _say(f"  group {name}: app {group.app_id}, {len(group.peers)} CVM(s), compose {hashes}…")
        for variable, value in sorted(group.env.items()):
            # Whoever signs it should see what becomes public.
            _say(f"    variable {variable} is {value!r}, for everybody to read")
        for served, backend in sorted(group.backends.items()):
            _say(f"    {served} may be called by {names_of(backend.callers)}")
        for egress in group.egress:
            facts = egress_facts(egress)
            _say(f"    egress {egress.name}: {egress.listen} leads to {destination(facts)} ({egress.tls})")
    for route in manifest.routes:
        role = f" ({route.role})" if route.role else ""
        _say(f"  route {route.name}:{route.port} → {route.group}/{route.backend}{role}")
    for name, secret in sorted(manifest.secrets.items()):
        _say(f"  secret {name}: {secret.owner} and {', '.join(secret.groups)}")
    for entry in manifest.rendezvous:
        _say(f"  rendezvous {entry.endpoint}")
