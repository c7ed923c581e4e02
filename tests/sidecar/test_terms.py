"""When a route's filter chain gets a new name."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sidecar.terms import Term, settle
from xds.spec import EgressRoute, Endpoint, Spec


def spec(*holders: tuple[str, str]) -> Spec:
    """Routes (name, holder of the role); no holder, no endpoint."""
    return Spec(
        egress=tuple(
            EgressRoute(
                name=name, vip="127.10.0.2", port=5432, identity="client", peer_sans=("spiffe://x",), generation=holder,
                endpoints=(Endpoint(address=f"100.96.0.{holder[-1]}", port=1),) if holder else (),
            )
            for name, holder in holders
        ),
        ingress=(), leaves=(), roots_pem="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("holders", "names"),
    [
        (["pg-0", "pg-0"], ["", ""]),
        (["pg-0", "", "pg-1"], ["", "1", "1"]),
        (["pg-0", "pg-1", "pg-0"], ["", "1", "2"]),
        (["", "pg-0", ""], ["", "", "1"]),
        (["", "pg-0", "", "pg-0", ""], ["", "", "1", "1", "2"]),
        (["pg-0", "", "", "pg-0", "pg-0"], ["", "1", "1", "1", "1"]),
    ],
)
def test_the_name_changes_when_somebody_is_left_and_never_comes_back(holders: list[str], names: list[str]) -> None:
    """Leaving a leader cuts its connections; finding one where there was none cuts nobody, for nobody is connected."""
    terms: Mapping[str, Term] = {}
    found = []
    for holder in holders:
        terms, settled = settle(terms, spec(("m", holder)))
        found.append(settled.egress[0].generation)
    assert found == names


def test_routes_do_not_disturb_each_other_and_all_else_stays() -> None:
    """Each has its own count; one that is gone is forgotten."""
    terms, first = settle({}, spec(("a", "pg-0"), ("b", "pg-1")))
    assert [route.endpoints for route in first.egress] == [
        route.endpoints for route in spec(("a", "pg-0"), ("b", "pg-1")).egress
    ]
    terms, second = settle(terms, spec(("a", "pg-1"), ("b", "pg-1")))
    assert [route.generation for route in second.egress] == ["1", ""]
    terms, _ = settle(terms, spec(("b", "pg-1")))
    assert set(terms) == {"b"}
