"""What the kernel resets and lets in, set by netlink. An edge; what to send is `vip.table`'s decision.

Needs CAP_NET_ADMIN and a kernel with nf_tables and nft_reject_inet. dstack's guests have both as modules
(Dstack-TEE/meta-dstack, recipes-kernel/linux/files/dstack-docker.cfg), which the kernel loads when they are asked for.
"""

from __future__ import annotations

import errno
import os
import socket

from vip.messages import TABLE, Batch, errors
from vip.table import Wanted, change, gone, whole

_NETFILTER = 12
"""NETLINK_NETFILTER (linux/netlink.h); the socket module has no name for it."""
_RECEIVE_BYTES = 1 << 16
_WITHOUT = (
    "until then what a program binds to 0.0.0.0 answers every CVM of the mesh, and mesh addresses answer beside the "
    "tunnel; a route with nobody behind it accepts connections and closes them, instead of refusing, and a connection "
    "to a CVM that vanished ends as if it were complete, instead of with a reset"
)
_HINTS = {
    errno.EPERM: "grant the sidecar NET_ADMIN (docker compose: `cap_add: [NET_ADMIN]`)",
    errno.EACCES: "grant the sidecar NET_ADMIN (docker compose: `cap_add: [NET_ADMIN]`)",
}
_KERNEL = "use a kernel with nf_tables and nft_reject_inet (`modprobe nf_tables nft_reject_inet` loads them)"


class RefusalError(OSError):
    """The kernel does not take our table. The message says why, what to do, and what follows from it."""


class RefusalTable:
    """Our table in the network namespace of the calling thread. Not for several threads at once."""

    def __init__(self, held: Wanted | None = None) -> None:
        """`held`: what the kernel has, as far as it is known; None: unknown, whatever a killed predecessor left."""
        self._held = held

    def apply(self, wanted: Wanted) -> None:
        """Makes the table do `wanted`. The first call replaces what there was as a whole, later ones send what
        changed. Takes less than a millisecond once the kernel's modules are loaded.

        RefusalError when the kernel does not take it; then the next call replaces everything again.
        """
        held, self._held = self._held, None
        if held is None:
            _send(whole(wanted))
        elif held != wanted:
            try:
                _send(change(held, wanted))
            except RefusalError:
                # Somebody has emptied or deleted the table.
                _send(whole(wanted))
        self._held = wanted

    def remove(self) -> None:
        """Takes the table away: everything may come in again. RefusalError when the kernel does not take it."""
        self._held = None
        _send(gone())


def _send(batch: Batch) -> None:
    if not batch.acks:
        return
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as link:
            link.sendto(batch.data, (0, 0))
            _read(link, batch.acks)
    except RefusalError:
        raise
    except (OSError, ValueError) as error:
        raise _error(error.errno if isinstance(error, OSError) else None, str(error)) from error


def _read(link: socket.socket, acks: int) -> None:
    """Reads until everything is acknowledged, or one error."""
    while acks > 0:
        # The kernel has answered when `sendto` returns: a batch is carried out by whoever sends it. Waiting here could
        # only be waiting for ever.
        for found in errors(link.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)):
            if found:
                raise _error(found, os.strerror(found))
            acks -= 1


def _error(number: int | None, reason: str) -> RefusalError:
    hint = _HINTS.get(number, _KERNEL) if number is not None else _KERNEL
    return RefusalError(f"nftables does not take the table {TABLE!r}: {reason.lower()}; {hint}; {_WITHOUT}")
