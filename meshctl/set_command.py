"""`./mesh set`: the next manifest, set on coordinators that run. Nothing restarts.

The coordinator is asked nothing before its evidence holds by the very manifest that is to be set: who signed it also
said what coordinators must measure. Then come the differences, a question, and the manifest.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import owner_access, set_memory
from meshctl.errors import UserError
from meshctl.owner_access import NO_DOCUMENTS, NOT_READY, Lab, Mesh, RefusedError

if TYPE_CHECKING:
    from meshctl.set_memory import Memory
    from topology.envelope import Signed
    from topology.manifest import Manifest

NO_MANIFEST = "NO_MANIFEST"
"""The code of a coordinator that waits for its first manifest."""
PCCS = "https://pccs.phala.network"
FOLLOW_SECONDS = 10.0
"""Within which every coordinator follows: they hear of a manifest by the records, in well below a second."""
BEGIN_SECONDS = 120.0
"""Within which coordinators found their cluster, or join one, quotes and tunnels included: they take 10 s on a quiet
machine."""
LOOK_SECONDS = 0.5
"""Between two looks at one that has not followed yet."""


def put(
    mesh: Mesh,
    envelope: str,
    *,
    yes: bool,
    first: bool = False,
    documents: Mapping[str, str] = NO_DOCUMENTS,
    in_force: Callable[[], None] = lambda: None,
) -> None:
    """Shows what the manifest in `envelope` changes, asks, sets it, and hands over the app-compose texts `documents`.
    UserError. `first`: a coordinator that has no manifest may begin with it, though it follows another one. `in_force`
    is called once it is in force at one coordinator: another one that is away fails this call, and changes nothing.
    What was in force then and before is remembered, and nothing is set on a coordinator that is behind that.
    """
    from topology.envelope import open_envelope

    wanted = open_envelope(envelope, None)
    memory = set_memory.recall(mesh, wanted.manifest)

    def hand_over() -> None:
        _hand_over(mesh, envelope, documents)

    def remembered() -> None:
        in_force()
        memory.remember(wanted)

    _put(mesh, wanted, memory, remembered, hand_over, yes=yes, first=first)


def _hand_over(mesh: Mesh, envelope: str, documents: Mapping[str, str]) -> None:
    """Gives the mesh the texts. They come after the manifest, which is in force by then."""
    from meshctl.documents import ROOM, missing, parts
    from topology.envelope import open_envelope

    for part in parts(documents, ROOM - len(envelope)):
        mesh.put(envelope, part)
    without = missing(documents, open_envelope(envelope, None).manifest)
    if documents:
        click.echo(f"app-compose texts for whoever verifies: {len(documents)} handed over")
        for name, group in without.items():
            click.echo(f"  none for {group}, compose hash {name}")


def _put(
    mesh: Mesh,
    wanted: Signed,
    memory: Memory,
    in_force: Callable[[], None],
    hand_over: Callable[[], None],
    *,
    yes: bool,
    first: bool,
) -> None:
    """Calls `in_force` once it is so, and `hand_over` once the records take texts. An older manifest may only complete
    the history: then neither.
    """
    from topology.succession import Fault, SuccessionError, follow

    envelope = wanted.envelope
    try:
        head, waits = mesh.known(envelope)
    except RefusedError as refusal:
        if refusal.code != NO_MANIFEST:
            raise
        _check_first(mesh, wanted, memory, first=first)
        begin(mesh, wanted, yes=yes)
        in_force()
        hand_over()
        return
    click.echo(f"{mesh.url} is attested, and {'has' if waits else 'enforces'} {head.name}")
    if waits:
        click.echo(f"it waits: {waits}")
    try:
        found = follow(head, envelope)
    except SuccessionError as error:
        if error.fault is Fault.OLDER and _completes(mesh, envelope):
            return
        memory.check(mesh, head, wanted)
        if error.fault is Fault.IDENTICAL:
            if waits:
                mesh.put(envelope)
                click.echo(f"{mesh.url} goes on without those that {head.name} drops")
            else:
                click.echo(f"in force already: epoch {head.manifest.epoch}, digest {head.digest}")
            in_force()
            _confirm(mesh, head, hand_over, waits=bool(waits), joins=False)
            return
        remedy = "./mesh generate and sign again, after the one in force"
        raise UserError(f"not to be set: {error}", remedy, exit_code=1) from error
    memory.check(mesh, head, wanted)
    if not waits:
        # The owner's file follows that very one.
        memory.remember(head)
    _change(mesh, head, found, yes=yes)
    known = {peer.peer_id for peer in head.manifest.coordinators.peers}
    joins = any(peer.peer_id not in known for peer in found.manifest.coordinators.peers)
    in_force()
    _confirm(mesh, found, hand_over, waits=bool(waits), joins=joins)


def _check_first(mesh: Mesh, wanted: Signed, memory: Memory, *, first: bool) -> None:
    """Returns when a coordinator without a manifest may begin with `wanted`. UserError."""
    memory.check_first(mesh, wanted)
    # New coordinators that are handed the mesh bring the manifest to the former ones themselves.
    taken_over = wanted.manifest.coordinators.handover is not None
    if wanted.manifest.previous is not None and not (first or taken_over):
        raise UserError(
            f"{mesh.url} has no manifest, and {wanted.name} follows another one: its coordinators lost their "
            "records, or another one answers at this URL than you know",
            "-c with another coordinator; or --first, when all of them lost their records",
            exit_code=1,
        )


def _change(mesh: Mesh, head: Signed, found: Signed, *, yes: bool) -> None:
    """Shows what `found` changes, asks, and puts it in force in the place of `head`. UserError."""
    _show(head, found)
    if not yes:
        _ask(f"Set {found.name} on {mesh.name}?")
    now = mesh.put(found.envelope)
    if now.digest != found.digest:
        raise UserError(f"{mesh.url} answers with {now.name}", "./mesh status", exit_code=1)
    click.echo(f"set: epoch {now.manifest.epoch}, digest {now.digest}")


def _ask(question: str) -> None:
    """UserError unless the person says yes."""
    from runtime.confirm import confirm

    if not confirm(question):
        remedy = "" if sys.stdin.isatty() else "no terminal answers here; with --yes there is no question"
        raise UserError("nothing was set", remedy, exit_code=1)


def _confirm(mesh: Mesh, found: Signed, hand_over: Callable[[], None], *, waits: bool, joins: bool) -> None:
    """Hands the texts over and asks every coordinator. One that waited for the owners' word takes texts afterwards."""
    if not waits:
        hand_over()
    confirm_everywhere(mesh, found, BEGIN_SECONDS if joins or waits else FOLLOW_SECONDS)
    if waits:
        hand_over()


