"""How a coordinator joins another one: verify its evidence, attest to it as any CVM would, renew while both live.

The same API as a workload's, with the group "coordinator". What it yields is the other's WireGuard key; secrets are
derived, not sent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from coordinator import policy
from coordinator.broker import Rules
from coordinator.forming import Standing
from coordinator.protocol import MAX_BODY, Admission, Binding, BootKeys, Challenge, Code, ManifestHead, MeshPeer
from evidence.binding import report_data
from evidence.errors import EvidenceError
from evidence.manifest import expected
from evidence.policy import check
from evidence.ratls import expected_report_data, extract
from runtime.backoff import Backoff
from runtime.guest import GuestAgent, GuestError, GuestInfo
from topology.manifest import CoordinatorPeer, ManifestError, from_tree

log = logging.getLogger(__name__)
ADMISSION = "/v1/admission/"
T = TypeVar("T")

RETRY = Backoff(base=0.2, cap=5.0)
RENEW_SECONDS = 5.0
HURRY_SECONDS = 0.5
"""Between two questions while our own server waits for what the sibling says."""
TIMEOUT = 15.0
"""Seconds for a call: a quote on either side and a collateral fetch fit in."""
MAX_ANSWER = MAX_BODY
"""Bytes. An admission, the longest answer, has the manifest in it."""


class SiblingError(Exception):
    """The other coordinator cannot be joined now. The text says why, `code` how it answered."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Who joins."""

    peer_id: str
    info: GuestInfo
    boot: BootKeys


FORESEEN = (SiblingError, EvidenceError, GuestError, aiohttp.ClientError, OSError, TimeoutError)
"""What a sibling that is away, or refuses, looks like. Of anything else the log has the kind of error, too."""


