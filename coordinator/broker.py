"""The admission broker: challenge, attest, renew, release, in the words of `admission.protocol`. No HTTP here.

The order in `attest` is fixed: what is cheap and what must be used up comes first (form, nonce), then the quote,
then every field of the binding, then the slot; nothing is written before all of it held. A manifest that the CVM
brings is looked at once its quote held, and taken from nobody but a CVM of this mesh: one that the manifest in force
allows, or the one that it brings.

Long because the four calls share one order of checks: what one of them leaves out would be a way round the others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from admission.protocol import (
    NONCE_LIFETIME,
    Admission,
    AttestRequest,
    Binding,
    Challenge,
    ChallengeRequest,
    Code,
    ConsulGrant,
    LeaseRequest,
    MeshPeer,
    Renewal,
)
from coordinator import grants, policy, rotation
from coordinator.authority import Window, windows
from coordinator.feed import Feed
from coordinator.grants import Tokens
from coordinator.keys import ClusterKeys, Inherited
from coordinator.leases import Lease, LeaseError, seal, unseal
from coordinator.ledger import Ledger
from coordinator.nonces import RANDOM_BYTES, Challenges, NonceError
from coordinator.policy import Slot
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.slots import LEASE_SECONDS, Holder, Newcomer, Taken, all_trust, claim, dead, lapsed, propose
from evidence.binding import report_data
from evidence.errors import EvidenceError
from evidence.statement import evidence_digest
from evidence.verify import EvidenceVerifier
from runtime.jsons import once
from topology import allowed
from topology.allowed import Admitted, coordinators, image_id
from topology.envelope import Signed
from topology.manifest import COORDINATORS, Manifest
from topology.trees import ManifestError, from_tree

T = TypeVar("T")

RESERVED_SECONDS = 5.0
"""A proposed slot is proposed to nobody else for so long: an attestation takes less."""
HELD_SECONDS = 2.0
"""How long the attestation of a newcomer that has to wait is kept open, so that it goes on the moment that it may. Then
it is answered, for the CVM's status to say why it waits, and asks again."""
_MAX_HEX = 1 << 20
_MAX_INSTANCE_ID = 64
"""Characters. dstack's have 40."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is enforced now. Replaced as a whole when a newer manifest arrives."""

    signed: Signed
    adopted_at: float
    """Unix seconds: when the coordinators adopted the manifest. For so long as it says from then on, who was admitted
    under the one before is still trusted."""

    windows: tuple[Window, ...] = ()
    """Manifests before whose CA is trusted still."""

    @property
    def manifest(self) -> Manifest:
        """The signed one."""
        return self.signed.manifest

    def replaced(self, signed: Signed, adopted_at: float) -> Rules:
        """Those of `signed`, adopted at `adopted_at` (Unix seconds); which may be the same manifest, of which that
        moment is known only now. What a coordinator begins with opens no window: it may have been replaced long ago.
        """
        others = self.windows if self.adopted_at else ()
        if signed.digest == self.signed.digest:
            others = tuple(each for each in others if each.digest != signed.manifest.previous)
        elif self.adopted_at:
            # Also where one in between was missed, for it was shown until now.
            until = adopted_at + signed.manifest.overlap_seconds
            others = (*others, Window(epoch=self.manifest.epoch, digest=self.signed.digest, until=until))
        return Rules(signed=signed, adopted_at=adopted_at, windows=windows(signed.manifest, adopted_at, others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Time, as functions so that tests own it."""

    unix: Callable[[], float]
    monotonic: Callable[[], float]


class Broker:
    """Admits CVMs. `own` is this coordinator's own entry of the registry."""

    def __init__(
        self,
        *,
        rules: Rules,
        verifier: EvidenceVerifier,
        keys: ClusterKeys,
        ledger: Ledger,
        registry: Registry,
        feed: Feed,
        clocks: Clocks,
        random: Callable[[int], bytes],
        offered: Callable[[str, Callable[[Manifest], bool]], Awaitable[None]],
    ) -> None:
        """`random` gives that many bytes of the system's generator. `offered` takes the envelope that a CVM brings,
        after which `rules` are those of the newest manifest; RefusalError. It is given what says whether a manifest
        allows that CVM.
        """
        self.rules = rules
        self.not_ready: str | None = "starting"
        """Why workloads are not admitted now; None when they are."""
        self.ring = rotation.ring(keys, rotation.settled(rules.manifest.rotate.gossip))
        """The gossip keys that agents are to have now, as far as is known here."""
        self.ring_until = 0.0
        """Monotonic seconds until which that is certain enough to change what a CVM has: a coordinator that has lost
        sight of the records would put the keys of before back.
        """
        self._verifier = verifier
        self.keys = keys
        """With what comes from former coordinators, once that is known."""
        self._ledger = ledger
        self._registry = registry
        self._feed = feed
        self._clocks = clocks
        self._random = random
        self._offered = offered
        self._challenges = Challenges(self._random(32))
        self._reserved: dict[str, tuple[str, float]] = {}
        self._siblings: dict[str, Holder] = {}
        self._verified: set[str] = set()
        """Peer IDs of coordinators whose URLs showed evidence that the manifest allows, when they were asked last."""

    def inherit(self, inherited: Inherited) -> None:
        """Hands out what comes from former coordinators as they did."""
        self.keys = replace(self.keys, inherited=inherited)

    def challenge(self, request: ChallengeRequest) -> Challenge:
        """A nonce, and the peer ID to bind."""
        if len(request.instance_id) > _MAX_INSTANCE_ID:
            # It is remembered with the reservation, and nobody has proven anything yet.
            raise RefusalError(Code.BAD_REQUEST, f"instance_id has {len(request.instance_id)} characters, expected 40")
        peer_ids = policy.peer_ids(self.rules.manifest, request.group)
        if request.group != COORDINATORS:
            self._check_ready()
        peer_id = self._slot_for(request, peer_ids)
        if self._challenges.full:
            raise RefusalError(Code.NOT_READY, "too many attestations at once; try again later")
        nonce = self._challenges.issue(self._random(RANDOM_BYTES), self._clocks.monotonic())
        self._reserved[peer_id] = (request.instance_id, self._clocks.monotonic() + RESERVED_SECONDS)
        return Challenge(nonce=nonce.hex(), peer_id=peer_id, expires_in=NONCE_LIFETIME)

    async def attest(self, request: AttestRequest) -> Admission:
        """Admits the CVM whose quote, binding and slot are in order."""
        raw, nonce, quote = (_hex(request, name) for name in ("binding", "nonce", "quote"))
        binding = _strict(Binding, raw, "binding")
        policy.check_boot_keys(binding.boot)
        try:
            self._challenges.redeem(nonce, self._clocks.monotonic())
        except NonceError as error:
            raise RefusalError(Code.NONCE_INVALID, str(error)) from error
        now = self._clocks.unix()
        try:
            evidence = await self._verifier.verify(
                quote=quote,
                event_log=request.event_log,
                vm_config=request.vm_config,
                report_data=report_data(raw, nonce),
                now=now,
            )
        except EvidenceError as error:
            raise RefusalError(Code[error.code], error.reason) from error
        if request.manifest:
            try:
                await self._offered(request.manifest, lambda manifest: policy.allows(manifest, binding, evidence, now))
            except RefusalError:
                # A coordinator that joins (it has no leaf) may be what the records lack, to take what it brings.
                if binding.boot.leaf:
                    raise
        rules = self.rules
        slot = policy.judged(rules.manifest, binding, evidence, now)
        self._check_key_is_own(slot, binding)
        image = image_id(evidence.mrtd, evidence.rtmr0, evidence.rtmr1, evidence.rtmr2)
        if request.proposed and slot.group != COORDINATORS:
            await self._let_holders_first(slot, binding.instance_id)
            rules = self.rules
            slot = policy.judged(rules.manifest, binding, evidence, now)
        return await self._admit(rules, slot, binding, image, evidence.device, _digest(request))

    async def _let_holders_first(self, slot: Slot, instance_id: str) -> None:
        """Returns when newcomer `instance_id`, whose evidence was verified, may have a slot of its group; RefusalError
        NOT_READY when that takes longer than an attestation is kept open.
        """
        self._check_ready()
        known = self._ledger.slots.get(slot.peer_id)
        if known is not None and known.instance_id == instance_id:
            return
        newcomer = Newcomer(instance_id=instance_id, group=slot.group)
        peer_ids = policy.peer_ids(self.rules.manifest, slot.group)
        moment = self._clocks.monotonic()
        answer_at = moment + HELD_SECONDS
        self._reserved[slot.peer_id] = (instance_id, answer_at + RESERVED_SECONDS)
        while (left := self._ledger.newcomers_wait(peer_ids, newcomer)) > 0:
            moment = self._clocks.monotonic()
            if moment >= answer_at:
                raise RefusalError(
                    Code.NOT_READY,
                    f"the coordinators' records are new: CVMs of {slot.group} that hold a slot come first, for "
                    f"{left:.0f} s more at most; or until all {len(peer_ids)} of the group have asked",
                )
            await self._ledger.wait_as_newcomer(newcomer, min(left, answer_at - moment))

    async def renew(self, request: LeaseRequest) -> Renewal:
        """Prolongs a lease; with fresh tokens when the old ones are past half their life, and with the secrets when the
        sidecar has those of another manifest.
        """
        lease = self.lease(request.lease)
        if lease.group == COORDINATORS:
            holder = self._held(self._siblings, lease)
            if (reason := why_not_allowed(self.rules.manifest, holder)) is not None:
                raise RefusalError(Code.LEASE_INVALID, reason)
            self._siblings[lease.peer_id] = replace(holder, renewed_at=self._clocks.unix())
            return Renewal(lease_seconds=LEASE_SECONDS, manifest_epoch=self.rules.manifest.epoch)
        self._check_ready()
        holder = await self._still_held(lease)
        await self._ledger.renew(holder)
        rules, now = self.rules, self._clocks.unix()
        if request.trusts == rules.signed.digest != holder.trusts:
            # Said again with each renewal: the lease does not depend on it.
            with contextlib.suppress(RefusalError):
                await self._ledger.trusts(holder, request.trusts)
        # Each of these writes takes as long as Consul does: what was read before it counts no more.
        holder, rules = await self._still_held(lease), self.rules
        tokens = None
        if grants.due(holder, rules.manifest, now):
            tokens = self._new_tokens(rules, holder.group)
            await self._ledger.issue(tokens.bodies(rules.manifest, holder.peer_id, holder.group))
            await self._ledger.replace_tokens(holder, tokens)
            holder = await self._still_held(lease)
        # From here on nothing is waited for.
        return self._renewed(request, holder, tokens)

    async def _still_held(self, lease: Lease) -> Holder:
        """The workload that holds `lease` now. RefusalError LEASE_INVALID, and the slot is free, when the manifest that
        is in force now does not allow it.
        """
        holder = self._held(self._ledger.slots, lease)
        if (reason := why_not_allowed(self.rules.manifest, holder)) is not None:
            await self._ledger.free(holder, reason)
            raise RefusalError(Code.LEASE_INVALID, reason)
        return holder

    def _renewed(self, request: LeaseRequest, holder: Holder, tokens: Tokens | None) -> Renewal:
        """The answer to `holder`, which has just been judged, with `tokens` where there are fresh ones."""
        rules, now = self.rules, self._clocks.unix()
        digest = rules.signed.digest
        certifies = grants.leaf_due(request, rules.signed, holder.peer_id, now)
        ring = self.ring if self._clocks.monotonic() < self.ring_until else None
        news = request.secrets_epoch is not None and request.secrets_epoch < rules.manifest.epoch
        return Renewal(
            lease_seconds=LEASE_SECONDS,
            manifest_epoch=rules.manifest.epoch,
            token=tokens.node.secret.reveal() if tokens else None,
            token_expires_at=int(tokens.expires_at) if tokens else None,
            workload_token=_workload_token(tokens) if tokens else None,
            agent_pem=grants.agent_renewed(self.keys, rules.manifest, holder, request, now) if tokens else None,
            secrets=grants.secrets(self.keys, rules.manifest, holder.group) if news else None,
            gossip_ring=ring.name if ring is not None else "",
            gossip_keys=tuple(key.reveal() for key in ring.keys)
            if ring is not None and ring.name != request.gossip_ring
            else None,
            manifest_digest=digest,
            leaf_pem=grants.leaf(self.keys, rules.signed, holder, now) if certifies else None,
            public_pems=grants.public(self.keys, rules.signed, holder, now) if certifies else {},
            authorities_pem=grants.trusted(self.keys, rules.signed, rules.windows, now),
            all_trust=self._ledger.complete and all_trust(self._ledger.slots, self._ledger.nodes, digest, now),
        )

    def admitted(self) -> tuple[Holder, ...]:
        """Who is admitted now: workloads by the records, and the coordinators that attested here; without those whom a
        manifest that has just come ends.
        """
        nodes, now = self._ledger.nodes, self._clocks.unix()
        siblings = (one for one in self._siblings.values() if not lapsed(one, nodes.get(one.peer_id), now))
        held = (holder for holder in (*self._ledger.slots.values(), *siblings) if not holder.released)
        return tuple(holder for holder in held if why_not_allowed(self.rules.manifest, holder) is None)

    def allows_sibling(self, peer_id: str) -> bool:
        """Whether the manifest has the coordinator `peer_id`, and allows what it was admitted with here. One that has
        not attested here, as after a restart, is allowed: its server counts for Raft, and whatever answers at its URL,
        to which the host leads, says nothing of that server. The owners' manifest does.
        """
        held, manifest = self._siblings.get(peer_id), self.rules.manifest
        if held is not None:
            return why_not_allowed(manifest, held) is None
        return peer_id in policy.peer_ids(manifest, COORDINATORS)

    def verified_sibling(self, peer_id: str, *, good: bool) -> None:
        """Whether what answers at the URL of the coordinator `peer_id` is what the manifest allows."""
        (self._verified.add if good else self._verified.discard)(peer_id)

    def proven_sibling(self, peer_id: str) -> bool:
        """Whether this process has evidence of the coordinator `peer_id`: it attested here, or the manifest allows what
        was seen last at its URL.
        """
        return peer_id in self._siblings or peer_id in self._verified

    def lease(self, text: str) -> Lease:
        """The lease in `text`, whether it counts or not; RefusalError where it is none."""
        try:
            return unseal(text, self.keys.broker_key)
        except LeaseError as error:
            raise RefusalError(Code.LEASE_INVALID, str(error)) from error

    def holds(self, lease: Lease) -> bool:
        """Whether the boot that `lease` names has its slot now, by the records: who is put out has none."""
        try:
            self._held(self._slots(lease.group), lease)
        except RefusalError:
            return False
        return True

    def put_out(self, peer_id: str) -> None:
        """Ends the lease of the coordinator `peer_id`. What it was admitted with is known still."""
        if (held := self._siblings.get(peer_id)) is not None:
            self._siblings[peer_id] = replace(held, released=True)

    def sibling(self, text: str) -> str:
        """The peer ID of the coordinator that holds the lease `text`; RefusalError for anyone else."""
        lease = self.lease(text)
        if lease.group != COORDINATORS:
            raise RefusalError(Code.LEASE_INVALID, f"{lease.peer_id} is no coordinator")
        return self._held(self._siblings, lease).peer_id

    async def release(self, text: str) -> None:
        """Frees the slot of a CVM that stops. Repeating it, or doing it after the slot was lost, is not an error."""
        lease = self.lease(text)
        try:
            holder = self._held(self._slots(lease.group), lease)
        except RefusalError:
            return
        await self._free(holder, "released")

    async def _admit(
        self, rules: Rules, slot: Slot, binding: Binding, image: str, device: str, evidence: str
    ) -> Admission:
        now = self._clocks.unix()
        peer = _entry(slot, binding, image)
        wanted = Holder(
            peer_id=slot.peer_id,
            group=slot.group,
            instance_id=binding.instance_id,
            boot_key=binding.boot.wireguard,
            leaf_key=binding.boot.leaf,
            public_key=binding.boot.public,
            agent_key=binding.boot.tls,
            trusts=rules.signed.digest,
            compose_hash=binding.compose_hash,
            app_id=binding.app_id,
            address=slot.address,
            image=image,
            device=device,
            evidence=evidence,
            renewed_at=now,
        )
        if slot.group == COORDINATORS:
            self._take_sibling(wanted, peer)
            tokens = None
        else:
            self._check_ready()
            tokens = self._new_tokens(rules, slot.group)
            wanted = tokens.noted(wanted)
            await self._ledger.take(wanted, peer)
            # From here on whoever puts a newer manifest in force finds the slot among those that it looks at.
            await self._check_still(wanted)
            await self._ledger.issue(tokens.bodies(rules.manifest, slot.peer_id, slot.group))
            await self._ledger.confirm(wanted)
        self._reserved.pop(slot.peer_id, None)
        if rules.manifest.rendezvous:
            await self._feed.applied(self._feed.version)
        await self._check_still(wanted)
        # From here on nothing is waited for: what is handed out is of the manifest by which it was just judged.
        rules = self.rules
        return Admission(
            peer_id=slot.peer_id,
            address=slot.address,
            consul=self._grant(rules.manifest, slot, binding, tokens),
            peers=tuple(peer for peer in self._registry.peers() if peer.kind == "coordinator"),
            lease=self._lease(wanted),
            lease_seconds=LEASE_SECONDS,
            manifest=rules.signed.envelope,
            manifest_epoch=rules.manifest.epoch,
            workload_token=_workload_token(tokens),
            secrets=grants.secrets(self.keys, rules.manifest, slot.group) if tokens else {},
            manifest_digest=rules.signed.digest if tokens else "",
            leaf_pem=grants.leaf(self.keys, rules.signed, wanted, now) if tokens else "",
            authorities_pem=grants.trusted(self.keys, rules.signed, rules.windows, now) if tokens else "",
            public_pems=grants.public(self.keys, rules.signed, wanted, now) if tokens else {},
        )

    def _lease(self, holder: Holder) -> str:
        lease = Lease(
            peer_id=holder.peer_id, group=holder.group, instance_id=holder.instance_id, boot_key=holder.boot_key
        )
        return seal(lease, self.keys.broker_key).reveal()

    async def _check_still(self, holder: Holder) -> None:
        """RefusalError, and the slot is free again, when a manifest that came meanwhile does not allow `holder`, which
        has just got it; or when it was freed meanwhile.
        """
        if (reason := why_not_allowed(self.rules.manifest, holder)) is not None:
            await self._free(holder, reason)
            raise RefusalError(Code.ADMISSION_REJECTED, reason)
        known = self._slots(holder.group).get(holder.peer_id)
        if known is None or known.released or known.boot_key != holder.boot_key:
            raise RefusalError(Code.NOT_READY, f"{holder.peer_id} was freed meanwhile; attest again")

    async def _free(self, holder: Holder, reason: str) -> None:
        if holder.group == COORDINATORS:
            self._siblings[holder.peer_id] = replace(holder, released=True)
            self._registry.remove(holder.peer_id)
        else:
            await self._ledger.free(holder, reason)

    def _grant(self, manifest: Manifest, slot: Slot, binding: Binding, tokens: Tokens | None) -> ConsulGrant:
        """What the CVM's Consul agent needs. A coordinator derives its own secrets: it gets none (`tokens` is None)."""
        datacenter = manifest.cluster
        return ConsulGrant(
            datacenter=datacenter,
            token=tokens.node.secret.reveal() if tokens else "",
            token_expires_at=int(tokens.expires_at) if tokens else 0,
            gossip_ring=self.ring.name if tokens else "",
            gossip_keys=tuple(key.reveal() for key in self.ring.keys) if tokens else (),
            ca_pem=self.keys.rpc_ca_pem,
            certificate_pem=grants.agent(self.keys, datacenter, slot.peer_id, binding.boot.tls, self._clocks.unix()),
            servers=tuple(peer.address for peer in coordinators(manifest)),
        )

    def _take_sibling(self, wanted: Holder, peer: MeshPeer) -> None:
        nodes = self._ledger.nodes
        # A sibling whose server is in the catalog has joined, whoever saw it join.
        held = {name: replace(each, joined=name in nodes) for name, each in self._siblings.items()}
        decision = claim(held, wanted, nodes)
        if isinstance(decision, Taken):
            raise RefusalError(Code.SLOT_TAKEN, decision.reason)
        self._siblings[wanted.peer_id] = decision
        self._registry.put(peer)

    def _slot_for(self, request: ChallengeRequest, peer_ids: tuple[str, ...]) -> str:
        holders = self._siblings if request.group == COORDINATORS else self._ledger.slots
        nodes, now = self._ledger.nodes, self._clocks.unix()
        if request.peer_id is not None:
            if request.peer_id not in peer_ids:
                policy.check_revoked(self.rules.manifest, request.peer_id)
                raise RefusalError(
                    Code.ADMISSION_REJECTED, f"group {request.group} has no peer {request.peer_id!r:.80}"
                )
            holder = holders.get(request.peer_id)
            if (
                holder
                and holder.instance_id != request.instance_id
                and not dead(holder, nodes.get(holder.peer_id), now)
            ):
                raise RefusalError(Code.SLOT_TAKEN, f"{request.peer_id} is held by another instance that is alive")
            return request.peer_id
        moment = self._clocks.monotonic()
        self._reserved = {p: entry for p, entry in self._reserved.items() if entry[1] > moment}
        others = {p for p, (instance_id, _) in self._reserved.items() if instance_id != request.instance_id}
        open_ids = [p for p in peer_ids if p not in others]
        found = propose(open_ids, holders, request.instance_id, nodes, now)
        found = found or propose(peer_ids, holders, request.instance_id, nodes, now)
        if found is None:
            raise RefusalError(
                Code.SLOT_TAKEN,
                f"all {len(peer_ids)} slots of {request.group} are held by living instances; raise its replicas",
            )
        return found

    def _check_key_is_own(self, slot: Slot, binding: Binding) -> None:
        """A WireGuard key that another peer has would take that peer's packets away."""
        key = binding.boot.wireguard
        taken = [
            peer.peer_id for peer in self._registry.peers() if peer.public_key == key and peer.peer_id != slot.peer_id
        ]
        if taken or any(key == host.public_key for host in self.rules.manifest.rendezvous):
            raise RefusalError(
                Code.ADMISSION_REJECTED, f"the WireGuard key is that of {taken[0] if taken else 'a rendezvous'}"
            )

    def _slots(self, group: str) -> Mapping[str, Holder]:
        return self._siblings if group == COORDINATORS else self._ledger.slots

    def _held(self, slots: Any, lease: Lease) -> Holder:
        holder: Holder | None = slots.get(lease.peer_id)
        if holder is None or holder.released or holder.boot_key != lease.boot_key:
            raise RefusalError(Code.LEASE_INVALID, f"{lease.peer_id} is no longer held by this boot; attest again")
        return holder

    def _new_tokens(self, rules: Rules, group: str) -> Tokens:
        return grants.new_tokens(rules.manifest, group, self._random, self._clocks.unix())

    def _check_ready(self) -> None:
        if self.not_ready is not None:
            raise RefusalError(Code.NOT_READY, self.not_ready)


def why_not_allowed(manifest: Manifest, holder: Holder) -> str | None:
    """Why `manifest` does not allow what `holder` was admitted with, as a sentence; None when it does."""
    admitted = Admitted(
        peer_id=holder.peer_id,
        group=holder.group,
        address=holder.address,
        app_id=holder.app_id,
        instance_id=holder.instance_id,
        compose_hash=holder.compose_hash,
        image=holder.image,
        device=holder.device,
    )
    return allowed.why_not_allowed(manifest, admitted)


def _entry(slot: Slot, binding: Binding, image: str) -> MeshPeer:
    return MeshPeer(
        peer_id=slot.peer_id,
        public_key=binding.boot.wireguard,
        address=slot.address,
        kind=slot.kind,
        compose_hash=binding.compose_hash,
        image=image,
        app_id=binding.app_id,
    )


def _workload_token(tokens: Tokens | None) -> str:
    return tokens.workload.secret.reveal() if tokens and tokens.workload else ""


def _digest(request: AttestRequest) -> str:
    return evidence_digest(
        binding=request.binding,
        nonce=request.nonce,
        quote=request.quote,
        event_log=request.event_log,
        vm_config=request.vm_config,
    )


def _hex(request: AttestRequest, name: str) -> bytes:
    text: str = getattr(request, name)
    try:
        if len(text) > _MAX_HEX or not text:
            raise ValueError
        return bytes.fromhex(text)
    except ValueError:
        raise RefusalError(Code.BAD_REQUEST, f"{name} is not hexadecimal") from None


def _strict(kind: type[T], data: bytes, what: str) -> T:
    """The value of dataclass `kind` in the JSON text `data`; unknown, missing and repeated fields are refused."""
    try:
        value: T = from_tree(kind, json.loads(data, object_pairs_hook=once), what)
    except (ManifestError, ValueError, RecursionError) as error:
        raise RefusalError(Code.BAD_REQUEST, f"{what}: {error!s:.300}") from None
    return value


def decode(kind: type[T], data: bytes) -> T:
    """A request body as the dataclass `kind`, or RefusalError BAD_REQUEST."""
    return _strict(kind, data, "body")
