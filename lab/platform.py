"""The platform around the CVMs, in its own network namespace: DNS, collateral, gateway and the public entries."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from lab import plan as plans
from lab.gateway import Gateway
from lab.namespaces import inside_network
from lab.network import HostNet
from lab.pccs import PccsServer
from lab.resolver import Resolver
from lab.tee import DevTee
from runtime.tasks import TaskScope

Entry = tuple[socket.socket, str, int]
"""A public entry: a listening socket on the machine's loopback, and the app ID and port that it leads to."""


async def start_platform(
    scope: TaskScope,
    tee: DevTee,
    place: HostNet,
    entries: Sequence[Entry],
    *,
    hosts_of: Callable[[str], Sequence[str]],
    address_of: Callable[[str], str],
) -> None:
    """Starts everything in the namespace `place`.

    `hosts_of` gives the CVMs that an app or instance ID means, `address_of` where the gateway reaches a CVM.
    """
    table = {plans.PCCS_NAME: place.address}

    def lookup(name: str) -> str | None:
        return place.address if name.endswith("." + plans.GATEWAY_BASE) else table.get(name)

    def new_socket() -> socket.socket:
        with inside_network(place.netns):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    with inside_network(place.netns):
        dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        dns.bind((place.address, 53))
        pccs = socket.create_server((place.address, plans.PCCS_PORT))
        public = socket.create_server((place.address, 443), backlog=256)
    await Resolver.start(dns, lookup)
    await PccsServer(tee).start(pccs)
    gateway = Gateway(
        base=plans.GATEWAY_BASE,
        resolve=lambda identity: [address_of(peer_id) for peer_id in hosts_of(identity)],
        make_socket=new_socket,
    )
    scope.start("gateway", gateway.serve(scope, public))
    for entry, app_id, port in entries:
        scope.start(f"public entry to port {port}", gateway.serve_plain(scope, entry, app_id, port))
