"""`./mesh verify`: what a mesh enforces, verified from outside. Reads files, asks the coordinator, writes a folder."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import runs, verify_files
from meshctl.errors import UserError

if TYPE_CHECKING:
    from evidence.bundle import Bundle
    from evidence.outside import Trusted, Verified
    from topology.owners import Owners

IN_LAB = "outside.json"
"""In the folder of a lab: where it answers on this machine, who its owner is, and the root of its simulated TEE."""
MAX_FILE = 1 << 22
"""Bytes of a manifest, envelope or root that are read."""
INSECURE = (
    "INSECURE: a development root is trusted (--insecure-root): the quote is of a simulated TEE, and proves nothing "
    "about any hardware"
)


class Exit(IntEnum):
    """How a verification that fails ends the command: one code for each way (docs/cli.md)."""

    UNREACHABLE = 10
    FORM = 11
    NONCE = 12
    EVIDENCE = 13
    FOREIGN = 14
    CLOCK = 15
    DIGEST = 16
    OWNER = 17
    CHAIN = 18
    AUTHORITY = 19
    MEMBERS = 20
    ROLLBACK = 21
    DOCUMENTS = 22


REMEDIES: dict[Exit, str] = {
    Exit.UNREACHABLE: "is it a coordinator's URL, and is it ready? A moment later it may have room",
    Exit.FORM: "ask a coordinator, port 8787; or use a newer ./mesh",
    Exit.NONCE: "somebody relays an answer to another question; do not trust this address",
    Exit.EVIDENCE: "do not trust this address",
    Exit.FOREIGN: "is the manifest the newest? Else something else than the mesh's coordinator runs there, or on "
    "another platform",
    Exit.CLOCK: "compare both clocks; for a bundle of earlier, --at says as of when it is judged",
    Exit.DIGEST: "get the newer manifest from its owner and read it; if there is none, do not trust this mesh",
    Exit.OWNER: "ask the owner, by another way, which keys sign (--owners)",
    Exit.CHAIN: "ask another coordinator; if all have it so, ask the owner",
    Exit.AUTHORITY: "do not use the certificates of this coordinator",
    Exit.MEMBERS: "do not trust this address",
    Exit.DOCUMENTS: "ask another coordinator; if all have it so, ask the owner",
    Exit.ROLLBACK: "tell the owner: somebody runs this mesh with an older manifest, or with other keys",
}


NEWER = (
    "verify with the manifest that you set last, or ./mesh sign and set yours; if yours was in force already, do not "
    "trust this mesh"
)
"""What to try where the reader's manifest is of a later epoch than the one that is enforced."""


