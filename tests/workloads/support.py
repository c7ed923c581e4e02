"""Interfaces inside a namespace that a test made."""

from __future__ import annotations


def add_interface(netns: str, name: str, address: str, gateway: str | None = None) -> None:
    """One end of a veth pair with `address`/24; its other end stays in the same namespace."""
    from pyroute2 import NetNS

    with NetNS(netns) as link:
        link.link("add", ifname=name, kind="veth", peer=f"{name[:12]}-p")
        for end in (name, f"{name[:12]}-p"):
            link.link("set", index=link.link_lookup(ifname=end)[0], state="up")
        link.addr("add", index=link.link_lookup(ifname=name)[0], address=address, prefixlen=24)
        if gateway is not None:
            link.route("add", dst="default", gateway=gateway)
