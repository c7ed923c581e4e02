"""`python -m peer.rendezvous`: configuration from the environment, attested connections to coordinators, service.

The one module of this package that knows of evidence and manifests: it believes a coordinator's keys only after it has
verified the coordinator's RA-TLS certificate against the signed manifest. It is trusted with nothing in return.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import hashlib
import ipaddress
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from peer.keys import KeySet, decode_keys
from peer.relay import Relay
from peer.service import Rendezvous
from peer.spec import LISTEN_PORT, InterfaceSpec, LinkError, check_address
from peer.watch import read_body
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
from runtime import premises, values
from runtime.children import Child, ChildSpec
from runtime.env import ConfigError, EnvReader, Problem
from runtime.log import configure
from runtime.secret import Secret
from runtime.tasks import TaskScope
from topology import given
from topology.manifest import Manifest

log = logging.getLogger(__name__)

KEY_COMMAND = "key"
_KEY_FILE = "MESH_RENDEZVOUS_KEY_FILE"
_RELAY_PORTS = range(52000, 53000)
_VERIFY_AGAIN_AFTER = 3600.0
"""Seconds after which a coordinator's evidence is verified anew: what counts as an up-to-date platform changes."""
_POLL_TIMEOUT = 40.0
"""Seconds: coordinators hold a poll for 25."""
_TLS_TIMEOUT = 10.0

Verify = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The rendezvous' configuration."""

    manifest: Manifest
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


class AttestedKeys:
    """A coordinator's keys over HTTPS. Nothing is sent before its certificate's evidence was verified."""

    def __init__(self, url: str, pool: str, verify: Verify) -> None:
        self._url = url.rstrip("/")
        self._pool = pool
        self._verify = verify
        self._session: aiohttp.ClientSession | None = None
        self._trusted: aiohttp.Fingerprint | None = None
        self._verified_at = 0.0

    async def watch(self, seen: int) -> KeySet:
        """See KeySource."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_POLL_TIMEOUT))
        if self._trusted is None or time.monotonic() - self._verified_at > _VERIFY_AGAIN_AFTER:
            certificate = await self._certificate()
            await self._verify(certificate)
            # From here on only a server that holds this certificate's key gets our request (aiohttp compares before it
            # sends), and the evidence was about that key.
            self._trusted = aiohttp.Fingerprint(hashlib.sha256(certificate).digest())
            self._verified_at = time.monotonic()
        url, query = f"{self._url}/v1/rendezvous/keys", {"seen": seen}
        try:
            async with self._session.get(url, params=query, ssl=self._trusted, allow_redirects=False) as answer:
                return decode_keys(await read_body(answer), self._pool)
        except aiohttp.ServerFingerprintMismatch as error:
            self._trusted = None
            raise LinkError(f"{self._url} has another certificate now; verifying it next") from error
        except aiohttp.ClientError as error:
            raise LinkError(f"{self._url}: {error}") from error

    async def close(self) -> None:
        """Closes its connections."""
        if self._session is not None:
            await self._session.close()

    async def _certificate(self) -> bytes:
        parts = urlsplit(self._url)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # No public authority vouches for RA-TLS certificates; the evidence inside is what is verified.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with asyncio.timeout(_TLS_TIMEOUT):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=context, server_hostname=parts.hostname
            )
            try:
                certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            finally:
                writer.transport.abort()
        if certificate is None:
            raise LinkError(f"{self._url} showed no certificate")
        return certificate


def read_config(environ: Mapping[str, str]) -> Config:
    """The configuration in `environ`, or ConfigError with every problem. Makes the key file where there is none."""
    reader = EnvReader(environ)
    found = given.read(reader)
    manifest = found.signed.manifest if found.signed else None
    default_urls = tuple(peer.url for peer in manifest.coordinators.peers) if manifest else ()
    coordinators = reader.optional("MESH_COORDINATORS", values.https_urls, default_urls)
    address = reader.required("MESH_RENDEZVOUS_ADDRESS", _ipv4, "", "our mesh address")
    public = reader.required("MESH_RENDEZVOUS_PUBLIC", _ipv4, "", "our public IPv4 address")
    port = reader.optional("MESH_RENDEZVOUS_PORT", _port, LISTEN_PORT)
    pccs = reader.optional("MESH_PCCS_URL", str, "https://pccs.phala.network")
    dev_root = reader.optional("MESH_INSECURE_DEV_ROOT", values.base64_bytes, None)
    wireguard_go = reader.optional("MESH_WIREGUARD_GO", str, "/usr/local/bin/wireguard-go")
    key = reader.required(_KEY_FILE, _key_file, Secret(""), "a file for the WireGuard private key")
    if manifest is not None and address and key:
        reader.problems += _disagreements(manifest, address, public_key(key))
    reader.finish()
    assert manifest is not None
    return Config(
        manifest=manifest,
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
    spec = InterfaceSpec(
        private_key=config.private_key, address=config.address, pool=config.manifest.mesh_pool, listen_port=config.port
    )
    device = await choose(spec)
    verify = _verify(config)
    sources = [AttestedKeys(url, config.manifest.mesh_pool, verify) for url in config.coordinators]
    try:
        async with TaskScope() as scope:
            if isinstance(device, UserspaceDevice):
                scope.start("wireguard-go", Child(_child(config, device)).run())
            scope.start("rendezvous", Rendezvous(device, sources, Relay("0.0.0.0", _RELAY_PORTS)).run())
    finally:
        for source in sources:
            await source.close()
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


def _verify(config: Config) -> Verify:
    from evidence.collateral import HttpCollateral
    from evidence.errors import EvidenceError
    from evidence.manifest import COORDINATORS, expected, tcb_rules
    from evidence.policy import check
    from evidence.ratls import verify_certificate
    from evidence.verify import Verifier

    verifier = Verifier(
        collateral=HttpCollateral(config.pccs_url), rules=tcb_rules(config.manifest), root_ca_der=config.dev_root
    )
    wanted = expected(config.manifest, COORDINATORS)

    async def verify(certificate: bytes) -> None:
        try:
            check(await verify_certificate(verifier, certificate, time.time()), wanted)
        except EvidenceError as error:
            raise LinkError(f"the coordinator's evidence is refused: {error}") from error

    return verify


def _disagreements(manifest: Manifest, address: str, key: str) -> list[Problem]:
    try:
        check_address(address, manifest.mesh_pool)
    except LinkError as error:
        return [Problem("MESH_RENDEZVOUS_ADDRESS", str(error))]
    known = {entry.address: entry.public_key for entry in manifest.rendezvous}
    if known.get(address) == key:
        return []
    # CVMs would wait for a rendezvous that never answers them: better not to start.
    if address not in known:
        return [Problem("MESH_RENDEZVOUS_ADDRESS", f"is {address!r}, expected one of the manifest's: {sorted(known)}")]
    message = f"holds the key {key}, but the manifest names {known[address]} for {address}; use that key's file"
    return [Problem(_KEY_FILE, message)]


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
