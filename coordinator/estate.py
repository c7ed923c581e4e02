"""What a former coordinator hands out, and to whom: the coordinators of the app that the owners' manifest names.

By that manifest this coordinator enforces nothing any more (`Head.hindrance`): it admits nobody and changes no slot.
Before the first page no workload may write a key any more, so that all pages are of one moment. Handed out are slots,
admitted peers, the history with its texts, and the workloads' keys; no lease, token or session, so no lock, and nothing
that stands beside a leader key either. That says who led, and members change over one after the other: the first of
them would find a cluster that is known and that nobody leads. In a Consul that knows none they ask each other
(`workloads.patroni.election`).

Of keys that make the mesh nothing leaves: whoever takes the mesh over because they are known to others must not have
them. The texts of workload secrets go along, sealed by TLS to who proved that it is such a coordinator; a rotation
replaces them.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from admission.protocol import (
    DOCUMENTS_PREFIX,
    MANIFESTS_PREFIX,
    MAX_AUTHORITIES,
    PEERS_PREFIX,
    Code,
    EstateAuthority,
    EstateEntry,
    EstatePage,
    EstateRequest,
    EstateSecret,
)
from coordinator import governance
from coordinator.authority import mesh_ca
from coordinator.broker import Broker
from coordinator.head import Head
from coordinator.keys import ClusterKeys, workload_secret
from coordinator.ledger import SLOTS_PREFIX
from coordinator.refusal import RefusalError
from coordinator.tokens import LEDGER_PREFIX
from runtime.consul import ConsulClient, ConsulError
from topology.manifest import RESERVED_KEYS, Manifest

log = logging.getLogger(__name__)

TAKEN_KEY = LEDGER_PREFIX + "taken"
"""Consul KV key that says which coordinator has taken everything over. What is handed out later would be old."""
PAGE = 640 << 10
"""Characters of values in one page, unless one alone has more (Consul takes 512 KiB, 683 Ki characters in base64): an
answer stays below MAX_BODY."""
_OURS = (SLOTS_PREFIX, PEERS_PREFIX, MANIFESTS_PREFIX, DOCUMENTS_PREFIX)
"""Of the coordinators' own keys, those that are handed out."""


