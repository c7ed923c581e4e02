"""The ports that a backend may not have, against those that our programs open."""

from __future__ import annotations

import ast

from tests.project import sources, tree
from topology import addresses

INSIDE = frozenset({"admission", "coordinator", "dns", "peer", "runtime", "sidecar", "vip", "xds"})
"""Packages that run inside a CVM."""


def _ports() -> dict[str, int]:
    """Module-level constants of INSIDE whose name is PORT or ends in _PORT: place to value."""
    found = {}
    for path in (path for path in sources() if path.parts[0] in INSIDE):
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for name in (target.id for target in node.targets if isinstance(target, ast.Name)):
                    if (name == "PORT" or name.endswith("_PORT")) and isinstance(node.value.value, int):
                        found[f"{path}: {name}"] = node.value.value
    return found


def test_every_port_that_we_open_is_a_port_of_the_platform() -> None:
    """A backend on such a port would not get it, or would keep the mesh from it; so would one that is forgotten."""
    ports = _ports()
    assert len(ports) >= 7, "the search finds the constants"
    lacking = {place: port for place, port in ports.items() if port not in addresses.PLATFORM_PORTS}
    assert not lacking