class FailedError(UserError):
    """The verification failed. Nothing was written."""

    def __init__(self, code: Exit, reason: str, remedy: str = "") -> None:
        super().__init__(f"not verified ({code.name.lower()}): {reason}", remedy or REMEDIES[code], exit_code=code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What the person brings: a manifest, or owners any manifest of whom will do."""

    manifest: Path | None
    owners: Owners | None
    development_root: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabEntry:
    """A port of this machine's loopback from where the lab's gateway leads on."""

    group: str
    port: int
    """Of the group's CVMs."""
    here: int
    """Of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabAnswers:
    """What `IN_LAB` says."""

    url: str
    owners: str
    development_root: str
    """DER, hex."""
    entries: tuple[LabEntry, ...] = ()
    """Of the coordinators, too."""


@click.command()
@click.option("-c", "--coordinator", "url", metavar="URL", help="A coordinator. Default: that of the lab that runs.")
@click.option(
    "-m",
    "--manifest",
    "manifest_file",
    type=click.Path(path_type=Path),
    help="The manifest that you have read: manifest.json or manifest.signed.",
)
@click.option("--owners", "owners_text", help="Who has to have signed the first manifest, as in MESH_OWNERS.")
@click.option(
    "--offline", "offline", type=click.Path(path_type=Path), help="Verify this bundle again, without a network."
)
@click.option("--at", type=float, metavar="SECONDS", help="With --offline: judge as of this Unix time, not of now.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for what was proven. Default: verify; none with --offline."
)
@click.option(
    "--insecure-root",
    type=click.Path(path_type=Path),
    help="Trust this root (PEM or DER) instead of Intel's: for the simulated TEE of a lab.",
)
@click.option("--name", help="Which lab, where several run.")
def command(
    url: str | None,
    manifest_file: Path | None,
    owners_text: str | None,
    offline: Path | None,
    at: float | None,
    out: Path | None,
    insecure_root: Path | None,
    name: str | None,
) -> None:
    """Verify from outside which manifest a mesh enforces, and write its certificates and history into a folder.

    A coordinator answers a fresh nonce with a quote. It has to be one that the manifest allows, and to enforce that
    very manifest. Nothing is written unless all of it holds. In a lab that runs, no option is needed.
    """
    if at is not None and offline is None:
        raise UserError("--at is for bundles of before", "--offline verify/bundle.json --at SECONDS")
    if url is not None and offline is not None:
        raise UserError("-c asks a coordinator and --offline asks nobody", "give one of them")
    reader = Reader(
        manifest=manifest_file,
        owners=_owners(owners_text) if owners_text else None,
        development_root=root_in(insecure_root) if insecure_root else None,
    )
    remembered: Path | None = None
    bundle = _read(offline, "the bundle") if offline is not None else None
    of_lab = bundle is None and url is None
    if bundle is not None:
        known = verify_files.read_lab(bundle) if name is None else lab_answers(runs.find(name))
        of_lab, reader = known is not None, _as_told(reader, known) if known is not None else reader
    elif url is None:
        url, reader, remembered = _lab(name, reader)
    if reader.manifest is None and reader.owners is None:
        raise UserError(
            "which manifest has to be enforced?",
            "-m manifest.json, or --owners KEY for any that they signed\n"
            "of a lab that this machine has not verified itself: --insecure-root FILE, too",
        )
    if reader.development_root is not None:
        click.echo(INSECURE, err=True)
    target = out or (Path("verify") if offline is None else None)
    if target is not None:
        verify_files.check_target(target)
    nonce = secrets.token_bytes(32) if bundle is None else None
    data = _fetched(url or "", nonce) if nonce is not None else bundle or b""
    # A lab's memory ends with the lab.
    memory = at is None and not (of_lab and bundle is not None)
    found = _verified(data, reader, nonce, time.time() if at is None else at, remembered, memory=memory)
    if target is not None:
        verify_files.write(target, found, data)
    if nonce is not None and of_lab:
        verify_files.write_lab(data, _anchors(reader))
    _report(found, target)


def _verified(
    data: bytes, reader: Reader, nonce: bytes | None, now: float, remembered: Path | None, *, memory: bool
) -> Verified:
    """What the bundle `data` proves. FailedError. With a `nonce` of ours it is remembered as seen now."""
    from evidence.bundle import BundleError, decode
    from evidence.outside import Cause, UnprovenError, verify

    try:
        bundle = decode(data)
    except BundleError as error:
        raise FailedError(Exit.FORM, str(error)) from error
    try:
        trusted = _trusted(reader, bundle)
    except UnprovenError as error:
        raise FailedError(Exit[error.cause.name], error.reason) from error
    try:
        path = remembered or verify_files.seen_path(trusted.manifest.cluster, trusted.manifest.coordinators.app_id)
        seen = verify_files.read_seen(path) if memory else None
        found = asyncio.run(verify(bundle, trusted, nonce=nonce, seen=seen, now=now))
        if nonce is not None and found.seen != seen:
            verify_files.write_seen(path, found.seen)
    except UnprovenError as error:
        newer = error.cause is Cause.DIGEST and trusted.manifest.epoch > bundle.statement.head.epoch
        raise FailedError(Exit[error.cause.name], error.reason, NEWER if newer else "") from error
    return found


def _trusted(reader: Reader, bundle: Bundle) -> Trusted:
    """The reader's manifest; without one the newest of the history, if the reader's owners signed its beginning.
    UnprovenError.
    """
    from evidence.outside import Trusted, signed_history
    from topology.envelope import digest, open_envelope
    from topology.manifest import decode
    from topology.trees import ManifestError

    if reader.manifest is None:
        assert reader.owners is not None
        newest = signed_history(reader.owners, bundle.history)[-1]
        manifest, found = newest.manifest, newest.digest
    else:
        text = _read(reader.manifest, "the manifest")
        try:
            if text.lstrip().startswith(b"{"):
                manifest = decode(text)
                found = digest(manifest)
            else:
                opened = open_envelope(text.decode("ascii", "replace"), None)
                manifest, found = opened.manifest, opened.digest
        except ManifestError as error:
            raise UserError(
                _no_manifest(reader.manifest, text, str(error)), "-m manifest.json or manifest.signed"
            ) from error
    return Trusted(manifest=manifest, digest=found, owners=reader.owners, development_root=reader.development_root)


def _no_manifest(path: Path, text: bytes, reason: str) -> str:
    """What is wrong with `text`; of another kind of file, what was expected."""
    if text.lstrip().startswith(b"{") or re.fullmatch(rb"[\w-]+(\.[\w-]*)+", text.strip()):
        return f"{path} is no manifest: {reason}"
    return f"{path} is not a manifest: expected JSON, as ./mesh generate writes it, or what ./mesh sign writes"


def _lab(name: str | None, reader: Reader) -> tuple[str, Reader, Path]:
    """Where the lab's coordinators answer, the reader with what the lab says of itself, and where is remembered what
    was seen of it.
    """
    run = runs.find(name)
    told = lab_answers(run)
    click.echo(f"the lab {run.name!r}: {told.url}")
    return told.url, _as_told(reader, told), run.folder / verify_files.SEEN_IN_LAB


def _anchors(reader: Reader) -> verify_files.LabAnchors:
    """What `reader` trusts of a lab, to be remembered with what was verified by it."""
    from topology.owners import text_of

    assert reader.owners is not None, "a lab says who its owner is"
    assert reader.development_root is not None, "and which root its TEE has"
    return verify_files.LabAnchors(owners=text_of(reader.owners), development_root=reader.development_root.hex())


def _as_told(reader: Reader, told: LabAnswers | verify_files.LabAnchors) -> Reader:
    """`reader` with the lab's owners and root where it brings none."""
    return Reader(
        manifest=reader.manifest,
        owners=reader.owners or _owners(told.owners),
        development_root=reader.development_root or bytes.fromhex(told.development_root),
    )


def lab_answers(run: runs.Run) -> LabAnswers:
    """What the lab `run` says of itself. UserError."""
    from topology.trees import ManifestError, from_tree

    path = run.folder / IN_LAB
    try:
        told: LabAnswers = from_tree(LabAnswers, json.loads(_read(path, "what the lab says")), IN_LAB)
    except (ManifestError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "./mesh down, and ./mesh up again") from error
    return told


def _fetched(url: str, nonce: bytes) -> bytes:
    from meshctl.attestation import UnreachableError, fetch_whole, url_of

    try:
        base = url_of(url)
    except ValueError as error:
        raise UserError(f"-c {error}", "-c https://host:port") from error
    try:
        return asyncio.run(fetch_whole(base, nonce))
    except UnreachableError as error:
        raise FailedError(Exit.UNREACHABLE, str(error)) from error


def _owners(text: str) -> Owners:
    from topology.owners import OwnerError, parse

    try:
        return parse(text)
    except OwnerError as error:
        raise UserError(f"--owners {error}", "the text of MESH_OWNERS in the compose files") from error


def root_in(path: Path) -> bytes:
    """The certificate in `path` (PEM or DER), as DER. UserError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    data = _read(path, "the root")
    try:
        pem = data.lstrip().startswith(b"-----")
        found = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise UserError(f"{path} is no certificate: {error}", "--insecure-root root.pem") from error
    return found.public_bytes(Encoding.DER)


def _read(path: Path, what: str) -> bytes:
    from evidence.bundle import MAX_BUNDLE

    limit = MAX_BUNDLE if what == "the bundle" else MAX_FILE
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}, {what}, cannot be read: {error.strerror}", "name a file that is there") from error
    if len(data) > limit:
        raise UserError(f"{path}, {what}, has more than {limit} bytes", "name the right file")
    return data


def _report(found: Verified, target: Path | None) -> None:
    from datetime import UTC, datetime

    from meshctl.documents import missing
    from topology.allowed import coordinators

    head, evidence, stated = found.head, found.evidence, found.statement
    moment = datetime.fromtimestamp(stated.issued_at, UTC)
    click.echo(f"verified: {stated.cluster}, by {stated.peer_id}, as of {moment:%Y-%m-%d %H:%M:%S} UTC")
    click.echo(f"  enforces epoch {head.manifest.epoch}, digest {head.digest}")
    click.echo(f"  history  {len(found.history)} manifest(s), each signed by the owners of the one before")
    click.echo(f"  app      {evidence.app_id}, compose hash {evidence.compose_hash}")
    click.echo(
        f"  platform {evidence.tcb_status}{', '.join(('', *evidence.advisory_ids))}; OS image {evidence.os_image_hash}"
    )
    click.echo(f"  root CA  {stated.root_sha256}")
    click.echo(f"  mesh CA  {stated.mesh_ca_sha256}")
    others = sorted(peer.peer_id for peer in coordinators(head.manifest) if peer.peer_id != stated.peer_id)
    if others:
        click.echo(f"  not asked: {', '.join(others)}; each may be asked in the same way (-c URL)")
    groups = Counter(member.group for member in found.members)
    said = ", ".join(f"{count} of {group}" for group, count in sorted(groups.items()))
    click.echo(f"  members  {len(found.members)}{f': {said}' if said else ''}")
    without = missing(found.documents, head.manifest)
    click.echo(f"  texts    {len(found.documents)} of {len(found.documents) + len(without)} app-compose texts")
    for name, group in without.items():
        click.echo(f"           none for {group}, compose hash {name}")
    if evidence.development_root:
        click.echo(f"  {INSECURE}")
    if target is not None:
        click.echo(f"written: {target}")
