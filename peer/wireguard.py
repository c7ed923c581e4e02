"""WireGuard devices: the kernel's by netlink, or a `wireguard-go` child's by its socket, behind one protocol.

The child itself is started, watched and restarted by the caller: `userspace_argv` and `USERSPACE_ENV` say how, and
`wait_device` when it answers. A restarted device is empty; `configure` and a new plan restore everything.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import functools
import ipaddress
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from peer import uapi
from peer.mtu import BASE
from peer.spec import DeviceState, InterfaceSpec, Operation, PeerState, RemovePeer, parse_endpoint
from runtime.secret import Secret

SOCKETS = Path("/var/run/wireguard")
"""Where `wireguard-go` makes its sockets (fixed in it)."""
USERSPACE_ENV = {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
"""Environment of the child: stay in the foreground so that it can be supervised; say only what is wrong."""
_ANSWER_LIMIT = 16 << 20
_TIMEOUT = 2.0
"""Seconds for one exchange with a device; a stopped child (SIGSTOP) must not hang the loop."""


class DeviceGoneError(ConnectionError):
    """The device does not answer: its process is down or not up yet. Wait for it and configure it anew."""


class Device(Protocol):
    """A WireGuard device of ours."""

    @property
    def spec(self) -> InterfaceSpec:
        """What the device is configured with."""

    async def wait_device(self, seconds: float) -> None:
        """Returns when the device answers; DeviceGoneError after `seconds`."""

    async def configure(self) -> None:
        """Key, port, address, MTU, route to the mesh's pool, link up. Idempotent; peers are left alone."""

    async def read(self) -> DeviceState:
        """The device now. DeviceGoneError when it does not answer."""

    async def apply(self, operations: Sequence[Operation]) -> None:
        """Carries out `operations` in order. DeviceGoneError, or LinkError when the device refuses."""


def generate_key() -> tuple[Secret, str]:
    """A new (private key, public key), base64."""
    key = X25519PrivateKey.generate()
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return Secret(base64.b64encode(private).decode()), _public(key)


def public_key(private_key: Secret) -> str:
    """The public key (base64) of `private_key`."""
    return _public(X25519PrivateKey.from_private_bytes(base64.b64decode(private_key.reveal(), validate=True)))


