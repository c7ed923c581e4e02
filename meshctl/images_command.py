"""`./mesh images`: builds this project's images, and pins the references in compose files to digests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from meshctl import bring_up, engine, pins
from meshctl import images as builder
from meshctl.console import Console
from meshctl.errors import UserError
from meshctl.info import project_version


@click.group()
def images() -> None:
    """The images of this project."""


@images.command()
@click.argument("names", nargs=-1)
@click.option("--base", help="What to build on, instead of the pinned Debian or one made by debootstrap.")
@click.option("--fresh", is_flag=True, help="Ignore layers of earlier builds.")
@click.option("--twice", is_flag=True, help="Build twice from nothing and demand the same layers.")
@click.option("--tag", "tags", is_flag=True, help="Give the images their published names and version as well.")
@click.option(
    "--snapshot", metavar="20261101T000000Z", help="Debian's packages as they were then, not as they are now."
)
def build(names: tuple[str, ...], base: str | None, fresh: bool, twice: bool, tags: bool, snapshot: str | None) -> None:
    """Builds images (all published ones without NAMES) into the Docker engine, as cvm-mesh/NAME:local."""
    _known(names)
    debian = builder.snapshot(snapshot) if snapshot is not None else ""
    chosen = names or tuple(image.name for image in builder.IMAGES.values() if image.published)
    found, progress = engine.find(), Console()
    builder.build(found, chosen, progress, base=base, fresh=fresh or twice, debian=debian)
    layers = {name: builder.layers(found, name) for name in chosen}
    if twice:
        builder.build(found, chosen, progress, base=base, fresh=True, debian=debian)
        differing = [name for name in chosen if builder.layers(found, name) != layers[name]]
        if differing:
            raise UserError(f"built twice, other layers: {', '.join(differing)}", exit_code=1)
        click.echo(f"built twice, the same layers: {', '.join(chosen)}")
    for name in chosen:
        image = builder.IMAGES[name]
        if tags:
            found.run("tag", image.local, f"{image.repository}:{project_version()}")
        click.echo(f"{image.local} {' '.join(layers[name])}")


@images.command()
@click.argument("name")
def sbom(name: str) -> None:
    """Prints what is in the image NAME, which was built before, as a CycloneDX document."""
    from meshctl.sbom import of_image

    _known((name,))
    click.echo(of_image(engine.find(), builder.IMAGES[name], builder.epoch(os.environ)))


def _known(names: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(builder.IMAGES))
    if unknown:
        raise UserError(f"there is no image {unknown[0]!r}", f"images: {', '.join(builder.IMAGES)}")


@images.command()
@click.argument("clusters", nargs=-1, required=True)
@click.option("--digest", "digests", multiple=True, metavar="NAME:TAG=sha256:…", help="A digest; may be repeated.")
@click.option(
    "--digests", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON object of them."
)
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 when a reference has no digest.")
def pin(clusters: tuple[str, ...], digests: tuple[str, ...], file: Path | None, check: bool) -> int:
    """Rewrites the image references in the compose files of CLUSTERS to digests.

    Digests come from --digest, from --digests (what the publish workflow prints), or from the Docker engine, for
    images that it pulled.
    """
    known = _given(digests, file)
    found: engine.Engine | None = None
    loose = 0
    for path in _files(clusters):
        text = path.read_text(encoding="utf-8")
        for reference in pins.references(text):
            name, digest = pins.split(reference)
            if name in known or digest or check:
                loose += check and not digest
                continue
            found = found or engine.find()
            known |= _from_engine(found, name)
        if check:
            _tell_loose(path, text)
            continue
        try:
            changed = pins.pinned(text, known)
        except pins.PinError as error:
            raise UserError(f"{path}: {error}") from error
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            click.echo(f"pinned {path}")
    return 1 if loose else 0


def _tell_loose(path: Path, text: str) -> None:
    for reference in pins.references(text):
        if not pins.split(reference)[1]:
            click.echo(f"{path}: {reference} has no digest: its registry decides what runs; ./mesh images pin")


def _given(digests: tuple[str, ...], file: Path | None) -> dict[str, str]:
    known: dict[str, str] = {}
    if file is not None:
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is no JSON: {error}", 'write {"name:tag": "sha256:…"}') from error
        if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
            raise UserError(f"{file} holds no object of texts", 'write {"name:tag": "sha256:…"}')
        known |= tree
    for text in digests:
        name, equals, digest = text.rpartition("=")
        if not equals:
            raise UserError(f"--digest {text!r} is not of the form NAME:TAG=sha256:…")
        known[name] = digest
    return known


def _files(clusters: tuple[str, ...]) -> list[Path]:
    return [path for name in clusters for path in sorted((bring_up.cluster_folder(name) / "compose").glob("*.y*ml"))]


def _from_engine(found: engine.Engine, name: str) -> dict[str, str]:
    done = found.run("image", "inspect", "--format", "{{json .RepoDigests}}", name, check=False)
    digests = (
        [text.partition("@")[2] for text in (json.loads(done.stdout) or []) if "@" in text]
        if done.returncode == 0
        else []
    )
    if not digests:
        raise UserError(
            f"no digest of {name} is known: the engine has no pulled image of that name",
            f"docker pull {name}, or give it: --digest {name}=sha256:…",
        )
    return {name: digests[0]}
