"""Loads libraries so that a sidecar can afford them: heavy ones beside other work, greedy ones only in part."""

from __future__ import annotations

import importlib
import importlib.util
import ssl
import sys
from types import ModuleType
from typing import Any

HEAVY = ("xds.server", "xds.snapshot")
NETLINK = {
    "IPRoute": "pyroute2.iproute.linux",
    "AsyncIPRoute": "pyroute2.iproute.linux",
    "NetNS": "pyroute2.iproute.linux",
    "AsyncWireGuard": "pyroute2.netlink.generic.wireguard",
}
"""Where pyroute2 keeps what is used here."""


def load_heavy() -> None:
    """Imports HEAVY; for a thread, while the event loop waits for others."""
    for name in HEAVY:
        importlib.import_module(name)


def warm() -> None:
    """Makes Envoy's message types that every snapshot needs, by building one of each entry; for a thread, after
    `load_heavy`. Otherwise the first real snapshot makes them, and everybody waits for it.
    """
    from runtime.secret import Secret
    from xds import snapshot, spec, stream, wire

    place = spec.Endpoint(address="127.0.0.1", port=1)
    route = spec.EgressRoute(name="r", vip="127.0.0.1", port=1, endpoints=(place,), identity="i", peer_sans=("s",))
    allowed = (spec.Principal(uri="p"),)
    ingress = spec.Ingress(
        name="i", address="127.0.0.1", port=2, identity="i", target=place, source="127.0.0.2", allowed=allowed
    )
    begin = "-----BEGIN CERTIFICATE-----"
    leaf = spec.Leaf(name="i", uri="u", chain_pem=begin, key_pem=Secret("-----BEGIN PRIVATE KEY-----"))
    built = snapshot.build(spec.Spec(egress=(route,), ingress=(ingress,), leaves=(leaf,), roots_pem=begin))
    clusters = tuple(built.resources[snapshot.CLUSTER].values())
    wire.write_response(
        stream.Response(type_url=snapshot.CLUSTER, version=built.version, nonce="1", resources=clusters)
    )


def lean_aiohttp() -> None:
    """Imports aiohttp without the system's certificate authorities, which it would read twice as it loads: 0.1 s.

    Its own default contexts then trust nobody. Whoever asks a server that they certify brings a context
    (`evidence.collateral`); the rest pins a certificate, or talks to this machine.
    """
    if "aiohttp" in sys.modules:
        return
    context: Any = ssl.SSLContext
    context.set_default_verify_paths = lambda _: None
    try:
        importlib.import_module("aiohttp")
    finally:
        # Ours hides the C type's own.
        del context.set_default_verify_paths


def lean_netlink() -> None:
    """Makes `import pyroute2` load only what is asked of it, from NETLINK; to be called before its first import.

    The package's own initialisation loads everything that it can do: 163 modules, 7 MiB and 50 ms more than we need.
    """
    found = importlib.util.find_spec("pyroute2")
    if "pyroute2" in sys.modules or found is None or found.submodule_search_locations is None:
        return
    package = ModuleType("pyroute2")
    package.__path__ = list(found.submodule_search_locations)
    package.__spec__ = found

    def attribute(name: str) -> Any:
        if name not in NETLINK:
            raise AttributeError(f"module 'pyroute2' is loaded in part and has no {name!r} here; add it to NETLINK")
        return getattr(importlib.import_module(NETLINK[name]), name)

    vars(package)["__getattr__"] = attribute
    sys.modules["pyroute2"] = package
