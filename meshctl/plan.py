"""`./mesh plan`: what a change to a cluster will do, before `terraform apply`. Reads folders, git, states; prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshctl.errors import UserError, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from meshctl.plan_changes import Change, Plan
    from meshctl.plan_snapshot import Snapshot
    from topology.manifest import Manifest

_SETTINGS = ("region", "kms", "size", "attestation", "rendezvous")
_SIGNS = {"add": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red")}
_WIDTH = 160
_CALLS_WIDTH = 80
"""Columns of the tables of what holds afterwards: they are read on any terminal, and in a review."""


@click.command()
@click.argument("cluster", default="starter")
@click.option(
    "--against",
    metavar="FOLDER|GIT-REF|STATE.json",
    help="What exists: a cluster folder, this folder at a git revision, or Terraform's state. Default: HEAD.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the plan as JSON (docs/cli.md); `-`: to stdout.")
def command(cluster: str, against: str | None, json_file: str | None) -> None:
    """Show what changing CLUSTER will do: CVMs, routes, VIPs, ports, permissions, secrets, images.

    For each change it says what that does to CVMs on Phala Cloud: which are made, deleted, replaced or restarted.
    """
    from meshctl.bring_up import cluster_folder
    from meshctl.plan_changes import compare

    folder = cluster_folder(cluster)
    after = _snapshot(folder, folder.name, deployed=False)
    label, before = _before(folder, against)
    plan = compare(before, after, label)
    if json_file is not None:
        text = json.dumps(plan.document(), indent=2) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
            _warn_of_refusal(folder)
            return
        Path(json_file).write_text(text, encoding="utf-8")
    _print(plan)
    _warn_of_refusal(folder)


def _warn_of_refusal(folder: Path) -> None:
    """Says what `terraform plan` will refuse although a mesh on one machine takes it: images by tag.

    The plan is right all the same, and reading it comes before pinning: no reason for an exit code.
    """
    from topology.cluster import ClusterError, load

    try:
        load(folder, deployable=True)
    except ClusterError as error:
        count = len(error.problems)
        click.echo(f"warning: terraform apply will refuse {folder.name} for {count} problem(s):\n{error}", err=True)


def _snapshot(folder: Path, name: str, *, deployed: bool = True) -> Snapshot:
    """The cluster in `folder`. `deployed`: it runs, so nobody asks whether its programs will start."""
    from meshctl import compose_variables
    from meshctl.manifest_keys import compose_files
    from meshctl.plan_snapshot import of_cluster
    from topology.cluster import ClusterError, load

    try:
        found = load(folder)
        if not deployed:
            compose_variables.check(found)
        texts = {app: path.read_text(encoding="utf-8") for app, path in compose_files(found).items()}
    except ClusterError as error:
        count = len(error.problems)
        raise UserError(f"{name} has {count} problem(s):\n{error}", "mend the entries named above") from error
    return of_cluster(found, texts, _settings(folder))


def _settings(folder: Path) -> dict[str, Any]:
    """The variables that only Terraform uses. What cannot be evaluated is not compared: Terraform will say so."""
    from topology.hcl import Module
    from topology.problems import Problems

    module = Module(folder, Problems())
    module.read()
    found = {}
    for name in _SETTINGS:
        node = module.variable(name)
        if not isinstance(node, str):
            found[name] = _plain(node.value)
    return found


def _plain(value: Any) -> Any:
    from topology.expressions import Node

    if isinstance(value, dict):
        return {key: _plain(item.value if isinstance(item, Node) else item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item.value if isinstance(item, Node) else item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None


def _before(folder: Path, against: str | None) -> tuple[str, Snapshot | None]:
    """What exists, with a name for it."""
    from meshctl.plan_snapshot import of_state
    from topology.problems import ClusterError

    if against is None:
        return _default(folder)
    path = Path(against)
    if path.is_dir():
        return str(path), _snapshot(path, str(path))
    if path.is_file():
        try:
            return str(path), of_state(path.read_text(encoding="utf-8"), _signed(folder))
        except (ClusterError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}", "--against terraform.tfstate") from error
    if path.suffix in (".json", ".tfstate"):
        raise UserError(
            f"--against {against}: there is no such file", "terraform -chdir=CLUSTER show -json > state.json"
        )
    found = _at_revision(folder, against)
    if found is None:
        raise UserError(
            f"--against {against}: no folder, no file, and no git revision at which {folder.name} has a cluster.tf",
            "--against HEAD~1, --against main, a cluster folder, or terraform.tfstate",
        )
    return against, found


def _default(folder: Path) -> tuple[str, Snapshot | None]:
    if not _is_ref(folder, "HEAD"):
        return "nothing (this folder is in no git checkout)", None
    found = _at_revision(folder, "HEAD")
    return ("HEAD", found) if found is not None else ("nothing (HEAD has no such cluster)", None)


def _is_ref(folder: Path, text: str) -> bool:
    return _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}") is not None


def _signed(folder: Path) -> Manifest | None:
    """The signed manifest of the folder, which is what routes and rights there are; None before the first."""
    from meshctl import manifest_sign as signing
    from topology.cluster import load

    found = signing.head(load(folder))
    return found.manifest if found else None


def _at_revision(folder: Path, revision: str) -> Snapshot | None:
    """The folder at a git revision, with today's variables where it has no terraform.tfvars of its own."""
    if not _is_ref(folder, revision):
        return None
    names = _git(folder, "ls-tree", "-r", "-z", "--name-only", revision, ".")
    files = {name: _git(folder, "show", f"{revision}:./{name}") for name in (names or b"").decode().split("\0") if name}
    if "cluster.tf" not in files:
        return None
    with tempfile.TemporaryDirectory(prefix="cvm-mesh-plan-") as place:
        old = Path(place)
        for name, content in files.items():
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            (old / name).write_bytes(content or b"")
        tfvars = folder / "terraform.tfvars"
        if tfvars.exists() and "terraform.tfvars" not in files:
            known = _declared(old)
            kept = [text for name, text in _assignments(tfvars) if name in known]
            (old / "terraform.tfvars").write_text("".join(kept), encoding="utf-8")
        try:
            return _snapshot(old, f"{folder.name} at {revision}")
        except UserError as error:
            # The place that is named must be one that can still be looked at.
            raise UserError(error.message.replace(f"{place}/", f"{revision}:./"), error.remedy) from error


