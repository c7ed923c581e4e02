"""`./mesh sign`: one signature after the other until as many owners as have to have signed. Reads and writes
files.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import manifest_keys
from meshctl.errors import UserError
from meshctl.writing import write

if TYPE_CHECKING:
    from topology.cluster import Cluster
    from topology.envelope import Signed
    from topology.manifest import Manifest
    from topology.owners import OwnerKey, Owners

SIGNED = "manifest.signed"
"""The envelope's file in the cluster folder: what `./mesh set` sets, and from which main.tf knows the coordinators."""
PARTIAL = "manifest.partial"
"""An envelope that lacks signatures. No coordinator would take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One set of owners that has to sign, and why."""

    owners: Owners
    why: str


def head(cluster: Cluster) -> Signed | None:
    """The manifest that is signed already, None when there is none. UserError when it is signed neither by the compose
    files' owners nor, where those were changed since, by the owners that it names.
    """
    from topology.envelope import open_envelope
    from topology.trees import ManifestError

    path = cluster.folder / SIGNED
    if not path.exists():
        return None
    owners = manifest_keys.owners(cluster)
    try:
        text = path.read_text(encoding="ascii")
        try:
            return open_envelope(text, owners)
        except ManifestError:
            with contextlib.suppress(ManifestError):
                return open_envelope(text, open_envelope(text, None).manifest.owners)
            raise
    except (ManifestError, UnicodeDecodeError, OSError) as error:
        hint = f"remove it, or put the owners back into {cluster.coordinator_compose}"
        raise UserError(f"{path}: {error}", hint) from error


def by_the_compose_files(cluster: Cluster, signed: Signed) -> bool:
    """Whether the owners in the compose files signed it; else those were changed since."""
    from topology.envelope import open_envelope
    from topology.trees import ManifestError

    try:
        open_envelope(signed.envelope, manifest_keys.owners(cluster))
    except ManifestError:
        return False
    return True


def next_owners(cluster: Cluster, before: Signed | None) -> Owners:
    """Who signs what follows the next manifest: as before, unless the compose files name others by now."""
    if before is not None and by_the_compose_files(cluster, before):
        return before.manifest.owners
    return manifest_keys.owners(cluster)


def measured(cluster: Cluster) -> Wanted:
    """The owners by whom CVMs go that start. UserError."""
    return Wanted(owners=manifest_keys.owners(cluster), why="the owners in the compose files")


def wanted(manifest: Manifest, own: Wanted, before: Signed | None) -> tuple[Wanted, ...]:
    """The sets that have to sign `manifest`: CVMs that run go by the one before, CVMs that start go by their compose
    file, which names `own`, and who signs what follows shows that the keys are there (`topology.succession.unproven`).
    """
    sets = [own]
    if before is not None and before.manifest.owners != own.owners:
        sets.insert(0, Wanted(owners=before.manifest.owners, why=f"the owners that {before.name} names"))
    if all(manifest.owners != one.owners for one in sets):
        sets.append(Wanted(owners=manifest.owners, why=f"the owners that epoch {manifest.epoch} itself names"))
    return tuple(sets)


def check(manifest: Manifest, cluster: Cluster, before: Signed | None, source: Path) -> None:
    """UserError when `manifest` from `source` may not follow `before`, whoever signs it."""
    if manifest.cluster != cluster.name:
        raise UserError(f"{source} is of cluster {manifest.cluster!r}, not {cluster.name!r}", "give the right file")
    if before is not None:
        check_follows(manifest, before, source, str(cluster.folder))
    elif manifest.epoch != 1:
        raise UserError(
            f"{source} has epoch {manifest.epoch}, and nothing is signed yet: expected epoch 1",
            f"./mesh generate {cluster.folder}",
        )


