"""`python -m peer.rendezvous`: configuration from the environment, attested connections to coordinators, service.

The one module of this package that knows of evidence and manifests: it believes a coordinator's keys only after it has
verified the coordinator's RA-TLS certificate against the manifest that it shows and that the owners signed. It is
trusted with nothing in return.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import ipaddress
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from admission.client import BEGUN_WITH, Attested, CoordinatorError, Greeting, RefusedError
from admission.offers import Offers
from admission.trust import coordinator_check
from peer.keys import KeySet, decode_keys
from peer.relay import Relay
from peer.service import Rendezvous
from peer.spec import LISTEN_PORT, InterfaceSpec, LinkError
from peer.wireguard import (
    USERSPACE_ENV,
    DeviceGoneError,
    KernelDevice,
    UserspaceDevice,
    choose,
    generate_key,
    public_key,
    userspace_argv,
)
from runtime import output, premises, values, watchdog
from runtime.backoff import Backoff
from runtime.children import Child, ChildSpec
from runtime.env import ConfigError, EnvReader, Problem
from runtime.log import configure
from runtime.secret import Secret
from runtime.tasks import TaskScope
from topology import given
from topology.allowed import coordinators
from topology.envelope import Signed
from topology.manifest import Manifest
from topology.owners import Owners

log = logging.getLogger(__name__)

KEY_COMMAND = "key"
_KEY_FILE = "MESH_RENDEZVOUS_KEY_FILE"
_RELAY_PORTS = range(52000, 53000)
_POLL_TIMEOUT = 40.0
"""Seconds: coordinators hold a poll for 25."""
_RETRY = Backoff(base=0.1, cap=2.0)
"""Between two questions for a first manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The rendezvous' configuration."""

    owners: Owners | None
    """Whose signatures a manifest needs; None: unsigned ones are taken."""
    private_key: Secret
    address: str
    """Our mesh address."""
    public: str
    """The public IPv4 address that CVMs reach us at."""
    port: int
    """WireGuard's UDP port."""
    coordinators: tuple[str, ...]
    """https URLs."""
    pccs_url: str
    dev_root: bytes | None
    """Trust anchor of simulated quotes. Insecure."""
    wireguard_go: str


class Newest:
    """The newest manifest by which a coordinator was verified."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.signed: Signed | None = None
        """None before there is one."""
        self.there = asyncio.Event()
        """Set with the first."""
        self.news = asyncio.Event()
        """Set when `urls` may have others."""
        self._offers = Offers(config.owners, lambda: self.signed, self._misfit)
        self.verify = coordinator_check(
            self._judge,
            self._take,
            config.pccs_url,
            config.dev_root,
            time.time,
        )

    def envelope(self) -> str:
        """Its signed envelope; empty before there is one."""
        return self.signed.envelope if self.signed is not None else ""

    @property
    def digest(self) -> str:
        """Of its manifest, hex; empty before there is one."""
        return self.signed.digest if self.signed is not None else ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where coordinators are: by the configuration, by the newest manifest, and where the mesh was handed over."""
        named = coordinators(self.signed.manifest) if self.signed is not None else ()
        return (*self._config.coordinators, *(peer.url for peer in named), *self._offers.elsewhere)

    async def _judge(self, greeting: Greeting) -> Signed:
        try:
            return await self._offers.judge(greeting)
        finally:
            self.news.set()

    async def _take(self, signed: Signed) -> None:
        # A newer one may have come while this one's coordinator was verified.
        if self.signed is not None and signed.manifest.epoch < self.signed.manifest.epoch:
            return
        if self.signed is None or self.signed.digest != signed.digest:
            log.info("goes by the manifest of %s", signed.name)
        self.signed = signed
        self.there.set()
        self.news.set()

    def _misfit(self, manifest: Manifest) -> str | None:
        return misfit(manifest, self._config.address, public_key(self._config.private_key))


