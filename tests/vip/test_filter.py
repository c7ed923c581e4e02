"""What comes in by the mesh, in a real kernel: a CVM, another CVM of the mesh, and the host beside the tunnel.

A veth pair whose end is called `mesh0` stands for the tunnel: the rules go by the interface's name.

Long because each rule is tried from each of these places.
"""

from __future__ import annotations

import errno
import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import network_namespace
from tests.xds.test_lost_peer import within
from vip.filter import Filter
from vip.nftables import RefusalTable
from vip.resets import Resets
from vip.table import Wanted

pytestmark = pytest.mark.netns

POOL = "100.96.0.0/16"
OWN, OTHER, CONTAINER = "100.96.0.7", "100.96.0.8", "172.17.0.2"
PUBLIC, HOST = "10.0.2.15", "10.0.2.2"
INGRESS, GOSSIP, APPLICATION = 28000, 8301, 9999
EVERYWHERE = "0.0.0.0"
FILTER = Filter(POOL, "mesh0", frozenset({INGRESS, GOSSIP}), frozenset({GOSSIP}))
SILENCE = errno.EWOULDBLOCK
"""What a connect without any answer ends with after WAIT."""
WAIT = 1.0
"""Seconds in which the answer of a machine beside ours would be there."""


@dataclass(frozen=True)
class Places:
    """Network namespaces."""

    cvm: str
    other: str
    """Another CVM of the mesh."""
    host: str
    """Beside the tunnel."""


def wire(names: tuple[str, str], interface: str, addresses: tuple[str, str], length: int) -> None:
    """Makes a wire between two namespaces, its ends called `interface`."""
    from pyroute2 import NetNS

    with NetNS(names[0]) as link:
        link.link("add", ifname=interface, kind="veth", peer={"ifname": interface, "net_ns_fd": names[1]})
    for name, address in zip(names, addresses, strict=True):
        with NetNS(name) as link:
            index = link.link_lookup(ifname=interface)[0]
            link.addr("add", index=index, address=address, prefixlen=length)
            link.link("set", index=index, state="up")


@pytest.fixture
def places() -> Iterator[Places]:
    """A CVM that is wired to both; the host knows the way to its mesh address beside the tunnel."""
    from pyroute2 import NetNS

    with network_namespace() as cvm, network_namespace() as other, network_namespace() as host:
        wire((cvm, other), "mesh0", (OWN, OTHER), 16)
        wire((cvm, host), "eth0", (PUBLIC, HOST), 24)
        with NetNS(host) as link:
            link.route("add", dst=POOL, gateway=PUBLIC)
        yield Places(cvm, other, host)


def apply(places: Places, wanted: Filter | None = FILTER, table: RefusalTable | None = None) -> RefusalTable:
    """The table, after it has taken `wanted`."""
    table = table or RefusalTable()
    within(places.cvm, lambda: table.apply(Wanted(Resets(), wanted)))
    return table


def listen(namespace: str, port: int, address: str = EVERYWHERE) -> socket.socket:
    """A server at `address`."""
    return within(namespace, lambda: socket.create_server((address, port), backlog=64))


def dial(namespace: str, address: str, port: int) -> int:
    """0, or how a connection does not come about."""

    def work() -> int:
        with socket.socket() as client:
            client.settimeout(WAIT)
            return client.connect_ex((address, port))

    return within(namespace, work)


def datagrams(namespace: str, address: str = EVERYWHERE, port: int = 0) -> socket.socket:
    """A bound UDP socket."""

    def work() -> socket.socket:
        made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(WAIT)
        return made

    return within(namespace, work)


def arrives(server: socket.socket) -> bytes | None:
    """The next datagram's first bytes; None when there is none."""
    try:
        return server.recv(4)
    except TimeoutError:
        return None


def test_of_what_listens_everywhere_the_mesh_reaches_the_open_ports_only(places: Places) -> None:
    """A closed one resets at once. Programs of the CVM itself, and who comes to another address, reach everything."""
    with listen(places.cvm, INGRESS), listen(places.cvm, APPLICATION):
        assert [dial(places.other, OWN, port) for port in (INGRESS, APPLICATION)] == [0, 0]
        apply(places)
        assert [dial(places.other, OWN, port) for port in (INGRESS, APPLICATION)] == [0, errno.ECONNREFUSED]
        for address in (OWN, "127.0.0.1", PUBLIC):
            assert dial(places.cvm, address, APPLICATION) == 0
        assert dial(places.host, PUBLIC, APPLICATION) == 0


