"""`list` and `version`: what is here."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent


def project_version() -> str:
    """The version in pyproject.toml, or the installed distribution's when this is not a checkout."""
    try:
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    except FileNotFoundError:
        from importlib import metadata

        return metadata.version("cvm-mesh")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(as_json: bool) -> None:
    """Print the version of cvm-mesh and of the tools that it installs."""
    from meshctl import tools

    versions = {"cvm-mesh": project_version(), **{name: tools.TOOLS[name].version for name in tools.REQUIRED}}
    click.echo(json.dumps(versions) if as_json else "\n".join(f"{name} {text}" for name, text in versions.items()))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of names.")
def clusters(as_json: bool) -> None:
    """List the clusters in this checkout: each folder of clusters/ with a cluster.tf."""
    names = sorted(path.parent.name for path in (ROOT / "clusters").glob("*/cluster.tf"))
    if as_json:
        click.echo(json.dumps(names))
    elif names:
        click.echo("\n".join(f"clusters/{name}" for name in names))
    else:
        click.echo(f"no clusters in {ROOT / 'clusters'}", err=True)
