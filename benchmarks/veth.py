"""Two network namespaces joined by one veth: the raw path without a mesh. `python -m benchmarks.veth`.

The child is the backend in one namespace; this process becomes `benchmarks.inside` in the other. Both namespaces go
with their processes. Needs the right to make namespaces, which a CVM's container of the lab has.
"""

from __future__ import annotations

import os
import signal
import sys

from pyroute2 import IPRoute

from benchmarks import backend, inside
from lab import namespaces as ns

CLIENT, SERVER = "192.0.2.1", "192.0.2.2"


def main() -> int:
    """Sets the link up and answers commands until stdin ends."""
    ns.unshare(ns.NEWNET)
    made, ready = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        ns.die_with_parent()
        ns.unshare(ns.NEWNET)
        os.write(made[1], b"x")
        os.read(ready[0], 1)
        _address("bench1", SERVER)
        os.write(made[1], b"x")
        backend.serve((SERVER, backend.PORT))
    os.read(made[0], 1)
    with IPRoute() as links:
        links.link("add", ifname="bench0", kind="veth", peer={"ifname": "bench1", "net_ns_pid": child})
    _address("bench0", CLIENT)
    os.write(ready[1], b"x")
    os.read(made[0], 1)
    try:
        return inside.main()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _address(name: str, address: str) -> None:
    with IPRoute() as links:
        index = links.link_lookup(ifname=name)[0]
        links.addr("add", index=index, address=address, prefixlen=24)
        links.link("set", index=index, state="up")


if __name__ == "__main__":
    sys.exit(main())