class Sibling:
    """One other coordinator. `admitted` is called with its entry of the registry whenever it answered."""

    def __init__(
        self,
        peer: CoordinatorPeer,
        own: Own,
        *,
        guest: GuestAgent,
        rules: Callable[[], Rules],
        admitted: Callable[[MeshPeer], None],
        enforces: Callable[[str], None],
        ask: Callable[[], dict[str, object]],
        hurry: Callable[[], bool],
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        """`enforces` is called with the envelope of the manifest that it enforces. `ask` gives what a `StandingRequest`
        has beside the lease; `hurry` is true while its answer is waited for.
        """
        self.peer_id = peer.peer_id
        self.address = peer.address
        self.state = "not joined"
        self.standing: Standing | None = None
        """What it said last of its Consul server; None while it is not reached."""
        self._peer, self._url, self._own = peer, peer.url, own
        self._guest, self._rules, self._admitted, self._enforces = guest, rules, admitted, enforces
        self._ask, self._hurry = ask, hurry
        self._clock, self._rng = clock, rng

    async def run(self) -> None:
        """Joins and renews until cancelled; every failure is tried again."""
        attempt = 0
        while True:
            try:
                async with await self._session() as session:
                    lease = await self._attest(session)
                    attempt, self.state = 0, "joined"
                    while True:
                        asked = {"lease": lease, **self._ask()}
                        self.standing = _decode(Standing, await _post(session, "/v1/coordinators/standing", asked))
                        await asyncio.sleep(HURRY_SECONDS if self._hurry() else RENEW_SECONDS)
                        await _post(session, f"{ADMISSION}renew", {"lease": lease})
            except Exception as error:  # noqa: BLE001 -- the boundary: whatever a sibling says, only it has failed
                self.standing = None
                reason = str(error) if isinstance(error, FORESEEN) else repr(error)
                if self.state != (state := f"not joined: {reason}"):
                    log.warning("sibling not joined", extra={"peer_id": self.peer_id, "reason": reason})
                    self.state = state
                await asyncio.sleep(RETRY.delay(attempt, self._rng))
                attempt += 1

    async def _session(self) -> aiohttp.ClientSession:
        """A session to the other's broker, pinned to a certificate whose evidence was verified before anything was
        sent.
        """
        rules = self._rules()
        certificate = await _certificate(self._url)
        found = extract(certificate)
        evidence = await rules.verifier.verify(
            quote=found.quote,
            event_log=found.event_log,
            vm_config=found.vm_config,
            report_data=expected_report_data(found.spki),
            now=self._clock(),
        )
        check(evidence, expected(rules.manifest, policy.COORDINATORS))
        pin = aiohttp.Fingerprint(hashlib.sha256(certificate).digest())
        return aiohttp.ClientSession(
            base_url=self._url,
            connector=aiohttp.TCPConnector(ssl=pin),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        )

    async def _attest(self, session: aiohttp.ClientSession) -> str:
        own, rules = self._own, self._rules()
        manifest = rules.manifest
        asked = {"group": policy.COORDINATORS, "instance_id": own.info.instance_id, "peer_id": own.peer_id}
        try:
            challenge = _decode(Challenge, await _post(session, f"{ADMISSION}challenge", asked))
        except SiblingError as error:
            if error.code == Code.NO_MANIFEST.name:
                # It is new, or was away when it was listed. What it begins with is signed: anybody may bring it.
                await _post(session, "/v1/manifest", {"envelope": rules.signed.envelope})
                raise SiblingError(f"{self.peer_id} was given the manifest, and begins with it") from error
            if error.code == Code.ADMISSION_REJECTED.name:
                # It may go by a manifest that does not list us any more.
                self._enforces(_decode(ManifestHead, await _ask(session, "GET", "/v1/manifest")).envelope)
            raise
        binding = Binding(
            version=policy.BINDING_VERSION,
            cluster=manifest.cluster,
            peer_id=own.peer_id,
            identities=policy.identities(manifest, policy.COORDINATORS),
            app_id=own.info.app_id,
            instance_id=own.info.instance_id,
            compose_hash=own.info.compose_hash,
            boot=own.boot,
            issued_at=int(self._clock()),
        )
        raw = json.dumps(dataclasses.asdict(binding), sort_keys=True, separators=(",", ":")).encode()
        quote = await self._guest.quote(report_data(raw, bytes.fromhex(challenge.nonce)))
        answer = await _post(
            session,
            f"{ADMISSION}attest",
            {
                "binding": raw.hex(),
                "nonce": challenge.nonce,
                "quote": quote.quote.hex(),
                "event_log": quote.event_log,
                "vm_config": quote.vm_config,
                "manifest": rules.signed.envelope,
            },
        )
        admission = _decode(Admission, answer)
        for peer in admission.peers:
            if peer.peer_id == self.peer_id and peer.address == self._peer.address and peer.kind == "coordinator":
                self._admitted(peer)
                self._enforces(admission.manifest)
                return admission.lease
        raise SiblingError(f"{self._url} does not answer as {self.peer_id}; check its URL in the manifest")


async def _certificate(url: str) -> bytes:
    """The certificate (DER) that the server at `url` shows now."""
    parts = urlsplit(url)
    # Nobody vouches for the name: the quote in the certificate is what is verified.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    async with asyncio.timeout(TIMEOUT):
        _, writer = await asyncio.open_connection(
            parts.hostname, parts.port or 443, ssl=context, server_hostname=parts.hostname
        )
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
    if not der:
        raise SiblingError(f"{url} shows no certificate")
    return bytes(der)


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
    return await _ask(session, "POST", path, body)


async def _ask(session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    name = path.rpartition("/")[2]
    async with session.request(method, path, json=body) as response:
        data = b""
        while len(data) <= MAX_ANSWER and (more := await response.content.read(MAX_ANSWER)):
            data += more
        if len(data) > MAX_ANSWER:
            raise SiblingError(f"{name} was answered with more than {MAX_ANSWER} bytes")
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            raise SiblingError(f"{name} was answered with {response.status} and no JSON") from None
    if response.status != 200:
        code = answer.get("code", Code.BAD_REQUEST.name) if isinstance(answer, dict) else "?"
        reason = answer.get("reason", "") if isinstance(answer, dict) else ""
        raise SiblingError(f"{name} was refused: {code}: {reason}", str(code))
    return answer


def _decode(kind: type[T], tree: object) -> T:
    try:
        value: T = from_tree(kind, tree, kind.__name__.lower())
    except ManifestError as error:
        raise SiblingError(f"an answer is of another version of this program: {error}") from error
    return value
