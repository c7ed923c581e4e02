"""Loopback's addresses by netlink: reads them, carries out a plan. An edge; what to do is `vip.plan`'s decision.

Our addresses carry the label `lo:mesh`. The kernel keeps the label with the address, so a sidecar that starts again
knows which addresses its predecessor left; every kernel has labels (IFA_PROTO, made for this, needs 5.18), and `ip
address` shows them.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vip.plan import Add, Operation, plan

LABEL = "lo:mesh"
_SCOPE_HOST = 254
"""RT_SCOPE_HOST (linux/rtnetlink.h), as 127.0.0.1 has: never a source address for other hosts."""


_GRANT = "grant the sidecar NET_ADMIN (docker compose: `cap_add: [NET_ADMIN]`)"


class VipError(OSError):
    """A virtual address cannot be set. The message names it, and says what to grant or change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """One IPv4 address of this network namespace."""

    address: str
    index: int
    label: str


class VipTable:
    """The virtual addresses of one pool on `lo` of the network namespace of the calling thread."""

    def __init__(self, pool: str) -> None:
        """`pool` is a network such as `127.10.0.0/16`. Raises ValueError for anything else."""
        self._pool = ipaddress.IPv4Network(pool)

    def apply(self, wanted: frozenset[str]) -> None:
        """Makes `wanted` the set of our addresses on loopback; nothing to do is no error. An empty set removes all.

        Takes some 0.2 ms an address. Raises VipError for an address outside the pool or on another interface, and
        where the right to change addresses is missing; what was done until then stays, and applying again goes on
        from there.
        """
        outside = sorted(address for address in wanted if ipaddress.IPv4Address(address) not in self._pool)
        if outside:
            raise VipError(
                f"virtual addresses {outside} are not in the pool {str(self._pool)!r}; change the one or the other"
            )
        # pyroute2's synchronous API runs an event loop of its own, which a thread that is running one already
        # refuses. A thread of ours makes this callable from anywhere; it starts in the caller's network namespace.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="vip") as executor:
            executor.submit(_apply, wanted).result()


def _apply(wanted: frozenset[str]) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as link:
        loopback = _loopback(link)
        held = _dump(link)
        _check_elsewhere(link, loopback, held, wanted)
        present = frozenset(one.address for one in held if one.index == loopback)
        owned = frozenset(one.address for one in held if one.index == loopback and one.label == LABEL)
        for operation in plan(present, wanted, owned):
            _execute(link, loopback, operation)


def _loopback(link: Any) -> int:
    found = link.link_lookup(ifname="lo")
    if not found:
        raise VipError("this network namespace has no interface 'lo'; run the sidecar in a network namespace of Linux")
    return int(found[0])


def _dump(link: Any) -> list[_Held]:
    return [
        _Held(
            # IFA_ADDRESS is the other end's address on point-to-point links; IFA_LOCAL is always this end's.
            address=message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") or "",
            index=message["index"],
            label=message.get_attr("IFA_LABEL") or "",
        )
        for message in link.get_addr(family=socket.AF_INET)
    ]


def _check_elsewhere(link: Any, loopback: int, held: list[_Held], wanted: frozenset[str]) -> None:
    for one in held:
        if one.address in wanted and one.index != loopback:
            name = link.get_links(one.index)[0].get_attr("IFLA_IFNAME")
            hint = "remove it there, or choose another VIP pool"
            raise VipError(f"virtual address {one.address!r} is already on interface {name!r}; {hint}")


def _execute(link: Any, loopback: int, operation: Operation) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    is_add = isinstance(operation, Add)
    # Someone may have come first since the dump; what they did is what we wanted.
    harmless = errno.EEXIST if is_add else errno.EADDRNOTAVAIL
    try:
        if is_add:
            link.addr("add", index=loopback, address=operation.address, prefixlen=32, scope=_SCOPE_HOST, label=LABEL)
        else:
            link.addr("del", index=loopback, address=operation.address, prefixlen=32)
    except NetlinkError as error:
        if error.code == harmless:
            return
        verb = "add" if is_add else "remove"
        reason = os.strerror(error.code).lower()
        hint = _GRANT if error.code == errno.EPERM else "see `ip address show dev lo`"
        raise VipError(f"cannot {verb} virtual address {operation.address!r} on 'lo': {reason}; {hint}") from error
