"""Loads libraries so that a sidecar can afford them: heavy ones beside other work, greedy ones only in part."""

from __future__ import annotations

import importlib
import importlib.util
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
