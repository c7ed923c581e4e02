"""What a manifest puts somewhere: one mistyped value is refused by its entry, before a CVM has to carry it out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.topology.test_render import deployment, starter
from topology.manifest import decode, encode
from topology.places import PlacesError, check_url
from topology.render import manifest
from topology.trees import ManifestError

TREE: dict[str, Any] = json.loads(encode(manifest(starter(), deployment())))
WORKER = TREE["groups"]["worker"]["peers"][0]


def changed(path: str, value: Any) -> bytes:
    """The starter's manifest with `value` at `path`."""
    tree: Any = json.loads(json.dumps(TREE))
    *inner, last = (int(part) if part.isdigit() else part for part in path.split("."))
    at = tree
    for part in inner:
        at = at[part]
    at[last] = value
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "routes.0.vip",
            "127.10.0.300",
            r"manifest.routes\[0\].vip is '127.10.0.300', expected an IPv4 address of 127",
        ),
        ("routes.0.vip", "", r"routes\[0\].vip is ''"),
        ("routes.0.vip", "127.11.0.9", "expected an IPv4 address of 127.10.0.0/16"),
        ("routes.0.vip", "127.10.0.53", "where names are asked for"),
        ("routes.0.port", 99999, r"routes\[0\].port is 99999, expected a port from 1 to 65535"),
        ("routes.0.port", 0, "expected a port"),
        ("routes.1.name", "api", r"routes\[1\] has the name 'api', as routes\[0\] has"),
        ("groups.api.peers.0.address", WORKER["address"], "has the address"),
        ("groups.api.peers.0.peer_id", WORKER["peer_id"], "has the name 'worker-0'"),
        ("groups.api.peers.0.address", "10.0.0.1", "expected an IPv4 address of 100.96.0.0/16"),
        ("groups.api.backends.api.port", -1, r"groups.api.backends.api.port is -1"),
        ("groups.api.backends.api.sidecar_port", 70000, "sidecar_port is 70000"),
        ("groups.api.backends.api.source", "10.1.1.1", "backends.api.source is '10.1.1.1'"),
        ("coordinators.peers.0.url", "http://c.example", "expected https://host:port"),
        ("coordinators.peers.0.address", "100.96.1", r"coordinators.peers\[0\].address is '100.96.1'"),
        ("rendezvous.0.endpoint", "relay.example.com:51820", "an IPv4 address and a port, not a name"),
        ("rendezvous.0.endpoint", "198.18.0.1:0", "an IPv4 address and a port"),
        ("rendezvous.0.public_key", "k", "expected a WireGuard key"),
        ("vip_pool", "127.10.0.0/30", "manifest.vip_pool is '127.10.0.0/30', which is no pool"),
        ("mesh_pool", "mesh", "manifest.mesh_pool is 'mesh'"),
    ],
)
def test_a_mistyped_place_is_refused(path: str, value: Any, said: str) -> None:
    """The message begins with the entry."""
    with pytest.raises(ManifestError, match=said):
        decode(changed(path, value))


def test_two_routes_with_one_vip_and_port_are_refused() -> None:
    """Every Envoy would refuse all of it, and go on with what it has: revoked callers among them."""
    first = TREE["routes"][0]
    twice = [first, {**TREE["routes"][1], "vip": first["vip"], "port": first["port"]}]
    with pytest.raises(ManifestError, match="VIP and port"):
        decode(changed("routes", twice))
    assert decode(json.dumps(TREE).encode()).routes


def test_a_name_that_is_there_twice_is_refused() -> None:
    """The second would count, and who has added the first would never know."""
    text = json.dumps(TREE)
    with pytest.raises(ManifestError, match="'revoked' is there twice"):
        decode(text.replace("{", '{"revoked": [], ', 1).encode())


def test_looking_for_names_that_are_there_twice_takes_as_long_as_reading_them() -> None:
    """Whoever writes 200,000 names and the last one twice would else keep a reader busy for minutes."""
    many = ", ".join(f'"{n}": 0' for n in range(200_000))
    with pytest.raises(ManifestError, match="'199999' is there twice"):
        decode(f'{{{many}, "199999": 0}}'.encode())


@pytest.mark.parametrize("url", ["https://", "https://h:0", "https://h:x", "h:1", "ftp://h"])
def test_a_url_has_a_host(url: str) -> None:
    """And https."""
    with pytest.raises(PlacesError):
        check_url(".url", url)


EGRESS = {"name": "w", "listen": "127.137.0.1:8081", "remote": "worker:9090", "tls": "mesh", "sni": None, "ca": None}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("listen", "127.10.4.4:8081", r"groups.api.egress\[0\].listen is '127.10.4.4:8081', in 127.10.0.0/16"),
        ("listen", "127.0.0.1:8080", "where a backend of the group listens"),
        ("listen", "10.0.0.1:8081", "expected ip:port with an address of 127"),
        ("remote", "worker:9091", r"egress\[0\].remote is 'worker:9091', but the route 'worker' has port 9090"),
        ("remote", "nobody:9090", "'nobody' is no route"),
        ("tls", "none", r"egress\[0\].tls is 'none'"),
        ("sni", "a.example", r"egress\[0\].sni is only for"),
        ("ca", "x", r"egress\[0\].ca is only for"),
    ],
)
def test_an_egress_that_nobody_can_carry_out_is_refused(field: str, value: str, said: str) -> None:
    """By the manifest's own entry, wherever the manifest comes from: coordinators and sidecars decode it too."""
    assert decode(changed("groups.api.egress", [EGRESS])).groups["api"].egress[0].remote == "worker:9090"
    with pytest.raises(ManifestError, match=said):
        decode(changed("groups.api.egress", [{**EGRESS, field: value}]))


def test_an_egress_to_where_its_group_may_not_call_is_refused() -> None:
    """The callers of the route's backend say who may."""
    tree: Any = json.loads(changed("groups.api.egress", [EGRESS]))
    tree["groups"]["worker"]["backends"]["worker"]["callers"] = ["worker"]
    with pytest.raises(ManifestError, match="which group 'api' may not call: the callers of its backend are worker"):
        decode(json.dumps(tree).encode())
