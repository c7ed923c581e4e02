"""The ledger: slots, tokens and the peer registry in Consul, so that several coordinators give no slot away twice.

Every admission is one transaction on `coordinator/slots/<peer_id>` and `coordinator/instances/<instance_id>`, both
compare-and-set against what was decided on, with the peer's entry under `mesh/peers/`. The latter holds the peer ID, so
that two coordinators cannot give one instance two slots at once; it goes when its slot has another holder, or none.
Watches keep a copy of it all here; decisions are `coordinator.slots`'. Renewals stay in memory: gossip already says who
lives.

`coordinator/began` says that the records are new, `coordinator/newcomers/<instance_id>` who waits for that reason. Each
coordinator counts one lease by its monotonic clock from the moment at which it first saw the former, and whichever is
first says there that the wait is over: clocks of different machines are never compared.
With the former comes a random text under `mesh/records`, by which every CVM knows these records from others.

Long because every transaction compares the same indexes: they have one owner, which this is.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from admission.protocol import PEERS_PREFIX, RECORDS_KEY, Code, MeshPeer
from coordinator.grants import Tokens
from coordinator.refusal import RefusalError
from coordinator.registry import Registry, decode_peer, encode_peer
from coordinator.slots import (
    LEASE_SECONDS,
    Holder,
    Newcomer,
    Node,
    NodeState,
    Taken,
    claim,
    doubled,
    left_behind,
    newcomers_wait,
)
from coordinator.tokens import LEDGER_PREFIX
from runtime import jsons
from runtime.consul import ConsulClient, ConsulError, reading
from topology.trees import ManifestError, from_tree

log = logging.getLogger(__name__)

SLOTS_PREFIX = LEDGER_PREFIX + "slots/"
INSTANCES_PREFIX = LEDGER_PREFIX + "instances/"
NEWCOMERS_PREFIX = LEDGER_PREFIX + "newcomers/"
BEGAN_KEY = LEDGER_PREFIX + "began"
"""Unix seconds at which the records began, as JSON: for people, and compared with no clock. `OVER` once newcomers need
not wait any more. Records without it were made by an earlier version, and are not new."""
OVER = 0.0
"""A number that earlier versions take for a beginning long ago."""
ATTEMPTS = 4
"""Times that an admission is decided anew after another coordinator was faster."""
FORGET_AT_ONCE = 32
"""Keys that are removed in one transaction, with two operations each: Consul takes 64 (maxTxnOps in
agent/txn_endpoint.go; newer ones take more)."""


class Ledger:
    """This coordinator's copy of the records, and the writes. `clock` gives unix seconds, `monotonic` seconds that
    nobody sets.
    """

    def __init__(
        self,
        consul: ConsulClient,
        registry: Registry,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._consul = consul
        self._registry = registry
        self._clock, self._monotonic = clock, monotonic
        # A holder that could not renew while no coordinator ran gets a whole lease from now.
        self._started = clock()
        self.slots: dict[str, Holder] = {}
        self.nodes: dict[str, Node] = {}
        self.newcomers: dict[str, Newcomer] = {}
        # Monotonic; None while nothing says that the records are new.
        self._wait_ends: float | None = None
        self._over = False
        self._changed = asyncio.Event()
        self._slot_index: dict[str, int] = {}
        # Instance ID to the index of its key, and the peer ID in it.
        self._instances: dict[str, tuple[int, str]] = {}
        self._decoded: dict[str, tuple[int, Holder | None]] = {}
        self._merged: dict[str, tuple[Holder, Holder]] = {}
        self._peers: dict[str, tuple[int, MeshPeer | None]] = {}
        self.kept: Callable[[Iterable[MeshPeer]], None] = lambda _: None
        """Given the workloads' entries whenever they have changed, to keep them over a restart."""

    async def take(self, wanted: Holder, peer: MeshPeer) -> None:
        """Gives the slot to `wanted` and publishes `peer`. RefusalError SLOT_TAKEN; NOT_READY when Consul cannot
        write.
        """
        for _ in range(ATTEMPTS):
            decision = claim(self.slots, wanted, self.nodes)
            if isinstance(decision, Taken):
                raise RefusalError(Code.SLOT_TAKEN, decision.reason)
            before = self.slots.get(wanted.peer_id)
            ended: tuple[str, ...] = ()
            if before is not None and before.boot_key == wanted.boot_key and not before.released:
                # This boot goes on with its tokens until it has the answer.
                decision, ended = replace(decision, former=before.tokens), before.former
            elif before is not None and not before.released:
                ended = (*before.tokens, *before.former)
            self._registry.put(peer)
            try:
                index = await self._transaction(self._take(decision, peer))
            except BaseException:
                self._registry.undo(peer.peer_id)
                raise
            if index is not None:
                self.slots[wanted.peer_id] = decision
                self._slot_index[wanted.peer_id] = index
                # What was just written need not be read to be known.
                self._decoded[SLOTS_PREFIX + wanted.peer_id] = index, decision
                self._instances[wanted.instance_id] = index, wanted.peer_id
                self._registry.written(wanted.peer_id, index)
                self._tell()
                await self._revoke(*ended)
                for other in left_behind(self.slots, decision):
                    await self.free(other, f"its instance took {wanted.peer_id}")
                return
            self._registry.undo(peer.peer_id)
            await self.refresh()
        raise RefusalError(Code.SLOT_TAKEN, f"{wanted.peer_id} is wanted by several at once; try again")

    async def begin(self) -> None:
        """Notes when the records began, if they are empty: then running CVMs are unknown, and come before newcomers.
        Called after `refresh`. RefusalError NOT_READY when Consul cannot write.
        """
        if self.slots or self._wait_ends is not None:
            return
        log.warning("the records are empty: CVMs that run claim their slots before newcomers get one")
        # Refused when another coordinator was faster: its note counts then.
        began = _kv("cas", BEGAN_KEY, json.dumps(self._clock()).encode(), 0)
        await self._transaction([began, _kv("set", RECORDS_KEY, secrets.token_hex(16).encode())])
        await self.refresh()

    def newcomers_wait(self, peer_ids: Collection[str], newcomer: Newcomer) -> float:
        """Seconds that `newcomer` has to wait for a slot of its group, whose slots `peer_ids` are. See
        `slots.newcomers_wait`.
        """
        waiting = {newcomer.instance_id, *(n.instance_id for n in self.newcomers.values() if n.group == newcomer.group)}
        return newcomers_wait(peer_ids, self.slots, self.nodes, waiting, self._wait_left(), self._clock())

    async def wait_as_newcomer(self, newcomer: Newcomer, seconds: float) -> None:
        """Notes that `newcomer`, whose evidence was verified, waits; returns with the next change of the records, or
        after `seconds`. RefusalError NOT_READY when Consul cannot write.
        """
        changed = self._changed
        if newcomer.instance_id not in self.newcomers:
            key = NEWCOMERS_PREFIX + newcomer.instance_id
            await self._transaction([_kv("set", key, _encode(newcomer))])
            self.newcomers[newcomer.instance_id] = newcomer
            self._tell()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()

    async def forget_newcomers(self) -> None:
        """Says that the wait is over and removes the notes about newcomers, once a lease has passed here. RefusalError
        NOT_READY when Consul cannot write.
        """
        if self._wait_left() > 0 or (self._over and not self.newcomers):
            return
        over = _kv("set", BEGAN_KEY, json.dumps(OVER).encode())
        await self._transaction([over, _kv("delete-tree", NEWCOMERS_PREFIX)])
        self._over, self.newcomers = True, {}

    @property
    def complete(self) -> bool:
        """Whether the records have every CVM that runs: a lease has passed since they began."""
        return self._wait_left() <= 0

    def _wait_left(self) -> float:
        """Seconds that newcomers have to wait at most."""
        return 0.0 if self._wait_ends is None else max(0.0, self._wait_ends - self._monotonic())

    def _tell(self) -> None:
        """Wakes everybody who waits for a change of the records."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def issue(self, bodies: Iterable[Mapping[str, object]]) -> None:
        """Makes tokens in Consul, all at once. RefusalError TOKEN_ISSUE_FAILED."""
        writes = [self._consul.put("/v1/acl/token", body) for body in bodies]
        # Each is waited for, also after one failed: none is left to come into being later.
        for error in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(error, ConsulError):
                raise RefusalError(Code.TOKEN_ISSUE_FAILED, str(error)) from error
            if isinstance(error, BaseException):
                raise error

    async def confirm(self, holder: Holder) -> None:
        """RefusalError, and its tokens are revoked, when `holder` lost its slot while they were made: who frees a slot
        revokes what there is. Asks the leader: another coordinator may have freed it.
        """
        try:
            key = SLOTS_PREFIX + holder.peer_id
            _, entries = await self._consul.get(f"/v1/kv/{key}", params={"consistent": ""})
            with reading(key):
                written = _decode_holder(key, base64.b64decode(entries[0]["Value"] or "")) if entries else None
        except ConsulError as error:
            await self._revoke(*holder.tokens)
            raise RefusalError(Code.NOT_READY, f"the records cannot be read now: {error}") from error
        if written is None or written.released or written.boot_key != holder.boot_key:
            await self._revoke(*holder.tokens)
            raise RefusalError(Code.NOT_READY, f"{holder.peer_id} was freed meanwhile; attest again")

    async def replace_tokens(self, holder: Holder, tokens: Tokens) -> None:
        """Notes the tokens that `holder` runs with from now on. Those before stay until the next ones, for its answer
        may be lost, and are revoked then; a workload's without a successor is revoked now. RefusalError LEASE_INVALID,
        and the new ones are revoked, when it lost its slot meanwhile.
        """
        new = tokens.noted(holder)
        ended: list[str] = []
        for _ in range(ATTEMPTS):
            current = self.slots.get(holder.peer_id)
            if current is None or current.released or current.boot_key != holder.boot_key:
                break
            if current.accessor != new.accessor:
                noted = self.slots[holder.peer_id] = _succeeded(current, new)
                ended += [each for each in (*current.tokens, *current.former) if each not in noted.former]
            if await self._rewrite(holder.peer_id):
                noted = self.slots[holder.peer_id]
                kept = {*noted.tokens, *noted.former}
                await self._revoke(*(each for each in dict.fromkeys(ended) if each not in kept))
                return
            # Another coordinator was faster, and what it gave is replaced by ours: nothing else names it any more.
            _, written = self._decoded.get(SLOTS_PREFIX + holder.peer_id, (0, None))
            if written is not None and written.boot_key == holder.boot_key and not written.released:
                ended += [*written.tokens, *written.former]
        await self._revoke(*new.tokens)
        raise RefusalError(Code.LEASE_INVALID, f"{holder.peer_id} is no longer held by this boot; attest again")

    async def renew(self, holder: Holder) -> None:
        """Notes that the holder lives. Written down only when gossip thinks otherwise, for the other coordinators to
        know.
        """
        self._note(holder, renewed_at=self._clock())
        node = self.nodes.get(holder.peer_id)
        if holder.joined and (node is None or node.state is not NodeState.ALIVE):
            await self._rewrite(holder.peer_id)

    async def trusts(self, holder: Holder, digest: str) -> None:
        """Notes that the holder trusts the mesh CA of the manifest `digest`, for all coordinators to know."""
        self._note(holder, trusts=digest)
        await self._rewrite(holder.peer_id)

    async def free(self, holder: Holder, reason: str) -> bool:
        """Takes the slot and the peer's entry back and revokes its token. False when the slot changed hands
        meanwhile.
        """
        peer_id = holder.peer_id
        current = self.slots.get(peer_id)
        if current is None or current.boot_key != holder.boot_key or current.released:
            return False
        released = replace(current, released=True)
        operations = [
            _kv("cas", SLOTS_PREFIX + peer_id, _encode(released), self._slot_index.get(peer_id, 0)),
            _kv("delete", PEERS_PREFIX + peer_id),
        ]
        index = await self._transaction(operations)
        if index is None:
            await self.refresh()
            return False
        self.slots[peer_id], self._slot_index[peer_id] = released, index
        self._registry.remove(peer_id, index)
        log.info("slot freed", extra={"peer_id": peer_id, "reason": reason})
        await self._revoke(*current.tokens, *current.former)
        return True

    async def forget_instances(self) -> None:
        """Removes the keys of instances that hold no slot. RefusalError NOT_READY when Consul cannot write."""
        idle = [name for name, (_, peer_id) in self._instances.items() if not self._holds(name, peer_id)]
        if not idle:
            return
        chosen = idle[:FORGET_AT_ONCE]
        # The slot is compared, too: Consul gives a key that is set to the value that it has no new index.
        operations = [each for name in chosen for each in self._forget(name)]
        if await self._transaction(operations) is None:
            # One of them was admitted meanwhile.
            await self.refresh()
            return
        for name in chosen:
            self._instances.pop(name, None)

    def _forget(self, instance_id: str) -> list[dict[str, object]]:
        index, peer_id = self._instances[instance_id]
        slot = SLOTS_PREFIX + peer_id
        written = self._slot_index.get(peer_id)
        as_known = _kv("check-not-exists", slot) if written is None else _kv("check-index", slot, index=written)
        return [as_known, _kv("delete-cas", INSTANCES_PREFIX + instance_id, index=index)]

    def _holds(self, instance_id: str, peer_id: str) -> bool:
        holder = self.slots.get(peer_id)
        return holder is not None and holder.instance_id == instance_id and not holder.released

    def doubled(self) -> tuple[Holder, ...]:
        """See `slots.doubled`."""
        return doubled(self.slots, self._slot_index)

    async def refresh(self) -> None:
        """Reads the records once, from the leader."""
        index, tree = await self._consul.get(f"/v1/kv/{LEDGER_PREFIX}", params={"recurse": "", "consistent": ""})
        with reading("the records"):
            self.take_records(index, tree)

    def take_records(self, index: int, tree: Any) -> None:
        """The records as of an answer of Consul's KV. An answer from before an own write does not undo that write."""
        held, decoded = self.slots, dict[str, tuple[int, Holder | None]]()
        slots: dict[str, Holder] = {}
        newcomers: dict[str, Newcomer] = {}
        slot_index, instances = dict[str, int](), dict[str, tuple[int, str]]()
        for entry in tree or ():
            key, written = entry["Key"], entry["ModifyIndex"]
            if key.startswith(INSTANCES_PREFIX):
                peer_id = base64.b64decode(entry["Value"] or "").decode(errors="replace")
                instances[key.removeprefix(INSTANCES_PREFIX)] = written, peer_id
                continue
            if not key.startswith(SLOTS_PREFIX):
                self._take_beginning(key, base64.b64decode(entry["Value"] or ""), newcomers)
                continue
            # A change brings all records again; only those that changed are worth decoding.
            known = self._decoded.get(key)
            if known is None or known[0] != written:
                known = written, _decode_holder(key, base64.b64decode(entry["Value"] or ""))
            decoded[key] = known
            # Also of a record that cannot be read: whoever takes the slot replaces it.
            slot_index[key.removeprefix(SLOTS_PREFIX)] = written
            if known[1] is not None:
                holder = known[1]
                slots[holder.peer_id] = self._with_memory(holder, held.get(holder.peer_id))
        own_slots = {name: own for name, own in self._slot_index.items() if own > index}
        own_instances = {name: own for name, own in self._instances.items() if own[0] > index}
        self.slots = slots | {name: held[name] for name in own_slots if name in held}
        self._slot_index, self._instances = slot_index | own_slots, instances | own_instances
        self._decoded, self.newcomers = decoded, newcomers
        self._tell()

    def _take_beginning(self, key: str, value: bytes, newcomers: dict[str, Newcomer]) -> None:
        """When the records began, or a newcomer that waits since. What cannot be read delays nobody."""
        try:
            if key == BEGAN_KEY:
                self._see_beginning(float(json.loads(value)))
            elif key.startswith(NEWCOMERS_PREFIX):
                newcomer: Newcomer = from_tree(Newcomer, json.loads(value), key)
                newcomers[newcomer.instance_id] = newcomer
        except (ManifestError, ValueError, TypeError, OverflowError, RecursionError) as error:
            log.warning("record ignored", extra={"key": key, "reason": str(error)})

    def _see_beginning(self, began: float) -> None:
        if began == OVER:
            self._over = True
        ends = self._monotonic() + (0.0 if self._over else LEASE_SECONDS)
        self._wait_ends = ends if self._wait_ends is None else min(self._wait_ends, ends)

    def take_peers(self, index: int, tree: Any) -> None:
        """The peer entries as of an answer of Consul's KV."""
        peers: dict[str, tuple[int, MeshPeer | None]] = {}
        for entry in tree or ():
            key, written = entry["Key"], entry["ModifyIndex"]
            known = self._peers.get(key)
            if known is None or known[0] != written:
                known = written, decode_peer(key, base64.b64decode(entry["Value"] or ""))
            peers[key] = known
        if peers != self._peers:
            self.kept([peer for _, peer in peers.values() if peer is not None and peer.kind == "workload"])
        self._peers = peers
        self._registry.snapshot(index, {peer.peer_id: peer for _, peer in peers.values() if peer is not None})

    def take_nodes(self, _index: int, tree: Any) -> None:
        """Who lives, as of an answer of `/v1/health/state/any` for the check serfHealth."""
        now = self._clock()
        entries = [entry for entry in tree or () if entry["CheckID"] == "serfHealth"]
        # Consul lets any token that may write some service put a check of that service over a node's own. It says
        # nothing then, and the lease alone decides.
        covered = {entry["Node"] for entry in entries if entry.get("ServiceID")}
        states = {
            entry["Node"]: NodeState.ALIVE if entry["Status"] == "passing" else NodeState.FAILED
            for entry in entries
            if entry["Node"] not in covered
        }
        known = {name: node for name, node in self.nodes.items() if name not in covered}
        gone = {name: NodeState.ABSENT for name in known if name not in states}
        self.nodes = {
            name: known[name]
            if name in known and known[name].state is state
            # A node that this coordinator has not seen alive yet: after a restart of all, gossip finds each other only
            # bit by bit. That is no death that it noticed, and the lease decides.
            else Node(state=state, since=now if name in known else self._started)
            for name, state in (states | gone).items()
        }
        for peer_id, holder in self.slots.items():
            if states.get(peer_id) is NodeState.ALIVE and not holder.joined:
                self.slots[peer_id] = replace(holder, joined=True)

    def _with_memory(self, holder: Holder, held: Holder | None) -> Holder:
        """`holder` as read, with what only this process knows of the same boot."""
        last = self._merged.get(holder.peer_id)
        if last is None or last[0] is not holder or last[1] is not held:
            # Else neither the record nor what we know has changed, and merging it again would give the same.
            last = self._merged[holder.peer_id] = holder, self._merge(holder, held)
        return last[1]

    def _merge(self, holder: Holder, held: Holder | None) -> Holder:
        renewed_at = max(holder.renewed_at, self._started)
        if held is None or held.boot_key != holder.boot_key:
            return holder if renewed_at == holder.renewed_at else replace(holder, renewed_at=renewed_at)
        newer = held if held.token_expires_at > holder.token_expires_at else holder
        merged = replace(holder, renewed_at=max(renewed_at, held.renewed_at), joined=holder.joined or held.joined)
        merged = merged.with_tokens(newer.accessor, newer.workload_accessor, newer.token_expires_at)
        merged = replace(merged, former=newer.former)
        return held if merged == held else merged

    def _note(self, holder: Holder, **changes: Any) -> None:
        current = self.slots.get(holder.peer_id)
        if current is not None and current.boot_key == holder.boot_key:
            self.slots[holder.peer_id] = replace(current, **changes)

    async def _rewrite(self, peer_id: str) -> bool:
        """Writes the slot as it is known here; False when another coordinator has written it meanwhile."""
        data = _encode(self.slots[peer_id])
        index = await self._transaction([_kv("cas", SLOTS_PREFIX + peer_id, data, self._slot_index.get(peer_id, 0))])
        if index is None:
            await self.refresh()
            return False
        self._slot_index[peer_id] = index
        return True

    async def _revoke(self, *accessors: str) -> None:
        for accessor in accessors:
            try:
                await self._consul.delete(f"/v1/acl/token/{accessor}")
            except ConsulError as error:
                # It expires by itself; the slot is free either way.
                log.warning("token not revoked", extra={"accessor": accessor, "reason": str(error)})

    async def _transaction(self, operations: list[dict[str, object]]) -> int | None:
        """The index of the write, or None when a compare failed. RefusalError NOT_READY when Consul does not take
        it.
        """
        try:
            answer = await self._consul.put("/v1/txn", operations)
            with reading("the answer to a transaction"):
                # What is removed has no index.
                return max((int(result["KV"]["ModifyIndex"]) for result in answer["Results"] or ()), default=0)
        except ConsulError as error:
            if error.status == 409:
                return None
            raise RefusalError(Code.NOT_READY, f"the records cannot be written now: {error}") from error

    def _take(self, holder: Holder, peer: MeshPeer) -> list[dict[str, object]]:
        instance = holder.instance_id
        known, _ = self._instances.get(instance, (0, ""))
        return [
            _kv("cas", SLOTS_PREFIX + holder.peer_id, _encode(holder), self._slot_index.get(holder.peer_id, 0)),
            _kv("cas", INSTANCES_PREFIX + instance, holder.peer_id.encode(), known),
            _kv("set", PEERS_PREFIX + peer.peer_id, encode_peer(peer)),
        ]


def _succeeded(holder: Holder, new: Holder) -> Holder:
    """`holder` with the tokens of `new`, and its own as former ones. A workload's token without a successor ends."""
    kept = holder.tokens if new.workload_accessor else (holder.accessor,)
    found = holder.with_tokens(new.accessor, new.workload_accessor, new.token_expires_at)
    return replace(found, former=tuple(each for each in kept if each))


def _kv(verb: str, key: str, value: bytes | None = None, index: int | None = None) -> dict[str, object]:
    operation: dict[str, object] = {"Verb": verb, "Key": key}
    if value is not None:
        operation["Value"] = base64.b64encode(value).decode()
    if index is not None:
        operation["Index"] = index
    return {"KV": operation}


def _encode(record: Holder | Newcomer) -> bytes:
    return jsons.canonical(record)


def _decode_holder(key: str, value: bytes) -> Holder | None:
    """The record, or None with a log line: one that cannot be read is one that nobody holds."""
    try:
        holder: Holder = from_tree(Holder, json.loads(value), key)
    except (ManifestError, ValueError, RecursionError) as error:
        log.warning("slot record ignored", extra={"key": key, "reason": str(error)})
        return None
    return holder if key == SLOTS_PREFIX + holder.peer_id else None
