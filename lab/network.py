"""The lab's networks: an "internet" segment, and per CVM a network namespace behind a NAT router of its own.

    CVM namespace                     router namespace                internet namespace
      eth0 10.0.2.15/24 ── veth ── lan 10.0.2.2/24
                                    wan 198.18.1.x/16 ── veth ── bridge `segment` ── veth ── hosts, 198.18.0.x
      dstack-wg0 10.4.x.y/32 ── veth ── cvm<n> (gateway namespace, 10.4.0.1)

As on dstack: CVMs have no layer-3 path to each other and no inbound UDP; the platform's gateway reaches each one over
`dstack-wg0` and does not forward between them.

Namespaces are held open by file descriptors of this process and by nothing else: no name under /run/netns, no mount.
They are gone when this process and those inside are gone, however they ended. `netns` values are paths like
`/proc/123/fd/7`, which `nsenter --net=`, `pyroute2.NetNS` and `setns(2)` take. Works as root, and as root of an
unprivileged user namespace.

Long because the class is one thing: what it builds, breaks and mends all needs the same descriptors and one thread.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from lab.nat import Direction, Nat, drop_arrivals, drop_unreachables, install_faults, install_router

P = ParamSpec("P")
T = TypeVar("T")

CVM_ADDRESS, CVM_GATEWAY, CVM_PREFIX = "10.0.2.15", "10.0.2.2", 24
"""What QEMU's user network gives a dstack CVM."""
SEGMENT_PREFIX = 16
"""The segment is 198.18.0.0/16 (RFC 2544's block for tests): hosts in 198.18.0.0/24, routers above."""
PLATFORM_GATEWAY = "10.4.0.1"
"""The gateway's address on every CVM's `dstack-wg0`."""
MAX_CVMS = 60_000
_CLONE_NEWNET = 0x40000000
_PER_OCTET = 250
_NOBODY = "02:00:00:00:00:01"
"""A hardware address that no interface of the lab has."""


class LabNetworkError(RuntimeError):
    """The machine refused a namespace, or a name is unknown or taken. Says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNet:
    """A public host on the segment."""

    name: str
    netns: str
    """Path of its namespace, good while the lab process lives."""
    address: str
    """Its public IPv4 address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CvmNet:
    """A CVM's place in the lab."""

    name: str
    netns: str
    """Path of the CVM's namespace, good while the lab process lives."""
    router_netns: str
    """Path of its NAT router's namespace."""
    address: str
    """The CVM's own address on eth0, the same in every CVM."""
    public_address: str
    """The router's address on the segment: what others see."""
    platform_address: str
    """The CVM's address on `dstack-wg0`: where the gateway reaches its host interface."""


@dataclass(slots=True)
class _Cvm:
    net: CvmNet
    namespace: int
    router: int
    index: int
    nat: Nat
    blocks: list[tuple[str | None, Direction]]
    cut: Direction | None = None