def test_beside_the_tunnel_the_mesh_address_does_not_answer(places: Places) -> None:
    """Without the filter Linux answers there on every port, for it takes an address on any interface."""
    ports = (INGRESS, GOSSIP, APPLICATION)
    servers = [listen(places.cvm, port, address) for port, address in zip(ports, (OWN, OWN, EVERYWHERE), strict=True)]
    with datagrams(places.cvm, OWN, GOSSIP) as gossip, datagrams(places.host) as sender:
        assert [dial(places.host, OWN, port) for port in ports] == [0, 0, 0]
        sender.sendto(b"ping", (OWN, GOSSIP))
        assert arrives(gossip) == b"ping"
        apply(places)
        assert [dial(places.host, OWN, port) for port in (*ports, 1)] == [SILENCE] * 4
        sender.sendto(b"ping", (OWN, GOSSIP))
        assert arrives(gossip) is None
    for server in servers:
        server.close()


def test_the_tunnel_leads_to_mesh_addresses_only(places: Places) -> None:
    """A peer that sends to another address of the CVM through its tunnel gets nothing."""
    from pyroute2 import NetNS

    with NetNS(places.other) as link:
        link.route("add", dst=f"{PUBLIC}/32", gateway=OWN)
    with listen(places.cvm, INGRESS):
        assert dial(places.other, PUBLIC, INGRESS) == 0
        apply(places)
        assert dial(places.other, PUBLIC, INGRESS) == SILENCE


