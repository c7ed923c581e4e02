"""The routes of a WireGuard device, each with an MTU: one to the mesh's pool, one to each peer whose MTU differs.

IO edge, by netlink. A route's MTU decides the segment size of new TCP connections, and that of established ones from
their next packet on (a change of routes makes the kernel look theirs up again), and where UDP datagrams are fragmented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peer.mtu import BASE
from peer.spec import InterfaceSpec, LinkError
from peer.wireguard import DeviceGoneError, route

_HOST = 32
_MAIN_TABLE = 254
"""rtnetlink.h: RT_TABLE_MAIN. The kernel's own entries for our address are in another one."""


class Routes:
    """The routes of one device, and what we know to be there."""

    def __init__(self, spec: InterfaceSpec) -> None:
        self._spec = spec
        self._present: dict[str, int] | None = None
        self._device = 0
        """Counts `forget`."""

    def forget(self) -> None:
        """The device may be another one: look at what is there before the next change. Also while one is under way."""
        self._present = None
        self._device += 1

    async def apply(self, mtus: Mapping[str, int]) -> None:
        """Gives the route to each peer's address its MTU, bytes. DeviceGoneError, or LinkError when the kernel refuses.

        All other addresses of the pool keep BASE, which is what a path carries that nobody has measured.
        """
        wanted = {address: mtu for address, mtu in mtus.items() if mtu != BASE}
        if wanted == self._present:
            return
        present, device = self._present, self._device
        # Not known until all is done: a change that fails or is cancelled half way leaves something in between.
        self._present = None
        from pyroute2 import AsyncIPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            async with AsyncIPRoute() as links:
                index = next(iter(await links.link_lookup(ifname=self._spec.name)), None)
                if index is None:
                    raise DeviceGoneError(f"there is no device {self._spec.name!r}")
                if present is None:
                    present = await _present(links, index)
                for address in present.keys() - wanted.keys():
                    await links.route("del", dst=f"{address}/{_HOST}", oif=index, scope="link")
                for address, mtu in wanted.items():
                    if present.get(address) != mtu:
                        await links.route("replace", **route(self._spec, index, f"{address}/{_HOST}", mtu))
        except NetlinkError as error:
            raise LinkError(f"the kernel takes no routes on device {self._spec.name!r}: {error}") from error
        if device == self._device:
            self._present = wanted


async def _present(links: Any, index: int) -> dict[str, int]:
    """The MTU by address of the routes to single addresses that device number `index` has."""
    found = {}
    async for each in await links.route("dump", family=2, oif=index, table=_MAIN_TABLE):
        if each["dst_len"] == _HOST and each.get_attr("RTA_OIF") == index:
            metrics = each.get_attr("RTA_METRICS")
            found[each.get_attr("RTA_DST")] = (metrics.get_attr("RTAX_MTU") if metrics else None) or 0
    return found
