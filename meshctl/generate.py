"""`./mesh generate`: the manifest of a cluster as it runs, merged with what a person made of the last one.

Reads the cluster's files, asks the lab or Terraform what was measured, writes two files: the manifest, for people to
read and edit, and what was generated, which the next run needs to tell an edit from what it wrote itself.

Long because it is one command: each option stands beside what it lets in, and each refusal beside what it names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshctl import documents
from meshctl import manifest as manifests
from meshctl.errors import UserError
from meshctl.generate_platform import NOTHING_SAID, Word
from meshctl.generate_sources import (
    LAB,
    OUTPUTS,
    PREFLIGHT,
    Site,
    beside,
    deployed,
    foreseen,
    in_lab,
    lab_of,
    os_images,
    other_labs,
    read_json,
)
from meshctl.writing import write

if TYPE_CHECKING:
    from meshctl.manifest_facts import Reviewed
    from topology.envelope import Signed
    from topology.manifest import Manifest
    from topology.merge import Difference
    from topology.references import OsImage

PLACE = ("epoch", "previous")
"""Fields of a manifest that say after which one it comes: never merged, always as the manifest in force wants it."""
ADD, LEAVE = "add", "leave"
SHOWN = 100
"""Characters of a value in a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What the person lets in that no file of the cluster says."""

    images: tuple[OsImage, ...] | None
    """None: those that are reported."""
    pre_launch: frozenset[str]
    keep_hashes: bool
    platform: Word = NOTHING_SAID
    """Of what only the cloud says."""
    lacking: str | None = None
    """ADD or LEAVE: what becomes of entries that the draft lacks, where nothing says what was generated last."""


@click.command()
@click.argument("cluster")
@click.option(
    "--from",
    "kind",
    type=click.Choice([LAB, PREFLIGHT, OUTPUTS]),
    help="Default: the lab, where one of this cluster runs; else Terraform's outputs.",
)
@click.option(
    "--preflight",
    type=click.Path(path_type=Path),
    help="What the cloud says that the next revisions will measure (docs/deploying.md has its form).",
)
@click.option(
    "--outputs",
    type=click.Path(path_type=Path),
    help="What `terraform output -json deployment` printed. Default: ask Terraform.",
)
@click.option(
    "--os-images",
    "images",
    type=click.Path(path_type=Path),
    help="JSON list of the OS images that you approve (docs/deploying.md).",
)
@click.option("--take-reported-images", is_flag=True, help="Approve the OS images that are reported. A lab's always.")
@click.option(
    "--key-provider", "key_provider", metavar="ID", help="Key of your KMS, hex, from which the apps' keys are."
)
@click.option("--take-reported-provider", is_flag=True, help="Take the key provider that is reported, the first time.")
@click.option(
    "--accept-platform-change",
    is_flag=True,
    help="Take another key provider, or other reported OS images, than the manifest before has.",
)
@click.option("--accept-pre-launch", multiple=True, metavar="SHA256", help="A pre-launch script that you have read.")
@click.option(
    "--keep-hashes", is_flag=True, help="Also let revisions in that the manifest in force allows, for an update."
)
@click.option(
    "--lacking",
    type=click.Choice([ADD, LEAVE]),
    help="Where manifest.generated.json is lost: add what the draft lacks, or leave it out, as you had removed it.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 and the difference where a run would write.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it. Default: manifest.json in the folder.")
@click.option("--name", help="Which lab, when several run.")
def command(
    cluster: str,
    kind: str | None,
    preflight: Path | None,
    outputs: Path | None,
    images: Path | None,
    take_reported_images: bool,
    key_provider: str | None,
    take_reported_provider: bool,
    accept_platform_change: bool,
    accept_pre_launch: tuple[str, ...],
    keep_hashes: bool,
    lacking: str | None,
    check: bool,
    out: Path | None,
    name: str | None,
) -> None:
    """Make the manifest of CLUSTER as it runs, for you to read, edit and sign.

    Every app's measured app-compose.json is compared with the files here; what differs is refused, what cannot be
    compared is listed. What you edited in the last one stays; where you and a change of the cluster differ, both values
    are shown and nothing is written.
    """
    from meshctl.bring_up import cluster_folder

    folder = cluster_folder(cluster)
    if (kind == PREFLIGHT) != (preflight is not None):
        raise UserError("--from preflight and --preflight FILE belong together", "--from preflight --preflight FILE")
    run = lab_of(folder, name) if kind in (LAB, None) and outputs is None else None
    if run is None and kind == LAB:
        raise UserError(f"no lab of {cluster} runs", f"./mesh up {cluster}, or --from {OUTPUTS}")
    if run is None and preflight is None and (images is None) == (not take_reported_images):
        others = other_labs(folder) if kind is None and outputs is None else ""
        raise UserError(
            f"{others}say which OS images may run: exactly one of --os-images FILE and --take-reported-images",
            "--os-images FILE (docs/deploying.md has its form)\n--take-reported-images (trusts the cloud's word)",
        )
    accepted = Accepted(
        images=os_images(images) if images else None,
        pre_launch=frozenset(accept_pre_launch),
        keep_hashes=keep_hashes,
        platform=Word(
            key_provider=key_provider,
            take_provider=take_reported_provider,
            images_pinned=images is not None,
            change=accept_platform_change,
        ),
        lacking=lacking,
    )
    if run is not None:
        site = in_lab(run, folder)
    else:
        loaded = manifests.load_cluster(cluster)
        site = foreseen(loaded, preflight) if preflight else deployed(loaded, outputs)
    generate(site, accepted, out or folder / manifests.DRAFT, check=check, cluster=cluster)


def generate(site: Site, accepted: Accepted, target: Path, *, check: bool, cluster: str) -> Manifest:
    """Makes, or with `check` only compares, the manifest in `target`; what it is now. UserError."""
    from meshctl import generate_base
    from topology.merge import ABSENT, differences, merge

    reviewed = review(site, accepted)
    computed = tree_of(rendered(site, reviewed))
    edited, generated = read(target, site.mesh)
    notes = (*reviewed.notes, *_platform(site, reviewed, edited, accepted))
    if site.kind == PREFLIGHT and generated is not ABSENT:
        # It says nothing of them, and those in force have what a person added.
        computed["references"] = generated["references"]
    base = generate_base.base(computed, reviewed.inherited, edited, generated)
    if edited is not ABSENT and generated is ABSENT:
        computed = _without_base(computed, edited, accepted.lacking, target)
    trees = [_placeless(each) for each in (generated, edited, computed)]
    if site.head is not None:
        base, *trees = (generate_base.not_below(each, site.head.manifest.rotate) for each in (base, *trees))
    merged = merge(*trees)
    if merged.conflicts:
        raise UserError(
            f"{target} was edited where the cluster has changed, too; nothing was written:\n"
            + "\n".join(map(str, merged.conflicts)),
            f"write the value that is right into {target}: the computed one, or change the cluster's files",
            exit_code=1,
        )
    made = placed(merged.tree, site.head, target)
    text = pretty(tree_of(made))
    kept = pretty({"from": site.mesh, "manifest": _placeless(base)})
    changes = differences({} if edited is ABSENT else _placeless(edited), merged.tree)
    if check:
        _check(changes, target, {target: text, beside(target): kept}, cluster)
        return made
    if edited is ABSENT:
        manifests.summary(made)
    else:
        _show(changes, "nothing changes")
    edits = differences(_placeless(base), merged.tree)
    _show_edits(edits)
    if edited is not ABSENT:
        _show_undone(site.head, made, (*changes, *edits))
    for note in notes:
        click.echo(f"look at: {note}")
    write(target, text)
    write(beside(target), kept)
    documents.keep(target.parent / documents.FOLDER, reviewed.documents, made)
    if site.head is not None and made == site.head.manifest:
        click.echo(f"\n{target} is in force: {site.head.name}")
    else:
        click.echo(f"\nwritten: {target}, epoch {made.epoch}\nread it, then: ./mesh sign {cluster}")
    return made


def _platform(site: Site, reviewed: Reviewed, edited: Any, accepted: Accepted) -> tuple[str, ...]:
    """What is to be looked at of what only the cloud says. UserError where nobody has let it in."""
    from meshctl import generate_platform

    if site.kind != OUTPUTS:
        # A lab is this machine's; a preflight says nothing of platforms.
        return ()
    [reported] = reviewed.deployment.references
    before = edited if isinstance(edited, dict) else tree_of(site.head.manifest) if site.head is not None else None
    found = generate_platform.judge(reported, before, accepted.platform)
    if found.problems:
        raise UserError("\n".join(found.problems), "docs/deploying.md, step 6", exit_code=1)
    return found.notes


def read(target: Path, kind: str) -> tuple[Any, Any]:
    """The manifest in `target` and what was generated for it, ABSENT for what is not there. UserError, also where it
    was generated from something else than `kind`.
    """
    from topology.merge import ABSENT

    edited, kept = read_json(target), read_json(beside(target))
    if kept is ABSENT:
        return edited, ABSENT
    if edited is ABSENT:
        # Nothing was edited, so nothing has to be told apart.
        return ABSENT, ABSENT
    if not isinstance(kept, dict) or not isinstance(kept.get("manifest"), dict):
        raise UserError(
            f"{beside(target)} is not what was generated last", "put it back; or remove it and the manifest"
        )
    if kept.get("from") != kind:
        raise UserError(
            f"{target} was generated from {kept.get('from')!r:.20}, and this is from {kind!r}: another mesh",
            "--out another-file.json",
        )
    return edited, kept["manifest"]


def review(site: Site, accepted: Accepted) -> Reviewed:
    """What is reported, held against the files. UserError with everything that does not fit."""
    from meshctl import manifest_facts as facts
    from meshctl import preflight
    from topology.problems import ClusterError

    try:
        if site.kind == PREFLIGHT:
            assert site.head is not None, "a preflight is for what runs"
            return preflight.review(
                site.cluster,
                preflight.read(site.report),
                site.files,
                pre_launch=accepted.pre_launch,
                owners=site.owners,
                head=site.head,
            )
        return facts.review(
            site.cluster,
            facts.read(site.report),
            site.files,
            images=accepted.images,
            pre_launch=accepted.pre_launch,
            earlier=site.head.manifest if accepted.keep_hashes and site.head else None,
            owners=site.owners,
            after=site.head,
        )
    except ClusterError as error:
        raise UserError(f"the deployment is not what these files say:\n{error}", "mend what is named above") from error


def rendered(site: Site, reviewed: Reviewed) -> Manifest:
    """The manifest that the cluster's files and the measurements give. UserError."""
    from topology import render
    from topology.problems import ClusterError

    try:
        return render.manifest(site.cluster, reviewed.deployment)
    except ClusterError as error:
        raise UserError(f"the deployment is not what these files say:\n{error}", "mend what is named above") from error