def _public(key: X25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def userspace_argv(program: str | Path, interface: str) -> tuple[str, ...]:
    """How to start `wireguard-go` for `interface`; with `USERSPACE_ENV` in its environment."""
    return (str(program), interface)


async def kernel_supported() -> bool:
    """Whether this kernel makes WireGuard devices for us: tried, because a module may load on demand."""
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    name = f"wgprobe{os.getpid() % 10**6}"
    async with AsyncIPRoute() as links:
        try:
            await links.link("add", ifname=name, kind="wireguard")
        except NetlinkError as error:
            if error.code in (errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM):
                return False
            raise
        await links.link("del", ifname=name)
    return True


async def choose(spec: InterfaceSpec) -> KernelDevice | UserspaceDevice:
    """The kernel's device where there is one, else the userspace device, whose child the caller has to run."""
    return KernelDevice(spec) if await kernel_supported() else UserspaceDevice(spec)


async def set_up_link(spec: InterfaceSpec) -> None:
    """Address, MTU, link up and the route to the mesh's pool, by netlink. Idempotent.

    The pool's route has the MTU that any path carries: peers whose path was measured have routes of their own.
    """
    from pyroute2 import AsyncIPRoute

    async with AsyncIPRoute() as links:
        index = (await links.link_lookup(ifname=spec.name))[0]
        await links.addr("replace", index=index, address=spec.address, prefixlen=32)
        await links.link("set", index=index, mtu=spec.mtu, state="up")
        # A route rather than a wide prefix on the address: the device then owns one address and no broadcast.
        await links.route("replace", **route(spec, index, spec.pool, BASE))


def route(spec: InterfaceSpec, index: int, destination: str, mtu: int) -> dict[str, Any]:
    """A route into device number `index` as pyroute2 takes it. Pure."""
    return {
        "dst": str(ipaddress.IPv4Network(destination)),
        "oif": index,
        "prefsrc": spec.address,
        "scope": "link",
        "metrics": {"mtu": mtu},
    }


class UserspaceDevice:
    """A device of a `wireguard-go` child."""

    def __init__(self, spec: InterfaceSpec, sockets: Path = SOCKETS) -> None:
        self.spec = spec
        self._socket = sockets / f"{spec.name}.sock"

    async def wait_device(self, seconds: float) -> None:
        """See Device."""
        end = time.monotonic() + seconds
        while True:
            try:
                await self._exchange(uapi.GET)
            except DeviceGoneError:
                if time.monotonic() > end:
                    raise
            else:
                return
            await asyncio.sleep(0.01)

    async def configure(self) -> None:
        """See Device."""
        request = uapi.configure_request(self.spec.private_key, self.spec.listen_port)
        uapi.check_answer(*await self._exchange(request.reveal()))
        await set_up_link(self.spec)

    async def read(self) -> DeviceState:
        """See Device."""
        return uapi.parse_state(*await self._exchange(uapi.GET))

    async def apply(self, operations: Sequence[Operation]) -> None:
        """See Device."""
        if operations:
            for answer in await self._exchange(*map(uapi.set_request, operations)):
                uapi.check_answer(answer)

    async def _exchange(self, *requests: str) -> list[str]:
        """The answers to `requests`, which are sent one after the other over one connection."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=_ANSWER_LIMIT)
                try:
                    answers = []
                    for request in requests:
                        # One at a time: what follows a request before its answer, `wireguard-go` reads and drops.
                        writer.write(request.encode("ascii"))
                        answers.append((await reader.readuntil(b"\n\n")).decode("ascii"))
                    return answers
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ValueError) as error:
            # ValueError: what is no ASCII.
            raise DeviceGoneError(f"no WireGuard device answers at {self._socket}: {error!r:.300}") from error


class KernelDevice:
    """A device of the kernel's WireGuard, by generic netlink."""

    def __init__(self, spec: InterfaceSpec) -> None:
        self.spec = spec

    async def wait_device(self, seconds: float) -> None:
        """See Device. The kernel's device is made by `configure`, so there is nothing to wait for."""

    async def configure(self) -> None:
        """See Device."""
        from pyroute2 import AsyncIPRoute

        async with AsyncIPRoute() as links:
            if not await links.link_lookup(ifname=self.spec.name):
                await links.link("add", ifname=self.spec.name, kind="wireguard")
        key = self.spec.private_key.reveal()
        await self._set(private_key=key, listen_port=self.spec.listen_port)
        await set_up_link(self.spec)

    async def remove(self) -> None:
        """Takes the device away, where there is one."""
        from pyroute2 import AsyncIPRoute

        async with AsyncIPRoute() as links:
            for index in await links.link_lookup(ifname=self.spec.name):
                await links.link("del", index=index)

    async def read(self) -> DeviceState:
        """See Device."""
        from pyroute2 import AsyncWireGuard
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            async with AsyncWireGuard() as wireguard:
                # A device with many peers comes in several messages.
                return device_state([message async for message in await wireguard.info(self.spec.name)])
        except NetlinkError as error:
            raise DeviceGoneError(f"the kernel has no WireGuard device {self.spec.name!r}: {error}") from error

    async def apply(self, operations: Sequence[Operation]) -> None:
        """See Device."""
        for operation in operations:
            await self._set(peer=kernel_peer(operation))

    async def _set(self, **values: Any) -> None:
        from pyroute2 import AsyncWireGuard
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            async with AsyncWireGuard() as wireguard:
                await wireguard.set(self.spec.name, **values)
        except NetlinkError as error:
            raise DeviceGoneError(f"the kernel refused WireGuard device {self.spec.name!r}: {error}") from error


def kernel_peer(operation: Operation) -> dict[str, Any]:
    """`operation` in the form that pyroute2 takes. Pure."""
    if isinstance(operation, RemovePeer):
        return {"public_key": operation.public_key, "remove": True}
    peer: dict[str, Any] = {"public_key": operation.public_key}
    if operation.endpoint is not None:
        peer["endpoint_addr"], peer["endpoint_port"] = parse_endpoint(operation.endpoint)
    if operation.allowed is not None:
        peer |= {"replace_allowed_ips": True, "allowed_ips": list(operation.allowed)}
    if operation.keepalive is not None:
        peer["persistent_keepalive"] = operation.keepalive
    return peer


def device_state(messages: Sequence[Any]) -> DeviceState:
    """The device in the kernel's answer (pyroute2 messages). Pure."""
    public, port = "", 0
    peers: dict[str, PeerState] = {}
    for message in messages:
        key = message.get_attr("WGDEVICE_A_PUBLIC_KEY")
        public = _text(key["value"]) if key else public
        port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or port
        for peer in message.get_attr("WGDEVICE_A_PEERS") or ():
            state = _kernel_state(peer)
            known = peers.get(state.public_key)
            # A peer whose networks did not fit is continued in the next message, with its networks only.
            if known is not None:
                state = functools.reduce(_with_network, state.allowed, known)
            peers[state.public_key] = state
    return DeviceState(public_key=public, listen_port=port, peers=peers)


def _with_network(state: PeerState, network: str) -> PeerState:
    import dataclasses

    return dataclasses.replace(state, allowed=(*state.allowed, network))


def _kernel_state(peer: Any) -> PeerState:
    endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
    handshake = peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
    return PeerState(
        public_key=_text(peer.get_attr("WGPEER_A_PUBLIC_KEY")["value"]),
        endpoint=f"{endpoint['addr']}:{endpoint['port']}" if endpoint else None,
        latest_handshake=handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake else 0.0,
        rx=peer.get_attr("WGPEER_A_RX_BYTES") or 0,
        tx=peer.get_attr("WGPEER_A_TX_BYTES") or 0,
        allowed=tuple(network["addr"] for network in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()),
        keepalive=peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
