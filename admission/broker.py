"""One coordinator's admission API: what a CVM asks of it, and its answers, strictly decoded."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from admission.client import IN_FORCE, TIMEOUT, Attested, CoordinatorError, RefusedError, Verify
from admission.clocks import Skew
from admission.protocol import (
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
from runtime.gossip import Ring
from runtime.secret import Secret
from topology.names import why_no_label
from topology.trees import ManifestError, from_tree

LEASE_SECONDS = (1.0, 300.0)
"""Least and greatest lease that is taken from a coordinator; they give 15 s (`coordinator.slots.LEASE_SECONDS`)."""
GOSSIP_KEY_BYTES = 32
"""Consul would take 16 and 24, too; coordinators give none."""
MAX_GOSSIP_KEYS = 2
"""While one replaces another (`coordinator.rotation`)."""
MAX_RING_NAME = 32
"""Characters: two numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """`admission.protocol.Admission`, its secrets wrapped."""

    coordinator: str
    """URL of the coordinator that admitted us."""
    peer_id: str
    address: str
    datacenter: str
    token: Secret
    token_expires_at: int
    gossip: Ring
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
    public_pems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """`admission.protocol.Renewal`, its secrets wrapped. None is what stays as it was."""

    lease_seconds: float
    token: Secret | None
    token_expires_at: int | None
    manifest_epoch: int
    workload_token: Secret | None = None
    secrets: Mapping[str, Secret] | None = None
    manifest_digest: str = ""
    leaf_pem: str | None = None
    authorities_pem: str = ""
    public_pems: Mapping[str, str] = field(default_factory=dict)
    all_trust: bool = False
    gossip: Ring | None = None
    agent_pem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a renewal says that this CVM has already; as `LeaseRequest` has it."""

    secrets_epoch: int | None = None
    leaf_digest: str = ""
    leaf_expires_at: int = 0
    trusts: str = ""
    gossip_ring: str = ""
    agent_expires_at: int | None = None


class Broker:
    """The admission API at `url`. `close()` it."""

    def __init__(
        self,
        url: str,
        verify: Verify,
        newest: Callable[[], str] = lambda: "",
        seconds: float = TIMEOUT,
        *,
        handovers: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`newest` gives the signed envelope that this CVM holds, empty for none: each coordinator is judged by it, and
        one without a manifest, such as one that lost its disk, is given it. `handovers` gives those before it in which
        owners were replaced, oldest first. `seconds` is for one call.
        """
        self.url = url
        self._handovers = handovers
        self._seconds = seconds
        self._newest = newest
        self._coordinator = Attested(url, verify, held=newest)

    @property
    def skew(self) -> Skew | None:
        """Of our clock against the coordinator's, by its last answer; None before there was one."""
        return self._coordinator.skew

    async def close(self) -> None:
        """Closes the connections. Safe to repeat; the next call verifies anew."""
        await self._coordinator.close()

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
        return await self.post(f"/v1/admission/{action}", body)

    async def bring(self, envelope: str) -> None:
        """Gives it the manifest in `envelope`, which follows what it enforces. RefusedError, CoordinatorError."""
        await self._coordinator.call("POST", IN_FORCE, {"envelope": envelope}, self._seconds)

    async def ask(self, path: str) -> Mapping[str, Any]:
        """The answer to a question without a body. RefusedError, CoordinatorError."""
        return await self._coordinator.call("GET", path, seconds=self._seconds)

    async def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to `body`. RefusedError, CoordinatorError."""
        try:
            return await self._coordinator.call("POST", path, body, self._seconds)
        except RefusedError as error:
            if error.code is Code.NO_MANIFEST and (envelope := self._newest()):
                await self._give(envelope)
            raise

    async def _give(self, envelope: str) -> None:
        body: dict[str, object] = {"envelope": envelope}
        try:
            await self._coordinator.call("POST", IN_FORCE, body)
        except RefusedError as error:
            handovers = self._handovers()
            if error.code is not Code.MANIFEST_NOT_SIGNED or not handovers:
                raise
            # Its compose file may have owners that were replaced since; these manifests lead from them to the others.
            await self._coordinator.call("POST", IN_FORCE, {**body, "handovers": handovers})


def decode_challenge(tree: Mapping[str, Any]) -> Challenge:
    """The answer to a challenge request; CoordinatorError when it does not fit."""
    challenge: Challenge = decode(Challenge, tree, "expires_in")
    try:
        if len(bytes.fromhex(challenge.nonce)) != 32:
            raise ValueError("another length")
    except ValueError as error:
        raise CoordinatorError(f"the nonce {challenge.nonce!r:.80} is not 32 bytes in hex") from error
    return challenge


def decode_admission(tree: Mapping[str, Any], url: str) -> Admitted:
    """The answer to an attestation; CoordinatorError when it does not fit. Its text never holds a value."""
    try:
        consul: ConsulGrant = decode(ConsulGrant, tree["consul"])
        return Admitted(
            coordinator=url,
            peer_id=_text(tree["peer_id"]),
            address=_text(tree["address"]),
            datacenter=consul.datacenter,
            token=Secret(consul.token),
            token_expires_at=consul.token_expires_at,
            gossip=_ring(consul.gossip_ring, consul.gossip_keys, 0),
            ca_pem=consul.ca_pem,
            certificate_pem=consul.certificate_pem,
            servers=consul.servers,
            peers=tuple(decode(MeshPeer, peer) for peer in tree["peers"]),
            lease=Secret(_text(tree["lease"])),
            lease_seconds=_lease_seconds(tree["lease_seconds"]),
            envelope=_text(tree["manifest"]),
            manifest_epoch=_epoch(tree["manifest_epoch"]),
            workload_token=Secret(_text(tree["workload_token"])),
            secrets=_secrets(tree["secrets"]),
            manifest_digest=_text(tree["manifest_digest"]),
            leaf_pem=_text(tree["leaf_pem"]),
            authorities_pem=_text(tree["authorities_pem"]),
            public_pems={_text(name): _text(pem) for name, pem in tree["public_pems"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CoordinatorError(f"the admission cannot be read: {type(error).__name__}") from None


def decode_renewal(tree: Mapping[str, Any]) -> Renewed:
    """The answer to a renewal; CoordinatorError when it does not fit."""
    renewal: Renewal = decode(Renewal, tree, "lease_seconds")
    try:
        lease_seconds, epoch = _lease_seconds(renewal.lease_seconds), _epoch(renewal.manifest_epoch)
        keys = renewal.gossip_keys
        ring = None if keys is None else _ring(renewal.gossip_ring, keys, 1)
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
        public_pems=renewal.public_pems,
        all_trust=renewal.all_trust,
        gossip=ring,
        agent_pem=renewal.agent_pem,
    )


def decode(kind: Any, tree: Any, *floats: str) -> Any:
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


def _ring(name: str, keys: tuple[str, ...], least: int) -> Ring:
    """The gossip keys of an answer. ValueError without their text."""
    if not least <= len(keys) <= MAX_GOSSIP_KEYS or len(name) > MAX_RING_NAME:
        raise ValueError(f"{len(keys)} gossip keys, expected {least} to {MAX_GOSSIP_KEYS} and a short name")
    for key in keys:
        try:
            size = len(base64.b64decode(key, validate=True))
        except ValueError:
            size = 0
        if size != GOSSIP_KEY_BYTES:
            raise ValueError(f"a gossip key that is not {GOSSIP_KEY_BYTES} bytes in base64")
    return Ring(name=name, keys=tuple(Secret(key) for key in keys))


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
