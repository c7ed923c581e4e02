"""Spec entries that tests build with."""

from __future__ import annotations

from dataclasses import replace

from runtime.secret import Secret
from xds.spec import EgressRoute, Endpoint, Ingress, Leaf, Outside, Principal, PublicListener, Spec

PEM = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
LEAF = Leaf(name="me", uri="spiffe://mesh/me", chain_pem=PEM, key_pem=Secret("-----BEGIN PRIVATE KEY-----\nk\n"))
OUTSIDE = replace(LEAF, name="out", uri=None)
"""A public listener's."""


def endpoint(last: int) -> Endpoint:
    """An endpoint."""
    return Endpoint(address=f"100.96.0.{last}", port=19090)


def route(name: str = "worker", **changes: object) -> EgressRoute:
    """A route with two endpoints."""
    values: dict[str, object] = {
        "name": name,
        "vip": "127.10.0.5",
        "port": 9090,
        "endpoints": (endpoint(1), endpoint(2)),
        "identity": "me",
        "peer_sans": ("spiffe://mesh/worker",),
    }
    return EgressRoute(**{**values, **changes})  # type: ignore[arg-type]


def ingress(*allowed: str, **changes: object) -> Ingress:
    """An ingress that lets `allowed` in."""
    values: dict[str, object] = {
        "name": "api",
        "address": "100.96.0.9",
        "port": 18080,
        "identity": "me",
        "target": Endpoint(address="127.0.0.1", port=8080),
        "source": "127.10.0.54",
        "allowed": tuple(Principal(uri=uri) for uri in allowed),
    }
    return Ingress(**{**values, **changes})  # type: ignore[arg-type]


def outside(name: str = "bank", **changes: object) -> Outside:
    """A server outside, by name."""
    values: dict[str, object] = {
        "name": name,
        "listen": Endpoint(address="127.137.0.1", port=8443),
        "host": "bank.example.com",
        "port": 443,
        "server_name": "bank.example.com",
        "roots_pem": PEM,
    }
    return Outside(**{**values, **changes})  # type: ignore[arg-type]


def public(**changes: object) -> PublicListener:
    """A public listener in front of the ingress' server."""
    values: dict[str, object] = {
        "name": "api",
        "address": "0.0.0.0",
        "port": 443,
        "identity": "out",
        "ingress": "api",
        "alpn": ("http/1.1",),
    }
    return PublicListener(**{**values, **changes})  # type: ignore[arg-type]


def spec(
    *entries: EgressRoute | Ingress | Outside | PublicListener, leaves: tuple[Leaf, ...] = (LEAF,), roots: str = PEM
) -> Spec:
    """A spec of these entries."""
    return Spec(
        outside=tuple(entry for entry in entries if isinstance(entry, Outside)),
        resolver=Endpoint(address="127.10.0.53", port=53),
        egress=tuple(entry for entry in entries if isinstance(entry, EgressRoute)),
        ingress=tuple(entry for entry in entries if isinstance(entry, Ingress)),
        leaves=leaves,
        roots_pem=roots,
        public=tuple(entry for entry in entries if isinstance(entry, PublicListener)),
    )
