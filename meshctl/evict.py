"""`./mesh evict PEER`: the manifest in force without that slot, signed and set, in one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import manifest_keys, owner_access, set_command
from meshctl import manifest_sign as signing
from meshctl.errors import UserError
from meshctl.writing import write

if TYPE_CHECKING:
    from topology.cluster import Cluster
    from topology.envelope import Signed
    from topology.manifest import Manifest


def without(manifest: Manifest, peer_id: str, *, rotate: bool = True) -> Manifest:
    """`manifest` without the slot `peer_id`, and without the routes that lead to it alone; or without that coordinator.
    UserError for what is neither, and for the only coordinator.

    `rotate`: with another gossip key, for the CVM in that slot knows this one. A coordinator can derive each one.
    """
    leads = tuple(peer for peer in manifest.coordinators.peers if peer.peer_id != peer_id)
    if not leads:
        raise UserError(f"{peer_id} is the only coordinator", "./mesh set a manifest with another one beside it first")
    if leads != manifest.coordinators.peers:
        return replace(manifest, coordinators=replace(manifest.coordinators, peers=leads))
    groups = {
        name: replace(group, peers=tuple(peer for peer in group.peers if peer.peer_id != peer_id))
        for name, group in manifest.groups.items()
    }
    if groups == manifest.groups:
        known = ", ".join(peer.peer_id for group in manifest.groups.values() for peer in group.peers)
        raise UserError(f"there is no slot {peer_id!r}", f"the manifest in force has {known}")
    turned = replace(manifest.rotate, gossip=manifest.rotate.gossip + 1) if rotate else manifest.rotate
    routes = tuple(it for it in manifest.routes if it.peer != peer_id)
    return replace(manifest, groups=groups, routes=routes, rotate=turned)


@click.command()
@click.argument("peer")
@click.argument("cluster", required=False)
@click.option("-c", "--coordinator", "url", metavar="URL", help="A coordinator's URL, for CLUSTER as deployed.")
@click.option(
    "--key", type=click.Path(path_type=Path), help="File of an owner's private key. Default: as ./mesh keygen."
)
@click.option("--keep-gossip-key", is_flag=True, help="Leave the gossip key, which the CVM knows, as it is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--name", help="Which lab, when several run.")
@click.option("--pccs", default=set_command.PCCS, show_default=True, metavar="URL", help="As ./mesh set.")
@click.option("--insecure-root", type=click.Path(path_type=Path), help="As ./mesh set.")
def command(
    peer: str,
    cluster: str | None,
    url: str | None,
    key: Path | None,
    keep_gossip_key: bool,
    yes: bool,
    name: str | None,
    pccs: str,
    insecure_root: Path | None,
) -> None:
    """Take the slot PEER away from whoever has it: of a lab that runs, or of CLUSTER as deployed (-c URL).

    Its CVM loses lease, links and tokens at once; its certificate ends with overlap_seconds. It may ask for another
    slot of its group, and gets one that is free; to keep out what it runs, take its compose hash out of the manifest
    (./mesh set). The gossip key that it knows is replaced, while the mesh runs. A coordinator leaves Raft, links and
    lists; -c has to be one that stays.
    """
    rotate = not keep_gossip_key
    if (cluster is None) != (url is None):
        raise UserError("CLUSTER and -c URL belong together", "./mesh evict PEER CLUSTER -c URL; for a lab, neither")
    if cluster is None or url is None:
        here = owner_access.lab(name, but=peer)
        set_command.put(here.mesh, here.sign(without(here.draft(), peer, rotate=rotate)), yes=yes)
        return
    from meshctl.manifest import DRAFT, load_cluster

    found = load_cluster(cluster)
    before = signing.head(found)
    if before is None:
        raise UserError(f"{cluster} has no {signing.SIGNED} yet", f"./mesh generate {cluster}")
    following = replace(before.manifest, epoch=before.manifest.epoch + 1, previous=before.digest)
    wanted = without(following, peer, rotate=rotate)
    envelope = _signed(wanted, found, before, key)
    if envelope is None:
        return

    def in_force() -> None:
        """Before the others are asked: one that is away must not leave the files behind what is in force."""
        target = found.folder / signing.SIGNED
        write(target, f"{envelope}\n")
        click.echo(f"written: {target}")
        edit_draft(found.folder / DRAFT, peer, wanted.rotate.gossip)

    set_command.put(owner_access.deployed(url, pccs, insecure_root), envelope, yes=yes, in_force=in_force)


def edit_draft(draft: Path, peer: str, gossip: int) -> None:
    """Takes the slot out of the manifest that people edit, so that the next `./mesh generate` leaves it out. `gossip`,
    the count of gossip keys that is in force now, stands there from then on, too: a lesser one could not be set, and a
    greater one would replace the key once more.
    """
    from meshctl.generate import pretty, tree_of
    from topology.manifest import decode
    from topology.trees import ManifestError

    again = "the next ./mesh generate would bring the slot back, for cluster.tf still has it"
    try:
        edited = without(decode(draft.read_bytes()), peer, rotate=False)
    except (OSError, ManifestError, UserError) as error:
        click.echo(f"{draft} was not edited, and {again}: {error}", err=True)
        return
    write(draft, pretty(tree_of(replace(edited, rotate=replace(edited.rotate, gossip=gossip)))))
    click.echo(f"written: {draft}, without the slot; cluster.tf still has it")


def _signed(manifest: Manifest, cluster: Cluster, before: Signed, key: Path | None) -> str | None:
    """The envelope of `manifest`; None where other owners have to sign, too."""
    path = key or manifest_keys.default_path(cluster.name)
    signing.check(manifest, cluster, before, path)
    made = manifest_keys.signature(manifest_keys.load(path), manifest)
    sets = signing.wanted(manifest, signing.measured(cluster), before)
    return signing.add(manifest, sets, cluster.folder / signing.PARTIAL, made, str(path))