def test_datagrams_reach_gossip_and_nothing_else(places: Places) -> None:
    """Also one that comes in fragments, as on a narrow path."""
    apply(places)
    with (
        datagrams(places.cvm, port=GOSSIP) as gossip,
        datagrams(places.cvm, port=APPLICATION) as application,
        datagrams(places.other) as sender,
    ):
        for size in (4, 4000):
            sender.sendto(b"ping" * (size // 4), (OWN, GOSSIP))
            assert arrives(gossip) == b"ping"
        sender.sendto(b"ping", (OWN, APPLICATION))
        assert arrives(application) is None


def test_what_the_cvm_calls_in_the_mesh_answers(places: Places) -> None:
    """Packets of its own connections come back; so does what says that a datagram cannot be delivered."""
    apply(places)
    with listen(places.other, APPLICATION, OTHER), datagrams(places.cvm) as sender:
        assert dial(places.cvm, OTHER, APPLICATION) == 0
        sender.connect((OTHER, 1))
        sender.send(b"ping")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(1)


def test_the_mesh_may_ping(places: Places) -> None:
    """Echo requests are answered, and echo replies come in."""
    apply(places)
    for namespace, address in ((places.other, OWN), (places.cvm, OTHER)):
        assert echoes(namespace, address)


def echoes(namespace: str, address: str) -> bool:
    """Whether an ICMP echo request is answered."""
    # Type 8, code 0, checksum, identifier 1, number 1 (RFC 792): the checksum of these few is their complement.
    request = struct.pack("!BBHHH", 8, 0, ~(8 << 8) - 2 & 0xFFFF, 1, 1)

    def work() -> bool:
        with socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as raw:
            raw.settimeout(WAIT)
            raw.sendto(request, (address, 0))
            try:
                return raw.recv(100)[20] == 0
            except TimeoutError:
                return False

    return within(namespace, work)


def exchange(client: socket.socket, server: socket.socket) -> bool:
    """Whether bytes pass both ways."""
    client.sendall(b"ping")
    server.sendall(server.recv(4))
    return client.recv(4) == b"ping"


def test_held_connections_survive_every_change_of_the_rules(places: Places) -> None:
    """One from before the filter, at a port that opens and closes, and after a SIGKILL of who made the table: the next
    one knows nothing of it and replaces it as a whole.
    """
    with listen(places.cvm, APPLICATION) as server:
        client = within(places.other, lambda: socket.create_connection((OWN, APPLICATION), WAIT))
        held, _ = server.accept()
        held.settimeout(WAIT)
        with client, held:
            opened = FILTER._replace(tcp=FILTER.tcp | {APPLICATION})
            table = None
            for wanted, answer in ((FILTER, errno.ECONNREFUSED), (opened, 0), (FILTER, errno.ECONNREFUSED)):
                table = apply(places, wanted, table)
                assert exchange(client, held)
                assert dial(places.other, OWN, APPLICATION) == answer
            assert dial(places.other, OWN, APPLICATION) == errno.ECONNREFUSED, "the table stays when its maker dies"
            apply(places, opened)
            assert exchange(client, held)
            assert dial(places.other, OWN, APPLICATION) == 0
            apply(places, FILTER)
            assert exchange(client, held)
            assert dial(places.host, OWN, APPLICATION) == SILENCE


def test_no_change_leaves_a_gap(places: Places) -> None:
    """While the table is replaced, again and again, nobody gets through, and the open port always answers."""
    apply(places)
    with listen(places.cvm, INGRESS) as ingress, listen(places.cvm, APPLICATION):
        for _ in range(20):
            within(places.cvm, lambda: RefusalTable().apply(Wanted(Resets(), FILTER)))
            assert [dial(places.other, OWN, port) for port in (APPLICATION, INGRESS)] == [errno.ECONNREFUSED, 0]
            ingress.accept()[0].close()


def test_a_clean_stop_leaves_nothing_behind(places: Places) -> None:
    """As before the start."""
    table = apply(places)
    within(places.cvm, table.remove)
    with listen(places.cvm, APPLICATION):
        assert [dial(place, OWN, APPLICATION) for place in (places.other, places.host)] == [0, 0]


def test_the_rules_are_there_before_the_tunnel_is() -> None:
    """They go by the interface's name."""
    with network_namespace() as cvm, network_namespace() as other:
        apply(Places(cvm, other, other))
        wire((cvm, other), "mesh0", (OWN, OTHER), 16)
        with listen(cvm, APPLICATION), listen(cvm, INGRESS):
            assert [dial(other, OWN, port) for port in (INGRESS, APPLICATION)] == [0, errno.ECONNREFUSED]


def test_of_ipv6_nothing_comes_in(places: Places) -> None:
    """The mesh is IPv4; what speaks IPv6 over the tunnel gets no answer."""
    from pyroute2 import NetNS
    from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD

    own, other = (places.cvm, "fd00::7"), (places.other, "fd00::8")
    # Neighbours are set: to find them may take longer than a connect waits here.
    for (name, address), (far, far_address) in ((own, other), (other, own)):
        with NetNS(name) as link, NetNS(far) as far_link:
            index = link.link_lookup(ifname="mesh0")[0]
            hardware = far_link.link("get", index=far_link.link_lookup(ifname="mesh0")[0])[0].get_attr("IFLA_ADDRESS")
            link.addr("add", index=index, address=address, prefixlen=64, flags=IFA_F_NODAD)
            link.neigh("add", dst=far_address, lladdr=hardware, ifindex=index, state="permanent")

    def work() -> int:
        with socket.socket(socket.AF_INET6) as client:
            client.settimeout(WAIT)
            return client.connect_ex(("fd00::7", INGRESS))

    with within(places.cvm, lambda: socket.create_server(("::", INGRESS), family=socket.AF_INET6)):
        assert within(places.other, work) == 0
        apply(places)
        assert within(places.other, work) == SILENCE


@pytest.mark.parametrize("flags", [0x02, 0x02 | 0x08 | 0x20, 0x02 | 0x40 | 0x80])
def test_no_flags_open_a_connection_to_a_closed_port(places: Places, flags: int) -> None:
    """SYN alone, with PSH and URG, with ECE and CWR (RFC 9293): all are answered by a reset, not by SYN and ACK."""
    apply(places)
    # From port 5, number 1, header of 5 words, window 1000; the sum is over RFC 9293's pseudo header, too.
    header = struct.pack("!HHIIBBHHH", 5, APPLICATION, 1, 0, 5 << 4, flags, 1000, 0, 0)
    pseudo = socket.inet_aton(OTHER) + socket.inet_aton(OWN) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(header)) // 2}H", pseudo + header))
    total = (total & 0xFFFF) + (total >> 16)
    packet = header[:16] + struct.pack("!HH", ~total & 0xFFFF, 0)

    def work() -> int:
        with socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_TCP) as raw:
            raw.settimeout(WAIT)
            raw.sendto(packet, (OWN, 0))
            return raw.recv(100)[20 + 13]

    with listen(places.cvm, APPLICATION):
        assert within(places.other, work) & 0x17 == 0x14