def check_follows(manifest: Manifest, before: Signed, source: Path, cluster: str) -> None:
    """UserError when `manifest` from `source` may not follow `before`, whoever signs it."""
    from topology.envelope import seal
    from topology.succession import SuccessionError, follow

    try:
        follow(before, seal(manifest), signed=False)
    except SuccessionError as error:
        raise UserError(f"{source} does not follow what is signed: {error}", f"./mesh generate {cluster}") from error


def prepare(manifest: Manifest, target: Path, cluster: str) -> None:
    """Writes the bytes that owners sign, and says how."""
    from topology.envelope import message

    target.write_bytes(message(manifest))
    click.echo(f"written: {target}, the bytes that owners of epoch {manifest.epoch} sign\nwith an Ed25519 key:")
    click.echo(f"  openssl pkeyutl -sign -rawin -inkey owner.pem -in {target} -out {target}.sig")
    click.echo("with a P-256 key (also: ECDSA with SHA-256 of a hardware module or a key service, in DER):")
    click.echo(f"  openssl dgst -sha256 -sign owner.pem -out {target}.sig {target}")
    click.echo(f"then: ./mesh sign {cluster} --signature {target}.sig")


def read_signature(path: Path) -> bytes:
    """The signature in `path`. UserError when it cannot be one."""
    from topology.owners import MAX_SIGNATURE

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "--prepare FILE says how to make it") from error
    if not 0 < len(data) <= MAX_SIGNATURE:
        raise UserError(f"{path} has {len(data)} bytes, which is no signature", "--prepare FILE says how to make it")
    return data


def add(manifest: Manifest, sets: tuple[Wanted, ...], partial: Path, signature: bytes, source: str) -> str | None:
    """Adds `signature`, which came from `source`, to those that `manifest` has in the file `partial`; the envelope when
    all of `sets` have signed.

    Says how many there are. UserError when it is by none of those that count.
    """
    from topology import envelope as envelopes
    from topology.owners import MAX_OWNERS, signers, text_of

    message = envelopes.message(manifest)

    def owners_behind(*made: bytes) -> set[OwnerKey]:
        return {key for one in sets for key in signers(one.owners, message, made)}

    if not owners_behind(signature):
        named = "; ".join(f"{one.why}: {text_of(one.owners)}" for one in sets)
        raise UserError(f"{source} gives a signature of none of {named}", "sign with one of these keys")
    begun = partial.read_text(encoding="ascii").strip() if partial.exists() else ""
    bare = envelopes.seal(manifest)
    # A draft that was changed since needs all signatures anew.
    envelope = begun if begun.partition(".")[0] == bare.partition(".")[0] else bare
    if owners_behind(signature) <= owners_behind(*envelopes.signatures(envelope)):
        click.echo(f"{source} has signed already")
    else:
        if len(envelopes.signatures(envelope)) == MAX_OWNERS:
            raise UserError(
                f"{partial} has {MAX_OWNERS} signatures already, and no more fit",
                "remove it and have no more owners sign than have to; or name fewer new owners at once",
            )
        envelope = envelopes.attach(envelope, signature)
    made = envelopes.signatures(envelope)
    complete = True
    for one in sets:
        count = len(signers(one.owners, message, made))
        complete = complete and count >= one.owners.threshold
        click.echo(f"{min(count, one.owners.threshold)} of {one.owners.threshold} signatures by {one.why}")
    if complete:
        partial.unlink(missing_ok=True)
        return envelope
    write(partial, f"{envelope}\n")
    click.echo(f"the envelope is not complete yet: {partial}\nnext: another owner signs it, with the same draft")
    return None


def by(signed: Signed, cluster: Cluster) -> tuple[OwnerKey, ...]:
    """Who signed it, of all owners that are known here."""
    from topology import envelope as envelopes
    from topology.owners import signers

    made = envelopes.signatures(signed.envelope)
    known = (manifest_keys.owners(cluster), signed.manifest.owners)
    found = [key for owners in known for key in signers(owners, envelopes.message_of(signed.envelope), made)]
    return tuple(dict.fromkeys(found))