class Estate:
    """The estate of the coordinator whose records `consul` has."""

    def __init__(
        self,
        consul: ConsulClient,
        broker: Broker,
        head: Head,
        *,
        before: Callable[[], Manifest],
        unix: Callable[[], float],
    ) -> None:
        """`before` gives the last manifest of this coordinator's app, `unix` Unix seconds."""
        self._consul, self._broker, self._head, self._before, self._unix = consul, broker, head, before, unix
        self._frozen = ""
        """Digest of the manifest by which no workload writes keys any more."""

    async def answer(self, request: EstateRequest) -> EstatePage:
        """A page, for a coordinator that takes the mesh over. RefusalError for anyone else, and when it is not now."""
        peer_id = self._broker.sibling(request.lease)
        head = self._head
        if (reason := self._why_not(peer_id)) is not None:
            raise RefusalError(Code.ADMISSION_REJECTED, reason)
        try:
            stored = await governance.stored_manifest(self._consul)
            if not head.is_in(stored.envelope):
                raise RefusalError(Code.NOT_READY, "the records have another manifest than this coordinator goes by")
            await self._check_not_taken(request, peer_id)
            if request.done:
                await self._consul.put(f"/v1/kv/{TAKEN_KEY}", peer_id.encode())
                log.warning("the mesh was taken over", extra={"by": peer_id})
                return EstatePage(entries=(), more=False, secrets=(), authorities=())
            if self._frozen != head.signed.digest:
                await governance.freeze(self._consul, self._before())
                self._frozen = head.signed.digest
            _, tree = await self._consul.get("/v1/kv/", params={"recurse": "", "consistent": ""})
        except ConsulError as error:
            raise RefusalError(Code.NOT_READY, f"the records cannot be read now: {error}") from error
        # What is waited for may have brought another manifest.
        if (reason := self._why_not(peer_id)) is not None:
            raise RefusalError(Code.ADMISSION_REJECTED, reason)
        before = self._before()
        entries, more = page(handed_out(tree or (), before.leader_keys()), request.after)
        log.warning("records handed out", extra={"to": peer_id, "entries": len(entries), "more": more})
        return EstatePage(
            entries=entries,
            more=more,
            # A count that the handover itself raises is for the new coordinators to derive.
            secrets=secrets(self._broker.keys, before),
            authorities=self._authorities(),
        )

    def _why_not(self, peer_id: str) -> str | None:
        manifest = self._head.manifest
        handover = manifest.coordinators.handover
        if handover is None or not self._head.handed_over:
            return f"no manifest hands this coordinator's mesh over; in force is {self._head.signed.name}"
        if not self._broker.allows_sibling(peer_id):
            return f"{peer_id} was not admitted by {self._head.signed.name}, which hands the mesh over; attest again"
        if self._unix() >= handover.until:
            return (
                "the time for the handover is over (coordinators.handover.until); an owner signs a later one, and sets "
                "it on the new coordinators"
            )
        return None

    async def _check_not_taken(self, request: EstateRequest, peer_id: str) -> None:
        """RefusalError where a coordinator has taken everything over; saying so once more is fine. ConsulError."""
        _, entries = await self._consul.get(f"/v1/kv/{TAKEN_KEY}", params={"consistent": ""})
        by = base64.b64decode(entries[0]["Value"] or "").decode(errors="replace") if entries else ""
        if entries and not (request.done and by == peer_id):
            raise RefusalError(
                Code.ADMISSION_REJECTED,
                f"{by:.80} has taken the mesh over, and what is here is old since; the new coordinators share it",
            )

    def _authorities(self) -> tuple[EstateAuthority, ...]:
        """Those under which some CVM may show a certificate: of the last manifest of this app, and of those whose
        window was open when the handover came; and what was inherited itself.
        """
        rules, inherited = self._broker.rules, self._broker.keys.inherited
        previous = rules.manifest.previous
        found = {previous: mesh_ca(self._broker.keys, rules.manifest.epoch - 1, previous).pem} if previous else {}
        for each in rules.windows:
            found.setdefault(each.digest, mesh_ca(self._broker.keys, each.epoch, each.digest).pem)
        if self._unix() < inherited.until:
            found |= inherited.authorities
        return tuple(EstateAuthority(digest=name, pem=pem) for name, pem in found.items())[: MAX_AUTHORITIES - 1]


def handed_out(tree: Iterable[Mapping[str, Any]], leader_keys: Collection[str]) -> tuple[EstateEntry, ...]:
    """What of the KV's entries in `tree` is handed out, by key. `leader_keys` are the locks of routes."""
    folders = tuple(key[: key.rfind("/") + 1] or key for key in leader_keys)
    found = [
        EstateEntry(key=str(entry["Key"]), value=str(entry["Value"] or ""), flags=int(entry["Flags"] or 0))
        for entry in tree
        if not entry.get("Session") and not str(entry["Key"]).startswith(folders) and is_estate(str(entry["Key"]))
    ]
    return tuple(sorted(found, key=lambda entry: entry.key))


def is_estate(key: str) -> bool:
    """Whether a key is one of those that a mesh takes along."""
    return bool(key) and (key.startswith(_OURS) or not key.startswith(RESERVED_KEYS))


def page(entries: tuple[EstateEntry, ...], after: str) -> tuple[tuple[EstateEntry, ...], bool]:
    """The next of `entries`, which come by key, behind the key `after`; and whether there are further ones."""
    rest = [entry for entry in entries if entry.key > after]
    room = PAGE
    found: list[EstateEntry] = []
    for entry in rest:
        room -= len(entry.value) + len(entry.key)
        if room < 0 and found:
            break
        found.append(entry)
    return tuple(found), len(found) < len(rest)


def secrets(keys: ClusterKeys, manifest: Manifest) -> tuple[EstateSecret, ...]:
    """The texts of all secrets of `manifest`, as workloads have them now."""
    turns = manifest.rotate.secrets
    return tuple(
        EstateSecret(
            owner=entry.owner,
            name=name,
            rotation=turns.get(name, 0),
            text=workload_secret(keys, entry.owner, name, turns.get(name, 0)).reveal(),
        )
        for name, entry in sorted(manifest.secrets.items())
    )
