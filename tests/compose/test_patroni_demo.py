"""The patroni-demo cluster from its own compose files, on a Docker engine: names that follow a database's leader.

Two members instead of three: the machine of a test has two cores, and one that follows is enough to take over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshctl.engine import Engine
from meshctl.tour import has_standby
from tests.compose.user import Mesh, build, running, wait_for

FAILOVER = 180.0
"""Seconds, as a failure guard: the session of a killed leader runs out after 10 to 20, and machines are busy."""
VISIT = "import json; from workloads import database; print(json.dumps(database.from_environment('test')))"
"""Writes a row through postgres-master, reads through postgres-replica: what webdemo's `/db` does."""


@pytest.fixture(scope="module")
def database(engine: Engine, plugin: str, built: dict[str, list[str]]) -> Iterator[Mesh]:
    """A running patroni-demo: 1 coordinator, 1 webdemo, 2 postgres, behind NATs that leave only the relay's way."""
    build(engine, "webdemo", "patroni")
    counts = ("--replicas", "webdemo=1", "--replicas", "postgres=2")
    with running(engine, "patroni-demo", *counts, "--nat", "random") as mesh:
        yield mesh


def visit(mesh: Mesh) -> dict[str, Any] | None:
    """One visit from webdemo's application container; None where the database cannot be asked just now."""
    done = mesh.engine.run("exec", mesh.container("webdemo-0", "webdemo"), "python3", "-c", VISIT, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def visited(mesh: Mesh, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """The first visit that is as wanted."""
    found: list[dict[str, Any]] = []

    def asked() -> bool:
        answer = visit(mesh)
        found.extend([answer] if answer is not None and condition(answer) else [])
        return bool(found)

    wait_for(asked, what, FAILOVER)
    return found[0]


def rows(answer: dict[str, Any], route: str) -> int:
    """How many rows were there behind `route`."""
    return int(answer["routes"][route]["rows"])


def test_a_mesh_is_up_when_its_roles_are(database: Mesh) -> None:
    """`compose up` has waited for both routes; and what goes between two CVMs goes through the relay's container."""

    def relayed() -> bool:
        return all(database.paths(peer) == {"relay"} for peer in ("webdemo-0", "postgres-0", "postgres-1"))

    wait_for(relayed, "everyone reaches everyone through the relay")
    for route in ("postgres-master", "postgres-replica"):
        assert f"{route} → postgres-" in database.up_output
        assert f"{route} → nobody" not in database.up_output


def test_what_is_written_through_the_leader_is_read_through_a_replica(database: Mesh) -> None:
    """From an application container by the routes' names, and from outside through the public entry."""
    first = visited(database, lambda _: True, "a visit succeeds")
    assert first["routes"]["postgres-master"] | {"rows": 0} == {"peer": first["leader"], "role": "master", "rows": 0}
    written = rows(first, "postgres-master")
    again = visited(database, lambda it: rows(it, "postgres-replica") >= written, "the replica has the row")
    if database.endpoints("webdemo-0", "postgres-replica") != {again["leader"]}:
        assert again["routes"]["postgres-replica"]["role"] == "replica"
        assert again["routes"]["postgres-replica"]["peer"] != again["leader"]
    assert json.loads(database.public("webdemo", "/db"))["leader"] == again["leader"]


def test_a_killed_leader_is_followed_by_another_one(database: Mesh) -> None:
    """Its container is killed with all in it: the names follow, no acknowledged row is lost; it comes back behind."""
    before = visited(database, lambda it: it["routes"]["postgres-replica"]["role"] == "replica", "both are asked")
    leader = database.container(before["leader"], "patroni")

    def may_be_followed() -> bool:
        argv = ("exec", leader, "patronictl", "-c", "/run/patroni/patroni.yml", "list", "-f", "json")
        return has_standby(database.engine.run(*argv).stdout, synchronous=True)

    wait_for(may_be_followed, "a standby has everything, so that it may take over", FAILOVER)
    database.engine.run("kill", leader)
    after = visited(database, lambda it: it["leader"] != before["leader"], "another leader is served")
    assert rows(after, "postgres-master") > rows(before, "postgres-master")
    database.engine.run("start", leader)
    again = visited(
        database, lambda it: it["routes"]["postgres-replica"]["peer"] == before["leader"], "the former leader follows"
    )
    assert again["leader"] == after["leader"]
