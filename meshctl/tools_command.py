"""`./mesh tools`: installs what is missing and shows where each tool is."""

from __future__ import annotations

import json
import os
import sys

import click

from meshctl import tools
from meshctl.console import Console


@click.command()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='Print {"kernel_wireguard", "tools": [{"name", "path", "source", "version"}]}.',
)
@click.option("--check", is_flag=True, help="Only look; build nothing. Exit code 1 when something is missing.")
def command(as_json: bool, check: bool) -> int:
    """Install the tools that the mesh runs and show where each one is.

    Looked for in this order: an explicit variable (MESH_CONSUL, MESH_ENVOY, MESH_POSTGRES, MESH_WIREGUARD_GO,
    MESH_WG), PATH, the package or cache that the set-up fills (MESH_CACHE, by default ~/.cache/cvm-mesh). What is
    missing is built from the modules pinned below tools/; docker-compose only when `./mesh compose` needs it. Consul
    is taken from its makers' archive, by pinned digest, where it can be had: MESH_CONSUL_RELEASES is the address of a
    mirror, or "off".
    """
    if not check:
        tools.ensure(progress=Console())
    rows = [_row(tool) for tool in tools.TOOLS.values()]
    kernel = tools.kernel_wireguard()
    if as_json:
        click.echo(json.dumps({"kernel_wireguard": kernel, "tools": rows}, indent=2))
    else:
        _print_table(rows, kernel)
    missing = [row for row in rows if row["path"] is None and row["name"] in tools.REQUIRED]
    return 1 if missing else 0


def _row(tool: tools.Tool) -> dict[str, str | None]:
    found = tools.search(tool, os.environ).found
    if found is None:
        return {"name": tool.name, "path": None, "source": None, "version": None}
    version = tools.version_of(tool, found.path)
    text = ".".join(map(str, version)) if version else None
    return {"name": tool.name, "path": str(found.path), "source": found.source, "version": text}


def _print_table(rows: list[dict[str, str | None]], kernel: bool) -> None:
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("TOOL", "VERSION", "FROM", "PATH"):
        table.add_column(title, overflow="fold")
    for row in rows:
        tool = tools.TOOLS[str(row["name"])]
        absent = "not installed (optional)" if tool.optional else "built when needed" if tool.on_demand else "missing"
        table.add_row(row["name"], row["version"] or "-", row["source"] or "-", row["path"] or absent)
    # Into a pipe or a file, paths stay whole; on a terminal they fold.
    terminal = sys.stdout.isatty()
    RichConsole(width=None if terminal else 250).print(table)
    click.echo(f"kernel WireGuard: {'yes' if kernel else 'no; wireguard-go is used'}")