def _declared(folder: Path) -> set[str]:
    from topology.hcl import Module
    from topology.problems import Problems

    module = Module(folder, Problems())
    module.read()
    return set(module.variables)


def _assignments(tfvars: Path) -> list[tuple[str, str]]:
    """Name and text of each assignment of a terraform.tfvars."""
    from topology.hcl import Module
    from topology.problems import Problems

    module = Module(tfvars.parent, Problems())
    module.read()
    return [
        (
            name,
            f"{name} = {expression.source.text[expression.syntax.meta.start_pos : expression.syntax.meta.end_pos]}\n",
        )
        for name, expression in module.given.items()
    ]


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None when it fails or is not here."""
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None


def print_changes(changes: Sequence[Change], title: str, effect: str) -> None:
    """The table of `changes`; `effect` heads the column of what becomes of each."""
    _console().print(_table(changes, title, effect))


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH, highlight=False)


def _table(changes: Sequence[Change], title: str, effect: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    rows = []
    for change in changes:
        sign, _ = _SIGNS[change.action]
        told = f"{change.effect}: {change.note}" if change.note else change.effect
        rows.append((sign, change.kind, change.name, *_cells(change), told))
    titles = ("", "what", "name", "before", "after", effect)
    # Where everything is new there is no before, and the others need its columns.
    used = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    for index in used:
        table.add_column(titles[index], overflow="fold", no_wrap=titles[index] in ("", "what"))
    for change, row in zip(changes, rows, strict=True):
        table.add_row(*(_escape(row[index]) for index in used), style=_SIGNS[change.action][1])
    return table


def _print(plan: Plan) -> None:
    console = _console()
    for warning in plan.warnings:
        console.print(f"! {warning}", style="yellow", markup=False)
    if not plan.changes:
        console.print(f"{plan.cluster} against {plan.against}: nothing changes", markup=False)
        _print_afterwards(plan, console.width)
        return
    console.print(_table(plan.changes, f"{plan.cluster} against {plan.against}", "on Phala Cloud"))
    _print_summary(plan, console)
    _print_afterwards(plan, console.width)


def _print_afterwards(plan: Plan, width: int) -> None:
    """What listens where, who may call what, and what programs may dial beside that."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=min(_CALLS_WIDTH, width), highlight=False)
    listens = Table(title="What listens where", title_justify="left")
    for title in ("backend", "where", "mode", "may be called by"):
        listens.add_column(title, overflow="fold", no_wrap=title == "where")
    for listener in plan.listens:
        listens.add_row(*map(_escape, listener.row()))
    if plan.listens:
        console.print(listens)
    table = Table(title="Who may call what", title_justify="left")
    for title in ("group", "may call", "may be called by"):
        table.add_column(title, overflow="fold", no_wrap=title == "group")
    for calls in plan.calls:
        table.add_row(*map(_escape, calls.row()))
    console.print(table)
    egress = Table(title="What programs may dial beside routes", title_justify="left")
    for title in ("egress", "at", "mode", "leads to"):
        egress.add_column(title, overflow="fold", no_wrap=title == "mode")
    for it in plan.dialled:
        egress.add_row(*map(_escape, it.row()))
    if plan.dialled:
        console.print(egress)


def _print_summary(plan: Plan, console: Any) -> None:
    from meshctl.plan_changes import EFFECTS

    used = dict.fromkeys(change.effect for change in plan.changes)
    for effect, meaning in EFFECTS.items():
        if effect in used:
            cvms = plan.cvms(effect)
            count = f" ({len(cvms)}: {', '.join(cvms)})" if cvms else ""
            console.print(f"{effect}: {meaning}{count}", markup=False)
    if plan.needs_manifest:
        console.print(
            "afterwards: ./mesh generate, sign, set; until then only what the manifest in force has is admitted"
        )


def _cells(change: Change) -> tuple[str, str]:
    """Before and after; of two tables only what differs."""
    before, after = change.before, change.after
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        before, after = ({key: table[key] for key in keys if key in table} for table in (before, after))
    return _show(before), _show(after)


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        told = {key: item for key, item in value.items() if item not in (None, [], False) or len(value) < 3}
        return ", ".join(f"{key} {_show(item) or '-'}" for key, item in told.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape("\n".join(printable(line) for line in text.split("\n")))