class Known:
    """The coordinators that are asked. They come with manifests, and stay: one that is away keeps its last word."""

    def __init__(self, newest: Newest) -> None:
        self._newest = newest
        self._made: dict[str, Attested] = {}

    async def next(self) -> Attested:
        """One that is not asked yet, as soon as there is one."""
        newest = self._newest
        while True:
            newest.news.clear()
            for url in newest.urls:
                if url not in self._made:
                    made = Attested(url, newest.verify, manifest=BEGUN_WITH, held=newest.envelope)
                    self._made[url] = made
                    return made
            await newest.news.wait()

    @property
    def all(self) -> tuple[Attested, ...]:
        """Those that are asked by now."""
        return tuple(self._made.values())


class AttestedKeys:
    """A coordinator's keys, which count only after its evidence was verified. `digest` is of the manifest that is held
    here, hex.
    """

    def __init__(self, coordinator: Attested, pool: str, digest: Callable[[], str] = lambda: "") -> None:
        self._coordinator = coordinator
        self._pool = pool
        self._digest = digest

    async def watch(self, seen: int) -> KeySet:
        """See KeySource."""
        try:
            tree = await self._coordinator.call("GET", f"/v1/rendezvous/keys?seen={seen}", seconds=_POLL_TIMEOUT)
        except (CoordinatorError, RefusedError) as error:
            raise LinkError(str(error)) from error
        if self._digest() not in ("", tree.get("manifest", self._digest())):
            # It goes by another manifest, and shows it to whoever connects anew.
            await self._coordinator.close()
        return decode_keys(tree, self._pool)


def read_config(environ: Mapping[str, str]) -> Config:
    """The configuration in `environ`, or ConfigError with every problem. Makes the key file where there is none."""
    reader = EnvReader(environ)
    found = given.read(reader)
    none: tuple[str, ...] = ()
    wanted = "a JSON list of the coordinators' https URLs"
    coordinators = reader.required("MESH_COORDINATORS", values.https_urls, none, wanted)
    address = reader.required("MESH_RENDEZVOUS_ADDRESS", _ipv4, "", "our mesh address")
    public = reader.required("MESH_RENDEZVOUS_PUBLIC", _ipv4, "", "our public IPv4 address")
    port = reader.optional("MESH_RENDEZVOUS_PORT", _port, LISTEN_PORT)
    pccs = reader.optional("MESH_PCCS_URL", str, "https://pccs.phala.network")
    dev_root = reader.optional("MESH_INSECURE_DEV_ROOT", values.base64_bytes, None)
    wireguard_go = reader.optional("MESH_WIREGUARD_GO", str, "/usr/local/bin/wireguard-go")
    key = reader.required(_KEY_FILE, _key_file, Secret(""), "a file for the WireGuard private key")
    reader.finish()
    return Config(
        owners=found.owners,
        private_key=key,
        address=address,
        public=public,
        port=port,
        coordinators=coordinators,
        pccs_url=pccs,
        dev_root=dev_root,
        wireguard_go=wireguard_go,
    )


def own_public_key(environ: Mapping[str, str]) -> str:
    """The public half of our WireGuard key, which the manifest has to name; the key is made where there is none.

    ConfigError without a usable file for it.
    """
    reader = EnvReader({name: text for name, text in environ.items() if name == _KEY_FILE})
    key = reader.required(_KEY_FILE, _key_file, Secret(""), "a file for the WireGuard private key")
    reader.finish()
    return public_key(key)


async def serve(config: Config) -> None:
    """Runs the rendezvous until cancelled."""
    newest = Newest(config)
    known = Known(newest)
    try:
        pool = (await first_manifest(newest, known)).mesh_pool

        async def more() -> AttestedKeys:
            return AttestedKeys(await known.next(), pool, lambda: newest.digest)

        await _serve(config, pool, [AttestedKeys(each, pool, lambda: newest.digest) for each in known.all], more)
    finally:
        for coordinator in known.all:
            await coordinator.close()


async def first_manifest(newest: Newest, known: Known) -> Manifest:
    """Asks all coordinators that are known until one has a manifest of ours and is verified by it."""
    async with TaskScope() as scope:
        asks: list[asyncio.Task[None]] = []

        async def ask_all() -> None:
            while True:
                coordinator = await known.next()
                asks.append(scope.start(f"ask {coordinator.url}", _ask(coordinator)))

        asks.append(scope.start("ask", ask_all()))
        await newest.there.wait()
        for task in asks:
            task.cancel()
    assert newest.signed is not None
    return newest.signed.manifest


