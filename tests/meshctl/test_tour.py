"""What `./mesh demo` asks; tests/e2e/test_demo.py has it on running meshes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl import tour
from meshctl.bring_up import Entry
from meshctl.docker_runs import run_of
from meshctl.errors import UserError


class Console:
    """Says nothing."""

    def update(self, text: str) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("group", "routes", "paths"),
    [
        ("api", {"api", "worker"}, ("/hello", "/worker", "/all")),
        ("api", {"api", "shop"}, ("/hello",)),
        ("webdemo", {"webdemo", "postgres-master", "postgres-replica"}, ("/hello", "/all", "/db")),
        ("shop", {"shop"}, ()),
    ],
)
def test_only_what_the_cluster_has_is_asked(group: str, routes: set[str], paths: tuple[str, ...]) -> None:
    """A copy of the starter whose worker became something else is not asked for the worker."""
    assert tour.paths_of(group, routes) == paths


@pytest.mark.parametrize(
    ("rows", "said"),
    [((5, 3), "db-replica shows 2 fewer"), ((5, 5), ""), ((5, 6), ""), (("x", 1), ""), ((None, 1), "")],
)
def test_a_replica_that_has_not_replayed_all_is_explained(rows: tuple[Any, Any], said: str) -> None:
    """After a failover a person would take missing rows for lost ones."""
    routes = {"db-master": {"role": "master", "rows": rows[0]}, "db-replica": {"role": "replica", "rows": rows[1]}}
    remark = tour.behind(json.dumps({"routes": routes}))
    assert remark.startswith(said)
    assert bool(remark) == bool(said)


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"routes": []}', '{"routes": {"a": 1}}'])
def test_any_other_answer_needs_no_word(answer: str) -> None:
    """What the demo's program answers is its own."""
    assert tour.behind(answer) == ""


def test_a_wait_ends_with_how_long_it_took() -> None:
    """Where nobody waits, nothing is said."""
    said: list[str] = []

    class Listening(Console):
        def line(self, text: str) -> None:
            said.append(text)

    answers = iter([False, True])
    assert tour.until(lambda: next(answers), "it leads", Listening())
    assert len(said) == 1
    assert said[0].startswith("it leads, after ")
    assert tour.until(lambda: True, "it leads", Listening())
    assert len(said) == 1


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every call fails; the URLs that were asked."""
    asked: list[str] = []

    def fail(*arguments: Any) -> str:
        asked.append(arguments[-1])
        raise UserError(f"calling {arguments[-1]} failed: 404")

    monkeypatch.setattr(tour, "_from_inside", fail)
    monkeypatch.setattr(tour, "_from_outside", fail)
    return iter([asked])


def test_a_program_of_ones_own_may_answer_anything(
    refused: Iterator[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The way to it is what is shown; a demo program that fails ends the tour. A group without a route is asked too."""
    document = {
        "peers": [
            {
                "peer_id": f"{name}-0",
                "group": name,
                "routes": [{"name": "shop", "port": 70}, {"name": "api", "port": 8}],
            }
            for name in ("shop", "desk", "api")
        ]
    }
    entries = tuple(Entry(group=name, url=f"http://x/{name}") for name in ("shop", "desk", "api"))
    with pytest.raises(UserError, match="http://api:8/hello"):
        tour.tour(run_of("x"), document, entries, Console())
    assert next(refused) == ["http://shop:70/", "http://x/shop/", "http://x/desk/", "http://api:8/hello"]
    assert "calling http://x/desk/ failed: 404" in capsys.readouterr().out
