"""What an owner does to a lab, as the demos do it: generate, sign, set, verify, on a copy of a cluster's files.

Each step is the function of the command that it shows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from meshctl import documents, generate, owner_access, runs, set_command, tour, verify
from meshctl import manifest as manifests
from meshctl.console import Progress
from meshctl.errors import UserError
from meshctl.generate_sources import in_lab
from meshctl.trust_load import Spread, following
from meshctl.trust_report import Finding, line_of, next_steps, summary

if TYPE_CHECKING:
    from topology.manifest import Manifest

T = TypeVar("T")
LATE_SECONDS = 120.0
"""For what takes a boot, an admission or coordinators that come back: some 10 s on a quiet machine."""


@dataclass(slots=True, kw_only=True)
class Owner:
    """The owner of a lab that runs."""

    run: runs.Run
    folder: Path
    """Of the cluster's copy."""
    progress: Progress
    findings: list[Finding] = field(default_factory=list)
    envelopes: list[str] = field(default_factory=list)
    """Of every manifest that was in force, the oldest first."""

    @property
    def draft(self) -> Path:
        """What generate writes, and people edit."""
        return self.folder / manifests.DRAFT

    def lab(self) -> owner_access.Lab:
        """How its owner reaches the mesh. UserError."""
        return owner_access.lab(self.run.name)

    def generate(self) -> Manifest:
        """`./mesh generate`: the manifest of the cluster's files and of what runs. UserError."""
        accepted = generate.Accepted(images=None, pre_launch=frozenset(), keep_hashes=False)
        site = in_lab(self.run, self.folder)
        return generate.generate(site, accepted, self.draft, check=False, cluster=str(self.folder))

    def set(self, made: Manifest, peers: Collection[str], *, already: bool = False) -> Spread:
        """Signs and sets `made`; when it had come to all `peers`. `already`: the command was shown."""
        from topology.envelope import open_envelope

        here = self.lab()
        envelope = here.sign(made)
        if not already:
            command(f"sign {self.folder}")
            command(f"set --manifest {manifests.LAB_SIGNED} --yes")
        with following(self.run, open_envelope(envelope, None).digest, peers) as spread:
            texts = documents.read(self.folder / documents.FOLDER, made)[0]
            set_command.put(here.mesh, envelope, yes=True, documents=texts)
            found = spread.result()
        self.envelopes.append(envelope)
        return found

    def verify(self, *options: str) -> None:
        """`./mesh verify` with these options. UserError."""
        verify.command.main(args=["--name", self.run.name, *options], standalone_mode=False)

    def until(self, condition: Callable[[], T], what: str) -> T:
        """What `condition` gives once it is true. UserError where that takes too long."""
        return tour.until(condition, what, self.progress, LATE_SECONDS)

    def time(self, what: str, seconds: float, aim: float) -> None:
        """A time that is aimed at: a busy machine may miss it, and nothing was lost."""
        self._add(Finding(what=what, found=f"{seconds:.2f} s", aim=f"< {aim:g} s", met=seconds < aim))

    def fact(self, what: str, found: str, met: bool, aim: str) -> None:
        """What has to be so: the walk fails at its end where it is not."""
        self._add(Finding(what=what, found=found, aim=aim, met=met, fatal=True))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        click.echo(line_of(finding).strip())

    def finish(self) -> None:
        """The table, and what a person may do now. UserError, with exit code 1, where a fact is not as it has to be."""
        click.echo("\n" + "\n".join(summary(self.findings)))
        click.echo(next_steps(self.run.name, self.folder))
        if failed := [it.what for it in self.findings if it.fatal and not it.met]:
            raise UserError(
                f"not as it has to be: {'; '.join(failed)}", f"./mesh status --name {self.run.name}", exit_code=1
            )


def copy_of(cluster: str, run: runs.Run) -> Path:
    """A copy of a shipped cluster's files, without what belongs to one deployment, in a new folder that goes with the
    mesh `run`.
    """
    folder = runs.create_files(run) / cluster
    ignored = shutil.ignore_patterns(".terraform*", "manifest*")
    shutil.copytree(runs.CHECKOUT / "clusters" / cluster, folder, ignore=ignored)
    return folder


def title(text: str) -> None:
    """Says what comes now."""
    click.secho(f"\n{text}", bold=True)


def command(text: str) -> None:
    """Shows a command of `./mesh` as a person would type it."""
    click.secho(f"$ ./mesh {text}", fg="cyan")