@pytest.mark.parametrize("filtered", [False, True])
def test_loopback_addresses_answer_nobody_outside(places: Places, filtered: bool) -> None:
    """The kernel drops packets to 127.0.0.0/8, VIPs among them, from any other interface: it needs no rule of ours."""
    apply(places, FILTER if filtered else None)
    ways = ((places.other, "mesh0", OTHER, OWN), (places.host, "eth0", HOST, PUBLIC))
    with datagrams(places.cvm, port=GOSSIP) as server:
        for namespace, interface, source, own in ways:
            hardware = within(places.cvm, lambda interface=interface: hardware_address(interface))
            for address, arrived in ((own, b"ping"), ("127.10.1.1", None), ("127.0.0.1", None)):
                frame = hardware * 2 + b"\x08\0" + datagram(source, address, GOSSIP)
                within(namespace, lambda interface=interface, frame=frame: send_frame(interface, frame))
                assert arrives(server) == arrived, (interface, address)


def hardware_address(interface: str) -> bytes:
    """MAC address."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        found: bytes = raw.getsockname()[4]
        return found


def send_frame(interface: str, frame: bytes) -> None:
    """Sends an Ethernet frame as it is."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        raw.send(frame)


def datagram(source: str, destination: str, port: int) -> bytes:
    """An IPv4 packet with "ping" in UDP, which needs no checksum (RFC 768)."""
    body = struct.pack("!HHHH", 5, port, 12, 0) + b"ping"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_UDP, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + body


PUBLISH = f"""
table ip docker {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        tcp dport {APPLICATION} dnat to {CONTAINER}:{APPLICATION}
    }}
}}
"""


def nft(namespace: str, *arguments: str, text: str = "") -> str:
    """What the `nft` program says in the namespace."""
    argv = ["ip", "netns", "exec", namespace, "nft", *arguments]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft")
def test_a_port_that_a_container_publishes_answers_elsewhere_and_not_in_the_mesh(places: Places) -> None:
    """Docker translates the address before routing, so such a packet is forwarded and never comes to the input hook."""
    from pyroute2 import NetNS

    with network_namespace() as container:
        wire((places.cvm, container), "docker0", ("172.17.0.1", CONTAINER), 16)
        with NetNS(container) as link:
            link.route("add", dst="default", gateway="172.17.0.1")
        within(places.cvm, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        nft(places.cvm, "-f", "-", text=PUBLISH)
        with listen(container, APPLICATION), listen(places.cvm, INGRESS):
            assert [dial(place, OWN, APPLICATION) for place in (places.other, places.host)] == [0, 0]
            apply(places)
            assert dial(places.other, OWN, APPLICATION) == errno.ECONNREFUSED
            assert dial(places.host, OWN, APPLICATION) == SILENCE
            assert dial(places.host, PUBLIC, APPLICATION) == 0
            assert dial(container, OWN, INGRESS) == SILENCE


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft")
def test_nft_shows_the_rules_in_its_own_words(places: Places) -> None:
    """What an operator sees is what was meant; the sets hold the ports."""
    table = apply(places)
    shown = nft(places.cvm, "list", "table", "inet", "cvm_mesh")
    chains = [part.split("\n\t}")[0].split("\n\t\t")[1:] for part in shown.split("\n\tchain ")[2:]]
    assert chains == [
        [
            "type filter hook prerouting priority raw; policy accept;",
            'iifname != "lo" iifname != "mesh0" ip daddr 100.96.0.0/16 drop',
        ],
        [
            "type filter hook forward priority filter; policy accept;",
            'iifname "mesh0" meta l4proto tcp reject with tcp reset',
            'iifname "mesh0" drop',
        ],
        [
            "type filter hook input priority filter; policy accept;",
            'iifname != "mesh0" accept',
            "meta nfproto != ipv4 drop",
            "ip daddr != 100.96.0.0/16 drop",
            "icmp type echo-reply accept",
            "icmp type destination-unreachable accept",
            "icmp type echo-request accept",
            "udp dport @mesh_udp accept",
            "tcp flags != syn / syn,ack accept",
            "tcp dport @mesh_tcp accept",
            "meta l4proto tcp reject with tcp reset",
            "drop",
        ],
    ]
    apply(places, FILTER._replace(tcp=frozenset({80})), table)
    found = json.loads(nft(places.cvm, "-j", "list", "set", "inet", "cvm_mesh", "mesh_tcp"))["nftables"][1]["set"]
    assert found["elem"] == [80]
