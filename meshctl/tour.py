"""The guided calls of `./mesh demo`: from inside an application container, through the public entry, and (where the
cluster has a leader) what happens when the leader is lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Container
from functools import partial
from typing import Any, TypeVar

import click

from meshctl import runs, status
from meshctl.bring_up import Entry
from meshctl.console import Progress, elapsed
from meshctl.errors import UserError

T = TypeVar("T")
_FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=10).read().decode())"
_PATRONI_CONFIG = "/run/patroni/patroni.yml"
_PATHS = {
    "api": {"/hello": "api", "/worker": "worker", "/all": "worker"},
    "webdemo": {"/hello": "webdemo", "/all": "webdemo", "/db": "postgres-master"},
}
"""What the demo programs serve, and the route that each answer needs."""


def tour(run: runs.Run, document: dict[str, Any], entries: tuple[Entry, ...], progress: Progress) -> None:
    """Makes the calls and prints each with its answer; UserError when one to a demo program fails."""
    routes = {r["name"]: r["port"] for p in document["peers"] for r in p["routes"]}
    for entry in entries:
        peer = next(p["peer_id"] for p in document["peers"] if p["group"] == entry.group)
        paths = paths_of(entry.group, routes)
        if "/db" in paths:
            _wait_for_database(entry, progress)
        # A program of the user's own: whatever it answers shows the way to it, and what it serves is not known here.
        foreign = not paths
        if entry.group in routes:
            inside = f"http://{entry.group}:{routes[entry.group]}"
            for path in paths or ("/",):
                call = partial(_from_inside, run, peer, inside + path)
                _show(f"in {peer}: GET {inside}{path}", partial(_anything, call) if foreign else call)
        if entry.url.startswith("https:"):
            # Whoever asks there has to verify first, and `./mesh demo emojivoto` shows how.
            continue
        for path in paths or ("/",):
            if path == "/db":
                _show_database(entry)
                continue
            call = partial(_from_outside, entry.url + path)
            _show(f"public entry: GET {entry.url}{path}", partial(_anything, call) if foreign else call)


def paths_of(group: str, routes: Container[str]) -> tuple[str, ...]:
    """What a public group that is one of the demo's is asked for, as far as the cluster has the routes. Pure."""
    return tuple(path for path, route in _PATHS.get(group, {}).items() if route in routes)


def _anything(call: Callable[[], str]) -> str:
    try:
        return call()
    except UserError as error:
        return error.message


def failover(run: runs.Run, document: dict[str, Any], entries: tuple[Entry, ...], progress: Progress) -> None:
    """Takes the leader's CVM away and shows that the names follow. Nothing in a cluster without a leader."""
    route = next((r for p in document["peers"] for r in p["routes"] if r["role"] == "master" and r["endpoints"]), None)
    if route is None:
        return
    leader = route["endpoints"][0]
    synchronous = "synchronous_mode: true" in _patronictl(run, leader, "show-config")

    def ready() -> str:
        listed = _patronictl(run, leader, "list", "-f", "json")
        return _patronictl(run, leader, "list") if has_standby(listed, synchronous=synchronous) else ""

    click.secho(f"$ ./mesh exec {leader} -- patronictl -c {_PATRONI_CONFIG} list", fg="cyan")
    # Before there is a standby that has everything, nobody may take over.
    click.echo(
        "  " + until(ready, f"{leader} has a standby that may take over", progress).strip().replace("\n", "\n  ")
    )
    click.secho(f"$ ./mesh kill {leader}   # it leads: {route['name']} leads to it", fg="cyan")
    began = time.monotonic()
    run.call("POST", f"/machines/{leader}/kill", seconds=60.0)

    def elsewhere() -> str | None:
        now = status.contract(status.collect(run))
        found = {e for p in now["peers"] if p["ready"] for r in p["routes"] if r["name"] == route["name"]
                 for e in r["endpoints"][:1] or [""]}  # fmt: skip
        return found.pop() if len(found) == 1 and not found & {leader, ""} else None

    successor = until(elsewhere, f"{route['name']} leads elsewhere", progress)
    click.echo(f"  {route['name']} leads to {successor} in every CVM, {time.monotonic() - began:.1f} s later")
    for entry in entries:
        _wait_for_database(entry, progress)
        if "/db" in _PATHS.get(entry.group, ()):
            _show_database(entry)
    click.secho(f"$ ./mesh start {leader}", fg="cyan")
    run.call("POST", f"/machines/{leader}/start", seconds=60.0)

    def back() -> bool:
        now = status.contract(status.collect(run))
        return any(leader in r["endpoints"] for p in now["peers"] for r in p["routes"] if r["role"] == "replica")

    until(back, f"{leader} follows {successor}", progress)
    click.echo(f"  {leader} is back, as a replica of {successor}")


def _wait_for_database(entry: Entry, progress: Progress) -> None:
    """Returns when `/db` answers: the database's role for webdemo follows its first leader."""

    def answers() -> bool:
        try:
            return _from_outside(f"{entry.url}/db") != ""
        except UserError:
            return False

    until(answers, f"{entry.group} can log in to the database", progress)


def has_standby(listed: str, *, synchronous: bool) -> bool:
    """Whether, in the JSON of `patronictl list`, somebody may take over: in a synchronous cluster its synchronous
    standby and nobody else, in another one any replica that streams.
    """
    try:
        members = json.loads(listed)
    except ValueError:
        return False
    roles = {"Sync Standby"} if synchronous else {"Replica"}
    return any(member.get("Role") in roles and member.get("State") == "streaming" for member in members)


def _patronictl(run: runs.Run, peer: str, *arguments: str) -> str:
    from meshctl.lab_commands import exec_argv

    argv = exec_argv(run, peer, None, ("patronictl", "-c", _PATRONI_CONFIG, *arguments))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=runs.CHECKOUT, check=False)
    return done.stdout if done.returncode == 0 else ""


def until(condition: Callable[[], T], what: str, progress: Progress, seconds: float = 240.0) -> T:
    """What `condition` gives once it is true; a person who had to wait reads for how long."""
    began = time.monotonic()
    said = False
    while not (found := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise UserError(f"not within {seconds:.0f} s: {what}", "./mesh status")
        progress.update(f"waiting until {what} ({elapsed(waited)})")
        said = True
        time.sleep(0.1)
    if said:
        progress.line(f"{what}, after {time.monotonic() - began:.1f} s")
    return found


def _show_database(entry: Entry) -> None:
    """A row is written and read again at once, on the leader and on a replica, which may not have it yet."""
    answer = _from_outside(f"{entry.url}/db")
    _show(f"public entry: GET {entry.url}/db", lambda: answer)
    if remark := behind(answer):
        click.echo(f"  {remark}")


def behind(answer: str) -> str:
    """What a person has to know of an answer of `/db` whose replica shows fewer rows; empty where it has all. Pure."""
    try:
        rows = {route["role"]: (name, int(route["rows"])) for name, route in json.loads(answer)["routes"].items()}
        (_, written), (replica, shown) = rows["master"], rows["replica"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    if shown >= written:
        return ""
    return f"{replica} shows {written - shown} fewer: a replica replays what is acknowledged a moment later"


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