def _show(head: Signed, found: Signed) -> None:
    """What `found` changes, and what a person should know before it is set."""
    from meshctl.manifest_changes import compare, warnings
    from meshctl.plan import print_changes

    changes = compare(head.manifest, found.manifest)
    if changes:
        print_changes(changes, f"{head.name} to {found.name}", "what becomes of it")
    else:
        click.echo(f"{found.name} says the same as {head.name}")
    for warning in warnings(head.manifest, found.manifest):
        click.echo(f"warning: {warning}", err=True)


def _completes(mesh: Mesh, envelope: str) -> bool:
    """Whether the coordinator lacked the manifest in `envelope` in its history, and keeps it now."""
    try:
        head = mesh.put(envelope)
    except RefusedError:
        return False
    click.echo(f"kept: the history lacked it. In force is epoch {head.manifest.epoch}, digest {head.digest}")
    return True


def confirm_everywhere(mesh: Mesh, found: Signed, seconds: float = FOLLOW_SECONDS) -> None:
    """Returns when every coordinator of the manifest `found` enforces it; UserError that names those that do not.

    One coordinator's word is not enough: a host can let a second mesh of the same app answer at its URL.
    """
    from topology.allowed import coordinators

    deadline = time.monotonic() + seconds
    missing = []
    for peer in coordinators(found.manifest):
        while (reason := _why_not_enforced(replace(mesh, url=peer.url), found)) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        if reason:
            missing.append(f"{peer.peer_id}: {reason}")
    if missing:
        raise UserError(
            "not seen in force on all coordinators:\n" + "\n".join(missing),
            "see to those that do not answer, then ./mesh set again: it changes nothing where it is in force",
            exit_code=1,
        )


def _why_not_enforced(one: Mesh, found: Signed) -> str:
    try:
        head = one.head(found.envelope)
    except UserError as error:
        return error.message
    return "" if head.digest == found.digest else f"{one.url} enforces {head.name}"


def begin(mesh: Mesh, found: Signed, *, yes: bool) -> None:
    """Sets the first manifest on every coordinator of it that waits for one. UserError when one could not be set.

    They found the mesh together, so each has to be given it; one that was given it already is left alone.
    """
    from meshctl.manifest import summary
    from topology.allowed import coordinators

    click.echo(f"{mesh.url} is attested, and waits for its first manifest")
    summary(found.manifest)
    if not yes:
        _ask(f"Begin with {found.name}?")
    urls = (mesh.url, *(peer.url for peer in coordinators(found.manifest)))
    reasons = {url: _why_not_begun(replace(mesh, url=url), found) for url in dict.fromkeys(urls)}
    deadline = time.monotonic() + FOLLOW_SECONDS
    while any(reasons.values()) and time.monotonic() < deadline:
        # One that another coordinator has given it to does not listen for a moment.
        time.sleep(LOOK_SECONDS)
        reasons = {url: reason and _why_not_begun(replace(mesh, url=url), found) for url, reason in reasons.items()}
    if missing := [reason for reason in reasons.values() if reason]:
        raise UserError("not set on all coordinators:\n" + "\n".join(missing), "set it again for these", exit_code=1)
    click.echo("set on all; they begin together")
    confirm_everywhere(mesh, found, BEGIN_SECONDS)
    click.echo(f"set: epoch {found.manifest.epoch}, digest {found.digest}")


