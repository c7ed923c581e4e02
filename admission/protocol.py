"""The words that a sidecar and a coordinator exchange: requests, answers and error codes of the admission API. Pure
values.

HTTP over RA-TLS on port 8787 (architecture.md). Every body is one JSON object; an error is `{"code", "reason"}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

ADMISSION_PORT = 8787
MAX_BODY = 1 << 20
"""Bytes; a greater body is refused before it is read (the template family's limit)."""
NONCE_LIFETIME = 60.0
"""Seconds that a challenge may be answered in."""


MAX_AUTHORITIES = 16
"""Mesh CAs that coordinators name, and CVMs take: that of the manifest in force, and those before it whose window is
open. One each 2 s for as long as a new leaf waits (`sidecar.certificate.PRESENT_SECONDS`); a person signs no faster. Of
more, the oldest are left out."""


class Code(Enum):
    """Error codes: the template family's; SLOT_TAKEN, BUSY and NOT_READY, which say 'try again' rather than 'never';
    REVOKED, of a CVM that was allowed once; and those of a manifest that is not set.
    """

    BAD_REQUEST = ("BAD_REQUEST", 400)
    NONCE_INVALID = ("NONCE_INVALID", 400)
    QUOTE_INVALID = ("QUOTE_INVALID", 400)
    REPORT_DATA_MISMATCH = ("REPORT_DATA_MISMATCH", 403)
    KMS_POLICY_MISMATCH = ("KMS_POLICY_MISMATCH", 403)
    ADMISSION_REJECTED = ("ADMISSION_REJECTED", 403)
    REVOKED = ("REVOKED", 403)
    SLOT_TAKEN = ("SLOT_TAKEN", 409)
    MANIFEST_NOT_SIGNED = ("MANIFEST_NOT_SIGNED", 403)
    MANIFEST_STALE = ("MANIFEST_STALE", 409)
    MANIFEST_REFUSED = ("MANIFEST_REFUSED", 422)
    LEASE_INVALID = ("LEASE_INVALID", 401)
    BUSY = ("BUSY", 429)
    VERIFIER_FAILED = ("VERIFIER_FAILED", 502)
    TOKEN_ISSUE_FAILED = ("TOKEN_ISSUE_FAILED", 502)
    NOT_READY = ("NOT_READY", 503)
    NO_MANIFEST = ("NO_MANIFEST", 503)
    NONCE_GENERATION_FAILED = ("NONCE_GENERATION_FAILED", 500)

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return self.value[1]

    @property
    def permanent(self) -> bool:
        """True when the same evidence will be refused again, so a client must not hammer."""
        return self in _PERMANENT


_PERMANENT = frozenset(
    {
        Code.BAD_REQUEST,
        Code.QUOTE_INVALID,
        Code.REPORT_DATA_MISMATCH,
        Code.KMS_POLICY_MISMATCH,
        Code.ADMISSION_REJECTED,
        Code.REVOKED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRequest:
    """`POST /v1/admission/challenge`. `group` is "coordinator" for a coordinator that joins its siblings."""

    group: str
    instance_id: str
    """Hex; proposes, the quote proves."""
    peer_id: str | None = None
    """None: the coordinator proposes the slot that this instance held, else a free one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The answer: a nonce for one use, and the peer ID that the binding must carry."""

    nonce: str
    """32 bytes, hex."""
    peer_id: str
    expires_in: float
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootKeys:
    """Public halves of the keys that this boot made inside the CVM."""

    wireguard: str
    """WireGuard public key, base64."""
    tls: str
    """SubjectPublicKeyInfo of the Consul agent's TLS key, DER in base64."""
    leaf: str
    """Likewise of the P-256 key that this CVM's certificate in the mesh is for; empty at a coordinator, which has no
    Envoy."""
    public: str = ""
    """Likewise of the key that its public listeners show; empty at a coordinator, and in a CVM that opens none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The statement that the quote covers: `report_data = SHA-256(JSON of this || nonce) || 32 zero bytes`.

    Every field is compared with the verified quote or the manifest.
    """

    version: int
    cluster: str
    peer_id: str
    identities: tuple[str, ...]
    app_id: str
    instance_id: str
    compose_hash: str
    boot: BootKeys
    issued_at: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestRequest:
    """`POST /v1/admission/attest`."""

    binding: str
    """The exact bytes of the binding's JSON, hex."""
    nonce: str
    quote: str
    event_log: str
    vm_config: str = ""
    proposed: bool = False
    """The coordinator proposed the slot: this CVM holds none, and lets those that do come first. False for a CVM that
    claims the slot: it holds it, or its owner gave it that one (MESH_PEER_ID)."""
    manifest: str = ""
    """The newest signed envelope that the CVM holds. A coordinator that has the one before adopts it, then answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulGrant:
    """What the Consul agent of an admitted CVM runs with. Strings marked secret are wrapped in `Secret` as they are
    decoded.
    """

    datacenter: str
    token: str
    """Secret. ACL token: node identity, service identities, extra rights."""
    token_expires_at: int
    """Unix seconds."""
    gossip_ring: str
    """Which keys the next ones are: the numbers of their rotations, in the same order."""
    gossip_keys: tuple[str, ...]
    """Secret. Base64, 32 bytes each. The first one seals, all open; none for a coordinator."""
    ca_pem: str
    """The CA of the agents' RPC TLS."""
    certificate_pem: str
    """For the boot's TLS key."""
    servers: tuple[str, ...]
    """Mesh addresses of the coordinators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPeer:
    """One admitted CVM as the link sees it. Also the JSON value under `mesh/peers/<peer_id>` in Consul's KV."""

    peer_id: str
    public_key: str
    address: str
    kind: str
    """`coordinator` or `workload`."""
    compose_hash: str = ""
    """What a workload was admitted with; a newer manifest may no longer allow it. So with the next."""
    image: str = ""
    """Its OS image, as `topology.allowed.image_id`."""
    app_id: str = ""
    """Its app: 40 hex digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The answer to a good attestation."""

    peer_id: str
    address: str
    consul: ConsulGrant
    peers: tuple[MeshPeer, ...]
    """The coordinators at least; the rest is watched in Consul's KV once the agent has joined."""
    lease: str
    """Secret. Bearer for renew and release."""
    lease_seconds: float
    """The slot is freed when nothing renewed it for so long and the node is not alive in Consul."""
    manifest: str
    """The newest signed envelope that the coordinator holds."""
    manifest_epoch: int = 0
    """Epoch of the manifest that is enforced."""
    workload_token: str = ""
    """Secret. ACL token of the group's workload; empty where no backend is owned by the workload. Expires with
    `consul.token`."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Secret. What the manifest grants to the group, by name."""
    manifest_digest: str = ""
    """The manifest whose mesh CA certified the leaf, hex; empty for a coordinator, as the next two."""
    leaf_pem: str = ""
    """Certificate for the boot's leaf key, then its mesh CA as the root certified it."""
    authorities_pem: str = ""
    """The mesh CA of `manifest_digest`, and those of the manifests before whose window is open, the last one first."""
    public_pems: dict[str, str] = field(default_factory=dict)
    """By backend: the certificate of its public listener, for the boot's public key, then its mesh CA as above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """`POST /v1/admission/renew` with a LeaseRequest: fresh tokens when the old ones are past half their life."""

    lease_seconds: float
    manifest_epoch: int
    token: str | None = None
    """Secret."""
    token_expires_at: int | None = None
    workload_token: str | None = None
    """Secret. Comes with `token`; empty when the workload is to have none any more."""
    secrets: dict[str, str] | None = None
    """Secret. All that the group is granted, when that is under a newer manifest than the sidecar's were."""
    gossip_ring: str = ""
    """As `ConsulGrant` has it, as the next."""
    gossip_keys: tuple[str, ...] | None = None
    """Secret. All that the agent is to have, when the sidecar said that it has others."""
    manifest_digest: str = ""
    """As `Admission` has it."""
    leaf_pem: str | None = None
    """A new one for the key that was attested, when what the sidecar said that it holds is of another manifest or past
    half its life."""
    authorities_pem: str = ""
    """As `Admission` has it."""
    public_pems: dict[str, str] = field(default_factory=dict)
    """As `Admission` has it; comes with `leaf_pem`."""
    all_trust: bool = False
    """Every CVM that lives has said that it trusts the mesh CA of `manifest_digest`."""
    agent_pem: str | None = None
    """A new `ConsulGrant.certificate_pem`. It comes with `token`, when what the sidecar said that it holds is past half
    its life."""


PEERS_PREFIX = "mesh/peers/"
"""Consul KV prefix of the peer registry: `mesh/peers/<peer_id>` = MeshPeer as JSON. Every agent token may read it."""
WORKLOAD_TOKEN = "consul-token"
"""Name of the file beside the secrets that holds the workload's token; no secret has it."""
MANIFEST_KEY = "mesh/manifest"
"""Consul KV key of the newest signed manifest envelope. Every agent token may read it."""
RECORDS_KEY = "mesh/records"
"""Consul KV key of a random text that is made with the records, and lost with them. Every agent token may read it."""
MANIFESTS_PREFIX = "mesh/manifests/"
"""Consul KV prefix of all manifests that were in force, each under its epoch and digest; never changed."""
DOCUMENTS_PREFIX = "mesh/documents/"
"""Consul KV prefix of app-compose texts, each under its compose hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """`POST /v1/admission/renew` and `/release`."""

    lease: str
    """Secret."""
    secrets_epoch: int | None = None
    """Epoch of the manifest under which the sidecar was given its secrets; None: it asks for none."""
    leaf_digest: str = ""
    """Of the manifest under which the sidecar's newest leaf was given out, hex."""
    leaf_expires_at: int = 0
    """Unix seconds: the end of that leaf."""
    trusts: str = ""
    """Of the newest manifest whose mesh CA the CVM's Envoy trusts, hex."""
    gossip_ring: str = ""
    """Which gossip keys the agent has, as `ConsulGrant` names them."""
    agent_expires_at: int | None = None
    """Unix seconds: the end of the agent's RPC certificate. None: the sidecar takes no new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRequest:
    """`POST /v1/manifest`: set this manifest. It follows the one in force by `previous`, and its owners signed it."""

    envelope: str
    documents: dict[str, str] = field(default_factory=dict)
    """The app-compose texts of compose hashes that it names, by hash, as far as they fit. With the manifest in force
    once more, further ones."""
    handovers: tuple[str, ...] = ()
    """For a coordinator that has no manifest yet: signed ones that lead to this one from the owners in its compose
    file, who were replaced in one of them. Oldest first, MAX_HANDOVERS at most."""


MAX_HANDOVERS = 32
"""Changes of owners that a coordinator is told of which begins: each envelope of a stranger costs signatures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestHead:
    """`GET /v1/manifest`, and the answer to a ManifestRequest: the manifest in force, which is signed and public.

    With MANIFEST_STALE it comes as `head`: what the next manifest has to follow.
    """

    epoch: int
    digest: str
    """Hex."""
    envelope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestHistory:
    """`GET /v1/manifest/history?after=EPOCH`: the manifests that led to the one in force, oldest first."""

    manifests: tuple[ManifestHead, ...]
    more: bool
    """There are later ones: ask for those after the last of these."""


ESTATE = "/v1/coordinators/estate"
"""Where former coordinators hand out what they keep (`topology.handover`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstateRequest:
    """`POST` to ESTATE, by a coordinator of the app to which the owners hand the mesh over. It attested before."""

    lease: str
    """Secret."""
    after: str = ""
    """Key of the last entry that it has; empty: it has none yet."""
    done: bool = False
    """It has taken over everything: nobody is to have it again, for from now on it grows old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstateEntry:
    """One key of Consul's KV."""

    key: str
    value: str
    """Base64."""
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EstateSecret:
    """The text of a workload secret under the manifest before the handover."""

    owner: str
    """The group that declares it."""
    name: str
    rotation: int
    text: str
    """Secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstateAuthority:
    """A mesh CA of the former coordinators. They keep its key."""

    digest: str
    """Of its manifest, hex."""
    pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EstatePage:
    """A part of what former coordinators keep."""

    entries: tuple[EstateEntry, ...]
    """In order of their keys."""
    more: bool
    """There are further ones after the last of these."""
    secrets: tuple[EstateSecret, ...]
    """All of them, on each page; so with the next."""
    authorities: tuple[EstateAuthority, ...]
    """Whom CVMs trust until `coordinators.handover.until`, beside the new coordinators' own, the newest first."""
