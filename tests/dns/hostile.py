"""A machine whose resolver answers everything: `python hostile.py FOLDER PROGRAM...`, in namespaces of its own.

The route-name DNS serves the route `worker`, a route that was, `gone`, and forwards to that resolver.
`/etc/resolv.conf` is what the mesh writes for a machine that searches `corp.example` with `ndots:5`; `/etc/hosts` is
empty, so that every name is asked for. The program runs with FOLDER as its own; its exit code is ours. FOLDER gets
`asked`: the names that the resolver was asked for, a line each.
"""

from __future__ import annotations

import asyncio
import ipaddress
import subprocess
import sys
from pathlib import Path
from typing import cast

from pyroute2 import IPRoute

from dns import zone
from dns.server import DnsServer
from sidecar.files import resolv_conf
from tests.support import spawn

OUTSIDE, OURS, VIP = "127.9.0.1", "127.10.0.53", "127.10.1.2"
WILD, WILD6 = "192.0.2.66", "2001:db8::66"
RECORDS = {
    b"\0\x01": ipaddress.ip_address(WILD).packed,
    b"\0\x1c": ipaddress.ip_address(WILD6).packed,
    b"\0\x10": b"\x07outside",
}
"""By type (A, AAAA, TXT): the data of the record that every name has."""
ORIGINAL = f"nameserver {OUTSIDE}\nsearch corp.example\noptions ndots:5\n"


class Wildcard(asyncio.DatagramProtocol):
    """Every name exists, and leads to the host. Octet by octet: a thousand questions come at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport for the answers."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one query, which has a name written out."""
        end = data.index(0, 12) + 5
        labels, offset = [], 12
        while size := data[offset]:
            labels.append(data[offset + 1 : offset + 1 + size].decode(errors="replace").lower())
            offset += 1 + size
        self.asked.append(".".join(labels))
        found = RECORDS.get(data[end - 4 : end - 2], b"")
        record = b"\xc0\x0c" + data[end - 4 : end] + bytes(3) + b"\x3c\0" + bytes([len(found)]) + found
        head = data[:2] + b"\x81\x80\0\1\0" + bytes([bool(found)]) + bytes(4)
        self._transport.sendto(head + data[12:end] + (record if found else b""), addr)


def mount(source: Path, target: str) -> None:
    """Lays a file over another."""
    subprocess.run(["mount", "--bind", str(source), target], check=True)


async def main(folder: Path, program: list[str]) -> int:
    """Serves until the program has ended."""
    (folder / "original").write_text(ORIGINAL)
    (folder / "resolv.conf").write_text(resolv_conf(ORIGINAL, OURS))
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    mount(folder / "resolv.conf", "/etc/resolv.conf")
    mount(folder / "hosts", "/etc/hosts")
    peers, pools = {"worker-0": "100.96.0.1"}, ("127.10.0.0/16", "100.96.0.0/16")
    services = {"api": (zone.SrvTarget(peer_id="worker-0", port=80),)}
    dns = DnsServer(OURS, 53, resolv_conf=folder / "original")
    dns.set_zone(zone.build({"worker": VIP}, peers, services, serial=1, former=("gone",), pools=pools, server=OURS))
    await dns.start()
    outside, wildcard = await asyncio.get_running_loop().create_datagram_endpoint(Wildcard, local_addr=(OUTSIDE, 53))
    child = await spawn(*program, cwd=folder)
    code = await child.wait()
    await dns.stop()
    outside.close()
    (folder / "asked").write_text("".join(f"{name}\n" for name in wildcard.asked))
    return code


if __name__ == "__main__":
    # Not in the event loop, as it has one of its own.
    with IPRoute() as loopback:
        loopback.link("set", index=1, state="up")
        # Programs that ask for what this machine can reach (AI_ADDRCONFIG) ask for nothing on a machine of loopback.
        loopback.addr("add", index=1, address="10.9.9.9", prefixlen=32)
        loopback.addr("add", index=1, address="fd00::9", prefixlen=128)
    sys.exit(asyncio.run(main(Path(sys.argv[1]), sys.argv[2:])))