class LabNetwork:
    """Builds and breaks the lab's networks. Methods block for milliseconds; inside an event loop, call from a thread.

    All work happens on one private thread, which is moved from namespace to namespace: the caller's stays where it is.
    """

    def __init__(self, prefix: str = "mesh", gateway: str = "platform") -> None:
        self.prefix = prefix
        """Names this lab in errors."""
        self._gateway = gateway
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{prefix}-network")
        self._fds: list[int] = []
        self._hosts: dict[str, HostNet] = {}
        self._host_fds: dict[str, int] = {}
        self._host_numbers: dict[str, int] = {}
        self._cvms: dict[str, _Cvm] = {}
        try:
            self._segment = self._call(self._make_segment)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_host(self, name: str, adopt: str | None = None) -> HostNet:
        """A public host: rendezvous, PCCS, a client. The one with the gateway's name (default `platform`) is the
        gateway: it has the other ends of all `dstack-wg0`. It is made with the first CVM at the latest.

        Addresses are given in the order of the calls; `adopt` as for a CVM.
        """
        self._check_free(name)
        return self._call(self._make_host, name, adopt)

    def remove_host(self, name: str) -> None:
        """Forgets a host that is not the gateway; its address is the next host's."""
        self._hosts.pop(name)
        self._call(self._drop_host, self._host_fds.pop(name), self._host_numbers.pop(name))

    def netns_path(self, name: str) -> str:
        """Path of the namespace of the host or CVM called `name`."""
        host = self._hosts.get(name)
        return host.netns if host else self._cvm(name).net.netns

    def gateway_address(self, name: str) -> str:
        """Where the gateway reaches CVM `name`."""
        return self._cvm(name).net.platform_address

    def add_cvm(self, name: str, nat: Nat = "preserving", index: int | None = None, adopt: str | None = None) -> CvmNet:
        """A CVM behind its own NAT. `index` (default: the first free one) fixes its addresses.

        `adopt` is the path of a namespace that is there already, a container's; without it, one is made.
        """
        self._check_free(name)
        if self._gateway not in self._hosts:
            self.add_host(self._gateway)
        taken = {cvm.index for cvm in self._cvms.values()}
        if index is None:
            index = next(number for number in range(MAX_CVMS) if number not in taken)
        if index in taken or not 0 <= index < MAX_CVMS:
            raise LabNetworkError(f"index {index!r} for {name!r} is taken or outside 0..{MAX_CVMS - 1}; leave it out")
        return self._call(self._make_cvm, name, nat, index, adopt)

    def remove_cvm(self, name: str) -> None:
        """Forgets a CVM; its interfaces go when its processes are gone."""
        cvm = self._cvm(name)
        del self._cvms[name]
        self._call(self._drop, cvm)

    def reset_cvm(self, name: str) -> CvmNet:
        """Gives CVM `name` a new namespace and router with the same addresses, as a boot would. Ends its faults."""
        cvm = self._cvm(name)
        self.remove_cvm(name)
        return self.add_cvm(name, cvm.nat, cvm.index)

    def block_udp(self, name: str, remote: str | None = None, direction: Direction = "both") -> None:
        """Drops UDP between CVM `name` and public address `remote` (None: everyone) at its router. Blocks add up."""
        cvm = self._cvm(name)
        cvm.blocks.append((remote, direction))
        self._call(self._install_faults, cvm)

    def unblock_udp(self, name: str) -> None:
        """Ends every block of CVM `name`."""
        cvm = self._cvm(name)
        cvm.blocks.clear()
        self._call(self._install_faults, cvm)

    def limit_mtu(self, name: str, mtu: int | None, direction: Direction = "both", *, icmp: bool = True) -> None:
        """Makes the path to (`in`), from (`out`) or to and from CVM `name` carry IP packets of `mtu` bytes at most.

        Its router refuses larger ones and tells their sender so by ICMP, unless `icmp` is false. None ends the limit.
        The CVM's own interface stays as it is, as when the narrow link is somewhere in the network.
        """
        self._call(self._limit_mtu, self._cvm(name), mtu, direction, icmp)

    def cut(self, name: str, direction: Direction = "both") -> None:
        """Loses every packet to (`in`), from (`out`) or to and from CVM `name`, on the segment and the platform's link.

        `both` is a pulled cable. The CVM's interfaces stay up, as they do when the fault is in the network. Cuts add
        up.
        """
        cvm = self._cvm(name)
        self._call(self._cut, cvm, direction if cvm.cut in (None, direction) else "both")

    def heal(self, name: str) -> None:
        """Ends every cut of CVM `name`."""
        self._call(self._cut, self._cvm(name), None)

    def cut_of(self, name: str) -> Direction | None:
        """Which way CVM `name` is cut off now; None when it is not, or is no CVM."""
        cvm = self._cvms.get(name)
        return cvm.cut if cvm else None

    def close(self) -> None:
        """Lets go of every namespace. Idempotent."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._cvms.clear()
        self._hosts.clear()
        # The thread sits in the namespace that it visited last; ending it frees that one too.
        self._thread.shutdown(wait=True)

    def _check_free(self, name: str) -> None:
        if name in self._hosts or name in self._cvms:
            raise LabNetworkError(f"{name!r} is already in lab {self.prefix!r}; use another name")

    def _cvm(self, name: str) -> _Cvm:
        try:
            return self._cvms[name]
        except KeyError:
            raise LabNetworkError(f"no CVM {name!r} in lab {self.prefix!r}; there are {sorted(self._cvms)}") from None

    # What follows runs on the private thread.

    def _call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.submit(work, *args, **kwargs).result()

    def _in(self, namespace: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        _setns(namespace)
        return work(*args, **kwargs)

    def _new_namespace(self) -> int:
        """A new namespace, entered, with `lo` up; the descriptor that holds it."""
        if _libc().unshare(_CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise LabNetworkError(
                f"cannot make a network namespace: {reason}; run as root, or allow unprivileged user namespaces"
                " (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
            )
        return self._settle()

    def _adopted_namespace(self, path: str) -> int:
        """The namespace at `path`, entered, with `lo` up; the descriptor that holds it."""
        enter(path)
        return self._settle()

    def _settle(self) -> int:
        """Holds and prepares the namespace that the thread is in."""
        # Inheritable it must not be: a child that keeps the descriptor would keep the namespace.
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(fd)
        ipv6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
        if ipv6.exists():
            # The lab is IPv4 only, as dstack's network is; link-local chatter would only cost time.
            ipv6.write_text("1")
        with _links() as links:
            links.link("set", index=1, state="up")
        return fd

    def _path(self, fd: int) -> str:
        # What /proc calls this process: in a PID namespace of its own, getpid() is another number.
        return f"/proc/{Path('/proc/self').readlink()}/fd/{fd}"

    def _make_segment(self) -> int:
        fd = self._new_namespace()
        with _links() as links:
            links.link("add", ifname="segment", kind="bridge")
            self._bridge = links.link_lookup(ifname="segment")[0]
            links.link("set", index=self._bridge, state="up")
        return fd

    def _make_host(self, name: str, adopt: str | None = None) -> HostNet:
        taken = set(self._host_numbers.values())
        number = next(number for number in range(MAX_CVMS) if number not in taken)
        address = host_address(number)
        fd = self._adopted_namespace(adopt) if adopt else self._new_namespace()
        # The same hardware address for whoever has this address next: neighbours remember it.
        self._join_segment("eth0", f"h{number}", address, hardware=f"02:00:00:00:01:{number:02x}")
        if name == self._gateway:
            with _links() as links:
                links.addr("add", index=1, address=PLATFORM_GATEWAY, prefixlen=32)
        host = HostNet(name=name, netns=self._path(fd), address=address)
        self._hosts[name], self._host_fds[name], self._host_numbers[name] = host, fd, number
        return host

    def _drop_host(self, namespace: int, number: int) -> None:
        # Deleting one end of a veth deletes both, also where the other end's namespace lives on.
        _setns(self._segment)
        with _links() as links:
            for index in links.link_lookup(ifname=f"h{number}"):
                links.link("del", index=index)
        self._fds.remove(namespace)
        os.close(namespace)

    def _join_segment(self, ifname: str, port: str, address: str, hardware: str | None = None) -> None:
        """Connects the current namespace to the segment."""
        with _links() as links:
            peer = {"ifname": port, "net_ns_fd": self._segment, "master": self._bridge}
            links.link("add", ifname=ifname, kind="veth", peer=peer)
            own = links.link_lookup(ifname=ifname)[0]
            if hardware is not None:
                links.link("set", index=own, address=hardware)
            links.addr("add", index=own, address=address, prefixlen=SEGMENT_PREFIX)
            links.link("set", index=own, state="up")
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._segment)
            with _links() as links:
                links.link("set", index=links.link_lookup(ifname=port)[0], master=self._bridge, state="up")
            _setns(here)
        finally:
            os.close(here)

    def _make_cvm(self, name: str, kind: Nat, index: int, adopt: str | None) -> CvmNet:
        public = f"198.18.{1 + index // _PER_OCTET}.{1 + index % _PER_OCTET}"
        platform = _platform_address(index)
        router = self._new_namespace()
        self._join_segment("wan", f"c{index}", public)
        install_router("wan", "lan", kind)
        namespace = self._adopted_namespace(adopt) if adopt else self._new_namespace()
        with _links() as links:
            links.link("add", ifname="eth0", kind="veth", peer={"ifname": "lan", "net_ns_fd": router})
            eth0 = links.link_lookup(ifname="eth0")[0]
            links.addr("add", index=eth0, address=CVM_ADDRESS, prefixlen=CVM_PREFIX)
            links.link("set", index=eth0, state="up")
            links.route("add", dst="default", gateway=CVM_GATEWAY)
            peer = {"ifname": f"cvm{index}", "net_ns_fd": self._host_fds[self._gateway]}
            links.link("add", ifname="dstack-wg0", kind="veth", peer=peer)
            wg0 = links.link_lookup(ifname="dstack-wg0")[0]
            links.addr("add", index=wg0, address=platform, prefixlen=32)
            links.link("set", index=wg0, state="up")
            links.route("add", dst=f"{PLATFORM_GATEWAY}/32", oif=wg0, scope="link")
        _setns(router)
        with _links() as links:
            lan = links.link_lookup(ifname="lan")[0]
            links.addr("add", index=lan, address=CVM_GATEWAY, prefixlen=CVM_PREFIX)
            links.link("set", index=lan, state="up")
        self._plug_platform(index)
        net = CvmNet(
            name=name,
            netns=self._path(namespace),
            router_netns=self._path(router),
            address=CVM_ADDRESS,
            public_address=public,
            platform_address=platform,
        )
        self._cvms[name] = _Cvm(net=net, namespace=namespace, router=router, index=index, nat=kind, blocks=[])
        return net

    def _install_faults(self, cvm: _Cvm) -> None:
        _setns(cvm.router)
        install_faults("wan", "lan", cvm.blocks, cvm.cut)

    def _limit_mtu(self, cvm: _Cvm, mtu: int | None, direction: Direction, icmp: bool) -> None:
        _setns(cvm.router)
        drop_unreachables(mtu is not None and not icmp)
        ways = (("wan", "out", cvm.net.public_address, SEGMENT_PREFIX), ("lan", "in", CVM_GATEWAY, CVM_PREFIX))
        with _links() as links:
            for interface, way, address, prefix in ways:
                narrow = mtu is not None and direction in (way, "both")
                links.route(
                    "replace",
                    dst=str(ipaddress.ip_interface(f"{address}/{prefix}").network),
                    oif=links.link_lookup(ifname=interface)[0],
                    prefsrc=address,
                    scope="link",
                    proto="kernel",
                    **({"metrics": {"mtu": mtu}} if narrow else {}),
                )

    def _cut(self, cvm: _Cvm, direction: Direction | None) -> None:
        # Carrier is left alone: a link that comes up is used only after the kernel's link watch, up to 1 s later.
        before, cvm.cut = cvm.cut, direction
        self._install_faults(cvm)
        _setns(self._host_fds[self._gateway])
        self._install_platform_faults()
        # What the gateway sends is lost on its way: a rule here would let the gateway's own programs see an error.
        lost, was_lost = direction in ("in", "both"), before in ("in", "both")
        if lost != was_lost:
            with _links() as links:
                neighbour = {
                    "dst": _platform_address(cvm.index),
                    "ifindex": links.link_lookup(ifname=f"cvm{cvm.index}")[0],
                }
                if lost:
                    links.neigh("replace", lladdr=_NOBODY, state="permanent", **neighbour)
                else:
                    links.neigh("del", **neighbour)

    def _install_platform_faults(self) -> None:
        """What CVMs send over their platform link is dropped where it arrives. Runs in the gateway's namespace."""
        drop_arrivals([f"cvm{each.index}" for each in self._cvms.values() if each.cut in ("out", "both")])

    def _plug_platform(self, index: int) -> None:
        _setns(self._host_fds[self._gateway])
        with _links() as links:
            port = links.link_lookup(ifname=f"cvm{index}")[0]
            links.link("set", index=port, state="up")
            destination = f"{_platform_address(index)}/32"
            links.route("add", dst=destination, oif=port, scope="link", prefsrc=PLATFORM_GATEWAY)

    def _drop(self, cvm: _Cvm) -> None:
        # Deleting one end of a veth deletes both, also where the other end's namespace lives on.
        for namespace, port in ((self._segment, f"c{cvm.index}"), (self._host_fds[self._gateway], f"cvm{cvm.index}")):
            _setns(namespace)
            with _links() as links:
                for index in links.link_lookup(ifname=port):
                    links.link("del", index=index)
        _setns(self._host_fds[self._gateway])
        self._install_platform_faults()
        for fd in (cvm.namespace, cvm.router):
            self._fds.remove(fd)
            os.close(fd)


@contextmanager
def _links() -> Iterator[Any]:
    """rtnetlink of the namespace that the thread is in."""
    from pyroute2 import IPRoute

    links = IPRoute()
    try:
        yield links
    finally:
        links.close()


def host_address(number: int) -> str:
    """The public address of the host that was added as the `number`th, from 0."""
    return f"198.18.0.{10 + number}"


def _platform_address(index: int) -> str:
    return f"10.4.{1 + index // _PER_OCTET}.{1 + index % _PER_OCTET}"


def _setns(fd: int) -> None:
    if _libc().setns(fd, _CLONE_NEWNET) != 0:
        raise LabNetworkError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}; run as root")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def enter(netns: str) -> None:
    """Moves the calling thread (in a child between fork and exec: the child) into the namespace at path `netns`."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
    finally:
        os.close(fd)