def placed(tree: Mapping[str, Any], head: Signed | None, target: Path) -> Manifest:
    """The manifest of `tree` as the one after `head`; `head` itself where nothing differs. UserError."""
    from topology.manifest import decode
    from topology.trees import ManifestError

    place: dict[str, Any] = {"epoch": 1, "previous": None}
    if head is not None:
        same = _placeless(tree_of(head.manifest)) == tree
        place = {"epoch": head.manifest.epoch + 1, "previous": head.digest}
        if same:
            place = {name: getattr(head.manifest, name) for name in PLACE}
    try:
        return decode(json.dumps({**tree, **place}).encode())
    except ManifestError as error:
        raise UserError(f"{target} with what was computed is no manifest: {error}", f"mend {target}") from error


def tree_of(manifest: Manifest) -> dict[str, Any]:
    """`manifest` as JSON has it."""
    from topology.manifest import encode

    tree: dict[str, Any] = json.loads(encode(manifest))
    return tree


def pretty(tree: object) -> str:
    """The one form in which it is written."""
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def lines(changes: Iterable[Difference]) -> list[str]:
    """A line for each difference. Pure."""
    from topology.merge import ABSENT

    found = []
    for it in changes:
        old, new = (None if value is ABSENT else _short(value) for value in (it.before, it.after))
        if old is None:
            found.append(f"+ {it.path} = {new}")
        elif new is None:
            found.append(f"- {it.path} = {old}")
        else:
            found.append(f"~ {it.path}: {old} → {new}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _without_base(computed: dict[str, Any], edited: Any, lacking: str | None, target: Path) -> dict[str, Any]:
    """What of `computed` is to be merged into the draft `edited` where nothing says what was generated last. UserError
    where nobody has said what becomes of the entries that the draft lacks.
    """
    from topology.merge import differences, shared

    found: dict[str, Any] = shared(computed, edited)
    new = lines(differences(_placeless(found), _placeless(computed)))
    if not new or lacking == ADD:
        return computed
    if lacking == LEAVE:
        return found
    kept = beside(target).name
    raise UserError(
        f"{beside(target)} is not there, so nothing says whether you removed from {target.name} what it lacks, or "
        "whether that is new; nothing was written:\n" + "\n".join(new),
        f"put {kept} back; or --lacking {ADD} adds all of it; or --lacking {LEAVE} leaves it out from now on",
        exit_code=1,
    )


def _show(changes: Iterable[Difference], otherwise: str) -> None:
    for line in lines(changes) or [otherwise]:
        click.echo(line)


def _show_undone(head: Signed | None, made: Manifest, shown: Iterable[Difference]) -> None:
    """What differs from the manifest in force and not from the draft: another owner set it since, and the draft has not
    got it.
    """
    from topology.merge import differences

    if head is None:
        return
    known = set(lines(shown))
    undone = [
        line
        for line in lines(differences(_placeless(tree_of(head.manifest)), _placeless(tree_of(made))))
        if line not in known
    ]
    if undone:
        click.echo(f"{head.name} is in force and has it otherwise; write into the draft what is to stay:")
        for line in undone:
            click.echo(f"  {line}")


def _show_edits(edits: Iterable[Difference]) -> None:
    for line in lines(edits):
        click.echo(f"kept, as edited by hand: {line}")


def _check(changes: Iterable[Difference], target: Path, texts: Mapping[Path, str], cluster: str) -> None:
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if not stale:
        click.echo(f"{target} is what a run would write")
        return
    shown = "\n".join(lines(changes)) or "its place in the history (epoch, previous), or its form"
    if target not in stale:
        # The next run would take an entry that it wrote itself for an edit, or an edit for its own.
        shown = "what was generated, from which the next run tells what you edited"
    raise UserError(f"a run would change {stale[0]}:\n{shown}", f"./mesh generate {cluster}", exit_code=1)


def _placeless(tree: Any) -> Any:
    return {name: value for name, value in tree.items() if name not in PLACE} if isinstance(tree, dict) else tree