def _why_not_begun(one: Mesh, found: Signed) -> str:
    """Gives `found` to the coordinator of `one`, if it waits for one. Why that one does not begin with it, else ""."""
    try:
        head = _given(one, found)
    except RefusedError as refusal:
        # With NOT_READY it has one, from us or from another coordinator, and says which when all have begun.
        return "" if refusal.code == NOT_READY else f"{one.url}: {refusal.message}"
    except UserError as error:
        return f"{one.url}: {error.message}"
    return "" if head.digest == found.digest else f"{one.url} has another manifest: {head.name}"


def _given(one: Mesh, found: Signed) -> Signed:
    """The manifest that the coordinator of `one` has; `found` where it had none. RefusedError."""
    try:
        return one.head(found.envelope)
    except RefusedError as refusal:
        if refusal.code != NO_MANIFEST:
            raise
    head = one.put(found.envelope)
    click.echo(f"set on {one.url}")
    return head


@click.command()
@click.option("-c", "--coordinator", "url", metavar="URL", help="A coordinator's URL. Default: a lab that runs here.")
@click.option(
    "-m", "--manifest", "file", type=click.Path(path_type=Path), help="The signed manifest; in a lab also a draft."
)
@click.option("--edit", is_flag=True, help="In a lab: edit what is in force, sign and set it.")
@click.option(
    "--draft", type=click.Path(path_type=Path), help="In a lab: write what is in force as a draft; set nothing."
)
@click.option("--first", is_flag=True, help="Begin with it where coordinators lost every manifest.")
@click.option(
    "--documents",
    type=click.Path(path_type=Path),
    help="Folder of app-compose texts for whoever verifies. Default: app-compose beside the manifest.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--name", help="Which lab, when several run.")
@click.option("--pccs", default=PCCS, show_default=True, metavar="URL", help="Where Intel's collateral comes from.")
@click.option(
    "--insecure-root",
    type=click.Path(path_type=Path),
    help="Trust this root (PEM or DER) instead of Intel's: for the simulated TEE of a lab.",
)
def command(
    url: str | None,
    file: Path | None,
    edit: bool,
    draft: Path | None,
    first: bool,
    documents: Path | None,
    yes: bool,
    name: str | None,
    pccs: str,
    insecure_root: Path | None,
) -> None:
    """Set the next manifest on a mesh that runs: shows what changes for whom, asks, and sets it.

    The coordinator has to prove first that it is what this manifest demands. Nothing restarts. In a lab without -c the
    lab's own owner signs: --draft FILE, edit it, --manifest FILE; or --edit.
    """
    if sum(it is not None for it in (file, draft)) + edit != 1:
        raise UserError(
            "say what to set: one of --manifest FILE, --edit and --draft FILE",
            f"--manifest {'manifest.signed' if url is not None else 'manifest.lab.signed'}",
        )
    if url is not None:
        if file is None:
            raise UserError("--edit and --draft are for labs", "./mesh generate and sign, then --manifest FILE")
        envelope = _envelope(_read(file), file, None)
        texts = _documents(documents, file, envelope)
        put(owner_access.deployed(url, pccs, insecure_root), envelope, yes=yes, first=first, documents=texts)
        return
    here = owner_access.lab(name)
    if draft is not None:
        draft.write_text(_pretty(here.draft()), encoding="utf-8")
        click.echo(f"written: {draft}\nedit it, then: ./mesh set --manifest {draft}")
        return
    envelope = _edited(here) if file is None else _envelope(_read(file), file, here)
    put(here.mesh, envelope, yes=yes, first=first, documents=_documents(documents, file, envelope))


def _documents(folder: Path | None, file: Path | None, envelope: str) -> dict[str, str]:
    from meshctl.documents import beside, read
    from topology.envelope import open_envelope

    place = folder or (beside(file) if file is not None else None)
    if place is None:
        return {}
    found, others = read(place, open_envelope(envelope, None).manifest)
    for name in others:
        click.echo(f"{place / name} is not handed over: this manifest does not name its hash", err=True)
    return found


def _edited(here: Lab) -> str:
    text = click.edit(_pretty(here.draft()), extension=".json")
    if text is None:
        raise UserError("nothing was changed", exit_code=1)
    return _envelope(text, "what you wrote", here)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read: {error}",
            "./mesh sign writes it: manifest.signed, and manifest.lab.signed for a lab",
        ) from error


def _envelope(text: str, source: object, here: Lab | None) -> str:
    """The envelope in `text`; of a draft, as the owner of the lab `here` signs it. UserError."""
    from topology.envelope import open_envelope
    from topology.manifest import decode
    from topology.trees import ManifestError

    text = text.strip()
    try:
        if not text.startswith("{"):
            return open_envelope(text, None).envelope
        if here is not None:
            return here.sign(decode(text.encode()))
    except ManifestError as error:
        raise UserError(f"{source}: {error}", "mend it, or take --draft FILE again") from error
    raise UserError(f"{source} is a draft that nobody has signed", "./mesh sign CLUSTER")


def _pretty(manifest: Manifest) -> str:
    from topology.manifest import encode

    return json.dumps(json.loads(encode(manifest)), indent=2, sort_keys=True) + "\n"
