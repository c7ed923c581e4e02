"""One coordinator's admission API, spoken to only after its own evidence was verified.

The order is the point: TLS without any certificate authority, the certificate's evidence against the manifest's
coordinator entry, and only then, pinned to that certificate, a request. The TLS handshake proves that who answers holds
the key that the quote speaks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from coordinator.protocol import (
    MAX_BODY,
    WORKLOAD_TOKEN,
    AttestRequest,
    Challenge,
    ChallengeRequest,
    Code,
    ConsulGrant,
    LeaseRequest,
    MeshPeer,
    Renewal,
)
from runtime.secret import Secret
from topology.manifest import ManifestError, from_tree, why_no_label

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT = 30.0
"""Seconds for one call. An attestation waits for quote verification, raft and the rendezvous."""
LEASE_SECONDS = (1.0, 300.0)
"""Least and greatest lease that is taken from a coordinator; they give 15 s (`coordinator.slots.LEASE_SECONDS`)."""
VERIFY_SECONDS = 3600.0
"""How long a verified certificate is believed. Revocations, TCB levels and the manifest change; the rendezvous looks
again as often."""
CONNECT_SECONDS = 5.0
"""Seconds for the TCP and TLS handshakes; then the next coordinator has its turn."""

Verify = Callable[[bytes], Awaitable[None]]
"""Takes a certificate (DER); returns when its evidence is a coordinator's of ours, else raises CoordinatorError."""


class CoordinatorError(Exception):
    """The coordinator cannot be used now: unreachable, not what it must be, or talking nonsense. Another may do."""


class RefusedError(Exception):
    """The coordinator answered with an error code."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """`coordinator.protocol.Admission`, its secrets wrapped."""

    coordinator: str
    """URL of the coordinator that admitted us."""
    peer_id: str
    address: str
    datacenter: str
    token: Secret
    token_expires_at: int
    gossip_key: Secret
    ca_pem: str
    certificate_pem: str
    servers: tuple[str, ...]
    peers: tuple[MeshPeer, ...]
    lease: Secret
    lease_seconds: float
    envelope: str
    """The newest manifest that the coordinator holds; empty when it sent none."""
    manifest_epoch: int
    workload_token: Secret
    """Empty where there is none."""
    secrets: Mapping[str, Secret]
    """Granted to our group, by name."""
    manifest_digest: str
    leaf_pem: str
    authorities_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """`coordinator.protocol.Renewal`, its secrets wrapped. None is what stays as it was."""

    lease_seconds: float
    token: Secret | None
    token_expires_at: int | None
    manifest_epoch: int
    workload_token: Secret | None = None
    secrets: Mapping[str, Secret] | None = None
    manifest_digest: str = ""
    leaf_pem: str | None = None
    authorities_pem: str = ""
    all_trust: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a renewal says that this CVM has already; as `LeaseRequest` has it."""

    secrets_epoch: int
    leaf_digest: str = ""
    leaf_expires_at: int = 0
    trusts: str = ""


class Broker:
    """The admission API at `url`. `close()` it."""

    def __init__(self, url: str, verify: Verify) -> None:
        self.url = url
        self._verify = verify
        self._session: ClientSession | None = None
        self._fingerprint: bytes | None = None
        self._verified_at = 0.0

    async def close(self) -> None:
        """Closes the connections. Safe to repeat; the next call verifies anew."""
        session, self._session, self._fingerprint = self._session, None, None
        if session is not None:
            await session.close()

    async def challenge(self, request: ChallengeRequest) -> Challenge:
        """A nonce, and the slot to attest for."""
        return decode_challenge(await self._post("challenge", asdict(request)))

    async def attest(self, request: AttestRequest) -> Admitted:
        """Admission, for evidence that holds."""
        return decode_admission(await self._post("attest", asdict(request)), self.url)

    async def renew(self, lease: Secret, held: Held) -> Renewed:
        """A longer lease, new tokens when it is time, and of secrets and certificate what `held` is behind in."""
        request = LeaseRequest(lease=lease.reveal(), **asdict(held))
        return decode_renewal(await self._post("renew", asdict(request)))

    async def release(self, lease: Secret) -> None:
        """Gives the slot back."""
        await self._post("release", {"lease": lease.reveal()})

    async def _post(self, action: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        import aiohttp

        session, fingerprint = await self._verified()
        try:
            async with session.post(
                f"{self.url}/v1/admission/{action}",
                json=body,
                ssl=aiohttp.Fingerprint(fingerprint),
                allow_redirects=False,
            ) as response:
                data = await response.content.read(MAX_BODY + 1)
                while len(data) <= MAX_BODY and (more := await response.content.read(MAX_BODY)):
                    data += more
                status = response.status
        except aiohttp.ServerFingerprintMismatch as error:
            await self.close()
            raise CoordinatorError(f"{self.url} has another certificate than a moment ago") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await self.close()
            raise CoordinatorError(f"{self.url} does not answer: {str(error) or type(error).__name__}") from error
        return decode_answer(self.url, status, data)

    async def _verified(self) -> tuple[ClientSession, bytes]:
        import aiohttp

        now = asyncio.get_running_loop().time()
        if self._fingerprint is None or now - self._verified_at > VERIFY_SECONDS:
            certificate = await peer_certificate(self.url)
            await self._verify(certificate)
            self._fingerprint, self._verified_at = hashlib.sha256(certificate).digest(), now
        if self._session is None:
            # A coordinator closes idle connections after 15 s; ours are gone before, so none is used while it closes.
            connector = aiohttp.TCPConnector(keepalive_timeout=10.0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT, connect=CONNECT_SECONDS)
            )
        return self._session, self._fingerprint


