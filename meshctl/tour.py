"""The guided calls of `./mesh demo`: from inside an application container, and through the public entry."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from meshctl import runs
from meshctl.bring_up import Entry
from meshctl.errors import UserError

_FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=10).read().decode())"
_PATHS = {"api": ("/hello", "/worker", "/all"), "webdemo": ("/hello", "/all")}
"""What the demo programs serve; other public groups are asked for /hello."""


def tour(run: runs.Run, document: dict[str, Any], entries: tuple[Entry, ...]) -> None:
    """Makes the calls and prints each with its answer; UserError when one fails."""
    for entry in entries:
        peer = next(p["peer_id"] for p in document["peers"] if p["group"] == entry.group)
        port = next(r["port"] for p in document["peers"] for r in p["routes"] if r["name"] == entry.group)
        inside = f"http://{entry.group}:{port}"
        for path in _PATHS.get(entry.group, ("/hello",)):
            _show(f"in {peer}: GET {inside}{path}", partial(_from_inside, run, peer, inside + path))
        for path in _PATHS.get(entry.group, ("/hello",)):
            _show(f"public entry: GET {entry.url}{path}", partial(_from_outside, entry.url + path))


def _show(title: str, call: Callable[[], str]) -> None:
    click.secho(f"$ {title}", fg="cyan")
    click.echo("  " + call().strip().replace("\n", "\n  "))


def _from_inside(run: runs.Run, peer: str, url: str) -> str:
    from meshctl.lab_commands import exec_argv

    argv = exec_argv(run, peer, None, (sys.executable, "-S", "-c", _FETCH, url))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=runs.CHECKOUT, check=False)
    if done.returncode != 0:
        raise UserError(
            f"calling {url} inside {peer} failed: {done.stderr.strip().splitlines()[-1:]}", f"./mesh logs {peer}"
        )
    return done.stdout


def _from_outside(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError) as error:
        raise UserError(f"calling {url} failed: {error}", "./mesh status") from error
