"""Routes of the environment, which nobody vouches for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.desired import beforehand
from sidecar.hints import differences, parse
from tests.sidecar.world import manifest, route

ROUTE: dict[str, Any] = {
    "name": "api", "vip": "127.10.0.1", "port": 8080, "role": None, "backend": "api", "service": "api",
}  # fmt: skip


def test_names_and_vips_are_there_before_a_manifest_and_lead_nowhere() -> None:
    """No endpoint, no peer, nothing for Envoy; without hints there is nothing at all."""
    wish = beforehand(parse(json.dumps([ROUTE, {**ROUTE, "name": "db", "vip": "127.10.0.2", "role": "master"}])))
    assert (wish.vips, wish.names) == (
        frozenset({"127.10.0.1", "127.10.0.2"}),
        {"api": "127.10.0.1", "db": "127.10.0.2"},
    )
    assert (wish.endpoints, wish.peers, wish.spec, wish.packets) == ({}, (), None, None)
    assert beforehand(()).names == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Api"}, "whose name is 'Api', expected a DNS label"),
        ({"name": 5}, "expected objects"),
        ({"vip": "127.0.0.1"}, "VIP '127.0.0.1', expected one of 127.10.0.0/16"),
        ({"vip": "127.10.0.53"}, "VIP '127.10.0.53', expected one of"),
        ({"vip": "10.0.0.1"}, "expected one of 127.10.0.0/16"),
        ({"vip": None}, "expected one of 127.10.0.0/16"),
        ({"port": 0}, "port 0, expected 1 to 65535"),
        ({"port": True}, "expected 1 to 65535"),
    ],
)
def test_only_addresses_of_the_pool_are_taken(change: dict[str, Any], message: str) -> None:
    """The host sets the environment, and addresses of loopback are all that it can have set here."""
    with pytest.raises(ValueError, match=message):
        parse(json.dumps([{**ROUTE, **change}]))


def test_what_differs_from_the_manifest_is_named() -> None:
    """Which counts: more, fewer and other routes. No hints differ from nothing."""
    signed = manifest(routes=(route("api", "api"),))
    assert differences(signed, None) == ()
    assert differences(signed, parse(json.dumps([ROUTE]))) == ()
    assert differences(signed, ()) == ("route 'api' of the manifest is missing; the manifest counts",)
    moved = parse(json.dumps([{**ROUTE, "vip": "127.10.9.9", "role": "replica"}, {**ROUTE, "name": "evil"}]))
    evil, api = differences(signed, moved)
    assert evil == "route 'evil' is not in the manifest; the manifest counts"
    assert api.startswith("route 'api' is 127.10.9.9:8080 of service api (replica), and 127.10.0.1:8080 of service api")