async def peer_certificate(url: str) -> bytes:
    """The certificate (DER) that the server at `url` presents. Nothing is sent but a TLS handshake."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 443, ssl=context, server_hostname=parts.hostname
            )
    except (OSError, TimeoutError) as error:
        raise CoordinatorError(f"coordinator {url} cannot be reached: {str(error) or type(error).__name__}") from error
    try:
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await writer.wait_closed()
    if not certificate:
        raise CoordinatorError(f"{url} shows no certificate")
    return certificate


def decode_answer(url: str, status: int, data: bytes) -> Mapping[str, Any]:
    """The JSON object of a good answer; RefusedError for a known error code, CoordinatorError for anything else."""
    if len(data) > MAX_BODY:
        raise CoordinatorError(f"{url} answers more than {MAX_BODY} bytes")
    try:
        tree = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise CoordinatorError(f"{url} answers HTTP {status} with {data[:80]!r}, expected a JSON object")
    if status < 300:
        return tree
    code = next((code for code in Code if code.name == tree.get("code")), None)
    if code is None:
        raise CoordinatorError(f"{url} answers HTTP {status} with {data[:80]!r}, expected a known error code")
    raise RefusedError(code, str(tree.get("reason", ""))[:500])


def decode_challenge(tree: Mapping[str, Any]) -> Challenge:
    """The answer to a challenge request; CoordinatorError when it does not fit."""
    challenge: Challenge = _from(Challenge, tree, "expires_in")
    try:
        if len(bytes.fromhex(challenge.nonce)) != 32:
            raise ValueError("another length")
    except ValueError as error:
        raise CoordinatorError(f"the nonce {challenge.nonce!r:.80} is not 32 bytes in hex") from error
    return challenge


def decode_admission(tree: Mapping[str, Any], url: str) -> Admitted:
    """The answer to an attestation; CoordinatorError when it does not fit. Its text never holds a value."""
    try:
        consul: ConsulGrant = _from(ConsulGrant, tree["consul"])
        return Admitted(
            coordinator=url,
            peer_id=_text(tree["peer_id"]),
            address=_text(tree["address"]),
            datacenter=consul.datacenter,
            token=Secret(consul.token),
            token_expires_at=consul.token_expires_at,
            gossip_key=Secret(consul.gossip_key),
            ca_pem=consul.ca_pem,
            certificate_pem=consul.certificate_pem,
            servers=consul.servers,
            peers=tuple(_from(MeshPeer, peer) for peer in tree["peers"]),
            lease=Secret(_text(tree["lease"])),
            lease_seconds=_lease_seconds(tree["lease_seconds"]),
            envelope=_text(tree["manifest"]),
            manifest_epoch=_epoch(tree["manifest_epoch"]),
            workload_token=Secret(_text(tree["workload_token"])),
            secrets=_secrets(tree["secrets"]),
            manifest_digest=_text(tree["manifest_digest"]),
            leaf_pem=_text(tree["leaf_pem"]),
            authorities_pem=_text(tree["authorities_pem"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CoordinatorError(f"the admission cannot be read: {type(error).__name__}") from None


def decode_renewal(tree: Mapping[str, Any]) -> Renewed:
    """The answer to a renewal; CoordinatorError when it does not fit."""
    renewal: Renewal = _from(Renewal, tree, "lease_seconds")
    try:
        lease_seconds, epoch = _lease_seconds(renewal.lease_seconds), _epoch(renewal.manifest_epoch)
    except ValueError as error:
        raise CoordinatorError(f"the renewal cannot be used: {error}") from None
    return Renewed(
        lease_seconds=lease_seconds,
        token=Secret(renewal.token) if renewal.token else None,
        token_expires_at=renewal.token_expires_at,
        manifest_epoch=epoch,
        workload_token=None if renewal.workload_token is None else Secret(renewal.workload_token),
        secrets=None if renewal.secrets is None else _secrets(renewal.secrets),
        manifest_digest=renewal.manifest_digest,
        leaf_pem=renewal.leaf_pem,
        authorities_pem=renewal.authorities_pem,
        all_trust=renewal.all_trust,
    )


def _from(kind: Any, tree: Any, *floats: str) -> Any:
    """`from_tree`, with whole numbers taken where seconds are meant: JSON does not tell them apart."""
    try:
        if floats and isinstance(tree, dict):
            tree = tree | {name: float(tree[name]) for name in floats if isinstance(tree.get(name), int)}
        return from_tree(kind, tree, kind.__name__)
    except (ManifestError, OverflowError):
        # Not the error's text: it quotes the value, which may be a secret.
        raise CoordinatorError(f"the answer cannot be read as {kind.__name__}") from None


def _lease_seconds(value: object) -> float:
    """`value`, where a lease may last so long. ValueError for anything else: zero would be renewed without a pause."""
    least, most = LEASE_SECONDS
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"a lease of {value!s:.20} s, expected {least:g} to {most:g}")
    return float(value)


def _epoch(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 63:
        raise ValueError("a manifest's epoch that is no number from 1 on")
    return value


def _secrets(tree: Any) -> Mapping[str, Secret]:
    """Names become those of files: one that could lead elsewhere, or over the token's, refuses the whole answer."""
    if not isinstance(tree, dict) or any(why_no_label(name) or name == WORKLOAD_TOKEN for name in tree):
        raise CoordinatorError("the answer has secrets whose names cannot be those of files")
    try:
        return {name: Secret(_text(value)) for name, value in tree.items()}
    except TypeError:
        raise CoordinatorError("the answer has secrets that are not text") from None


def _text(it: object) -> str:
    if not isinstance(it, str):
        raise TypeError("not text")
    return it
