"""The members that the owner's manifest lists, and where each one's REST interface is reached. Pure.

A route with `members = true` becomes one route for each slot of its group, named after the slot's index. The sidecar
writes the names of all routes into `/run/mesh/hosts`, from the manifest: so the file lists every slot, whether anybody
runs in it or not. Consul, where a member can be missing, is not asked.
"""

from __future__ import annotations

import ipaddress
import re

MAX_MEMBERS = 64
"""Of one cluster; more names than that are no list of members."""


def addresses(hosts: str, route: str, port: int, peer_id: str) -> dict[str, tuple[str, int]]:
    """VIP and port of each member's REST interface, by peer ID.

    `hosts`: the text of the mesh's hosts file. `route`: name of the route that has an instance for each slot.
    `peer_id`: of one member: the others' differ in the index. Empty where the file lists none.
    """
    name = re.compile(rf"{re.escape(route)}-(0|[1-9][0-9]{{0,3}})")
    group = peer_id.rpartition("-")[0]
    found: dict[str, tuple[str, int]] = {}
    for line in hosts.splitlines():
        words = line.partition("#")[0].split()
        for word in words[1:]:
            if (match := name.fullmatch(word)) and _is_address(words[0]):
                found[f"{group}-{match[1]}"] = (words[0], port)
    return found if len(found) <= MAX_MEMBERS else {}


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
