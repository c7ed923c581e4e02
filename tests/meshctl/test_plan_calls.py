"""Who may call what, as a plan prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshctl.plan_calls import Calls, who_calls
from meshctl.plan_snapshot import Snapshot
from tests.meshctl.test_plan_changes import snapshot
from tests.topology.support import backend, group

ROUTES = 'db = { backend = "db" }\neach = { backend = "db", members = true }\nrest = { backend = "rest" }'


def store(more: str = "", rest: str = "") -> str:
    """A group with two backends, one of them behind two routes."""
    backends = backend("db") + backend("rest", port="8081", more=rest)
    return group("store", backends=backends, routes=ROUTES, more=more)


def rows(found: Snapshot) -> list[tuple[str, str, str]]:
    """The cells of the table."""
    return [calls.row() for calls in who_calls(found)]


def test_each_group_has_what_it_may_call_and_who_may_call_it(tmp_path: Path) -> None:
    """Whoever may call a backend may call all routes to it; the coordinators are no group."""
    client = group("client", backends="", routes="", more='calls = ["db"]')
    web = group("web", more='calls = ["rest", "web"]')
    assert rows(snapshot(tmp_path, store(), client, web)) == [
        ("store", "nothing", "db: client; rest: web"),
        ("client", "db, each-*", "nobody: no backend"),
        ("web", "rest, web", "web"),
    ]


@pytest.mark.parametrize(
    ("more", "rest", "row"),
    [
        ("", "", ("store", "db, each-*, rest", "everybody")),
        ("calls = []", "", ("store", "nothing", "nobody")),
        ("", 'callers = ["*"]', ("store", "rest", "db: nobody; rest: everybody")),
        ('calls = ["rest"]', "callers = null", ("store", "rest", "db: nobody; rest: store")),
    ],
)
def test_everybody_and_nobody_are_said(tmp_path: Path, more: str, rest: str, row: tuple[str, str, str]) -> None:
    """In a cluster that says nothing, and in one where a backend or a group says something."""
    assert rows(snapshot(tmp_path, store(more, rest)))[0] == row


def test_backends_that_the_same_groups_may_call_are_told_at_once() -> None:
    """Their names would only repeat it."""
    calls = Calls(group="a", may_call=(), called_by={"x": ("b", "c"), "y": ("b", "c")})
    assert calls.row() == ("a", "nothing", "b, c")