async def _ask(coordinator: Attested) -> None:
    attempt, said, rng = 0, "", Random()
    while True:
        try:
            await coordinator.call("GET", BEGUN_WITH)
        except Exception as error:  # noqa: BLE001 -- the boundary: whatever a coordinator says, only it has failed
            reason = str(error) if isinstance(error, CoordinatorError | RefusedError) else repr(error)
            if reason != said:
                log.warning("no manifest yet: %s", reason)
                said = reason
        await asyncio.sleep(_RETRY.delay(attempt, rng))
        attempt += 1


async def _serve(
    config: Config, pool: str, sources: Sequence[AttestedKeys], more: Callable[[], Awaitable[AttestedKeys]]
) -> None:
    spec = InterfaceSpec(private_key=config.private_key, address=config.address, pool=pool, listen_port=config.port)
    device = await choose(spec)
    try:
        async with TaskScope() as scope:
            if isinstance(device, UserspaceDevice):
                scope.start("wireguard-go", Child(_child(config, device)).run())
            scope.start("rendezvous", Rendezvous(device, sources, Relay("0.0.0.0", _RELAY_PORTS), more=more).run())
    finally:
        if isinstance(device, KernelDevice):
            await device.remove()


def main(arguments: Sequence[str] = ()) -> int:
    """The process: 0 after SIGTERM or SIGINT, 2 when the configuration is wrong. `key` only prints the public key."""
    configure()
    try:
        if list(arguments) == [KEY_COMMAND]:
            print(own_public_key(os.environ))
            return 0
        if arguments:
            message = f"{' '.join(arguments)!r} is no command of it; expected {KEY_COMMAND!r}, or nothing"
            raise ConfigError([Problem("command", message)])
        config = read_config(os.environ)
        missing = premises.problems({})
        if missing:
            raise ConfigError(missing)
    except ConfigError as error:
        print(f"the rendezvous cannot start:\n{error}", file=sys.stderr)
        return 2
    output.begin()
    if config.dev_root is not None:
        log.warning("INSECURE: MESH_INSECURE_DEV_ROOT is set, so simulated quotes are believed")
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_signal(config))
    return 0


async def _until_signal(config: Config) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with watchdog.watching():
        await serve(config)


def _child(config: Config, device: UserspaceDevice) -> ChildSpec:
    async def healthy() -> bool:
        try:
            await device.read()
        except DeviceGoneError:
            return False
        return True

    return ChildSpec(
        name="wireguard",
        argv=userspace_argv(config.wireguard_go, device.spec.name),
        env=USERSPACE_ENV,
        log=None,
        healthy=healthy,
        hang_seconds=5.0,
        stop_seconds=1.0,
    )


def misfit(manifest: Manifest, address: str, key: str) -> str | None:
    """Why a rendezvous with that mesh address and public key is none of `manifest`; None when it is. CVMs would wait
    for one that never answers them.
    """
    known = {entry.address: entry.public_key for entry in manifest.rendezvous}
    if address not in known:
        return f"MESH_RENDEZVOUS_ADDRESS is {address!r}, and its rendezvous are {sorted(known)}"
    if known[address] != key:
        return f"{_KEY_FILE} holds the key {key}, and it names {known[address]} for {address}"
    return None


def _key_file(text: str) -> Secret:
    path = Path(text)
    try:
        if not path.exists():
            private, _ = generate_key()
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(private.reveal() + "\n")
            return private
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{text!r} may be read by others; chmod 600 it")
        private = Secret(path.read_text(encoding="ascii").strip())
        public_key(private)
    except OSError as error:
        raise ValueError(f"{text!r} cannot be used: {error.strerror}") from error
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{text!r} holds no WireGuard private key: expected 32 bytes in base64") from error
    return private


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"is {text!r}, expected an IPv4 address") from None


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"is {text!r}, expected a port, 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
