"""One xDS stream as a state machine: requests and snapshots go in, responses come out. Pure.

The output side is *pulled*: `poll()` says what to send next, given all that is known now, and records it as sent. So
what a slow client has not taken yet is never stale: the next answer is made when there is room for it, from the
newest snapshot, and several snapshots published meanwhile become one. Nothing waits for a timer.

Order of one snapshot (make before break): clusters, endpoints and secrets that are new or changed; when Envoy has
answered for clusters, listeners (with removals: nothing refers to a listener); when it has answered for those and
accepted them, removals of clusters and the rest. Envoy withholds its ACK of clusters until they have warmed,
which takes their endpoints and secrets, hence these three never wait for one another. Nor do listeners wait for the
answer for endpoints: those of a new cluster came before its ACK, and those of a warm one reach the workers before a
listener that is sent after them, since Envoy's main thread takes one after the other. So a connection to an old leader
is cut without a round trip in between.

Words: a client *holds* what it was sent or says it has; a name is *due* when it must be answered although nothing
changed.

The protocol is the incremental one (delta): requests change subscriptions, responses say what changed. Our Envoys are
told to use it, and the other one (state of the world) is not served.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xds.snapshot import CLUSTER, ENDPOINT, LISTENER, SECRET, TYPES, Resource, Snapshot

WILDCARD = "*"
_WILDCARD_TYPES = (CLUSTER, LISTENER)
"""The types for which an empty first subscription means everything (the protocol's legacy form)."""
_REMOVED_LAST = (CLUSTER, ENDPOINT, SECRET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a DeltaDiscoveryRequest says."""

    type_url: str
    node_id: str = ""
    """Only in a stream's first request."""
    nonce: str = ""
    """The response that this one answers; empty if none."""
    error: str | None = None
    """Set: that response was rejected, and why."""
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    """What the client kept from an earlier stream: name → version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a DeltaDiscoveryResponse says."""

    type_url: str
    version: str
    """Of the snapshot; it only informs."""
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    """Something that Envoy rejected and that is still wanted."""

    type_url: str
    names: tuple[str, ...]
    """The resources that the message names, or all of the rejected response."""
    message: str
    version: str
    """Of the snapshot that was sent."""


@dataclass(slots=True)
class History:
    """Every name ever sent to a node, by type, until its removal was acknowledged. Outlives streams.

    Needed because after a partial rejection Envoy holds resources that it does not restate when it reconnects: what
    is not restated and not wanted must be removed by name, or it stays for ever.
    """

    names: dict[str, set[str]] = field(default_factory=lambda: {type_url: set() for type_url in TYPES})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A response that was not answered yet."""

    version: str
    sent: tuple[Resource, ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Type:
    """The state of one resource type on one stream."""

    opened: bool = False
    greeted: bool = False
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    """Name → version. "" for what it may hold in an unknown version."""
    due: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    """Subscribed names that it was told do not exist."""
    pending: dict[str, _Pending] = field(default_factory=dict)
    rejected: dict[str, Nack] = field(default_factory=dict)
    dirty: bool = True
    """False: the last look found nothing to send, and nothing happened since."""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def subscribe(self, name: str) -> None:
        self.names.add(name)
        self.absent.discard(name)

    def forget(self, name: str) -> None:
        self.held.pop(name, None)
        self.rejected.pop(name, None)
        self.due.discard(name)


class Stream:
    """Order, versions, subscriptions and acknowledgements of one stream."""

    def __init__(self, histories: dict[str, History]) -> None:
        """`histories`: node ID → history, shared by all streams of one server."""
        self._histories = histories
        self._history = History()
        self._types = {type_url: _Type() for type_url in TYPES}
        self._snapshot: Snapshot | None = None
        self._nonces = 0
        self._named = False
        self.node_id = ""

    def publish(self, snapshot: Snapshot) -> None:
        """The snapshot to bring the client to from now on. What is wanted no longer is not complained about any
        more."""
        self._snapshot = snapshot
        for type_url, state in self._types.items():
            state.dirty = True
            wanted = snapshot.resources[type_url]
            state.absent -= wanted.keys()
            for name in [n for n in state.rejected if n not in wanted]:
                del state.rejected[name]

    def retry(self) -> None:
        """Sends what was rejected once more. For a cause outside the resource, such as an address that was taken;
        never by itself."""
        for state in self._types.values():
            state.due.update(name for name in state.rejected if state.wants(name))
            state.dirty = True

    def poll(self) -> Response | None:
        """The next response to send, now recorded as sent; None when there is nothing to send until something
        happens."""
        if self._snapshot is None:
            return None
        for type_url in TYPES:
            if type_url == LISTENER and self._awaits(CLUSTER):
                continue
            state = self._types[type_url]
            if state.opened and state.dirty:
                response = self._additions(type_url, state, self._snapshot)
                if response is not None:
                    return response
                state.dirty = False
        return self._removals(self._snapshot)

    def acknowledged(self) -> str | None:
        """Version of the snapshot if the client has acknowledged all of it, else None."""
        snapshot = self._snapshot
        states = self._types
        if snapshot is None or not all(states[type_url].greeted for type_url in _WILDCARD_TYPES):
            return None
        if any(state.pending or state.rejected or state.due for state in states.values()):
            return None
        for type_url, state in states.items():
            wanted = snapshot.resources[type_url]
            if len(state.held) != len(wanted):
                return None
            if any(state.held.get(name) != resource.version for name, resource in wanted.items()):
                return None
        return snapshot.version

    def nacks(self) -> tuple[Nack, ...]:
        """What is rejected at present, each rejection once."""
        return tuple(dict.fromkeys(nack for state in self._types.values() for nack in state.rejected.values()))

    def handle(self, request: Request) -> None:
        """Takes one request. An unknown type is ignored: there is nothing of it to send."""
        self._identify(request.node_id)
        state = self._types.get(request.type_url)
        if state is None:
            return
        self._settle(request.type_url, request.nonce, request.error)
        # Subscriptions count whatever the nonce and even in a NACK: a delta request is a change that is never repeated.
        first, state.opened, state.dirty = not state.opened, True, True
        if first:
            self._open(request.type_url, state, request)
        else:
            self._subscribe(state, request.subscribe)
        for name in request.unsubscribe:
            self._unsubscribe(state, name)

    def _open(self, type_url: str, state: _Type, request: Request) -> None:
        """First request of a type: the client restates what it has and what it wants."""
        state.held.update(request.initial_versions)
        says_nothing = not request.subscribe and not request.unsubscribe
        state.wildcard = WILDCARD in request.subscribe or (says_nothing and type_url in _WILDCARD_TYPES)
        for name in request.subscribe:
            if name != WILDCARD:
                state.subscribe(name)
        if state.wildcard:
            for name in self._history.names[type_url]:
                state.held.setdefault(name, "")

    def _subscribe(self, state: _Type, names: Iterable[str]) -> None:
        for name in names:
            if name == WILDCARD:
                state.wildcard = True
            else:
                # Asked again, so answered again: the client may have dropped what it had.
                state.subscribe(name)
                state.due.add(name)

    def _unsubscribe(self, state: _Type, name: str) -> None:
        if name == WILDCARD:
            state.wildcard = False
            for held in [held for held in state.held if held not in state.names]:
                state.forget(held)
        elif name in state.names:
            state.names.discard(name)
            state.absent.discard(name)
            if state.wildcard:
                # It still gets everything, and must be told what became of this one.
                state.due.add(name)
            else:
                state.forget(name)

    def _identify(self, node_id: str) -> None:
        # Only the first request carries the node; a later one that did would not change whose stream this is.
        if not self._named:
            self._named = True
            self.node_id = node_id
            self._history = self._histories.setdefault(node_id, History())

    def _settle(self, type_url: str, nonce: str, error: str | None) -> None:
        """Takes an ACK or a NACK. A nonce that is not pending (stale, or of an earlier stream) says nothing."""
        state = self._types[type_url]
        pending = state.pending.pop(nonce, None)
        if pending is None:
            return
        if error is None:
            self._history.names[type_url].difference_update(name for name in pending.removed if name not in state.held)
            for resource in pending.sent:
                state.rejected.pop(resource.name, None)
            return
        names = tuple(resource.name for resource in pending.sent) or pending.removed
        guilty = tuple(name for name in names if _named(name, error)) or names
        nack = Nack(type_url=type_url, names=guilty, message=error, version=pending.version)
        # Nothing is sent again because of this: the rejected version counts as held, and only another one differs
        # from it.
        state.rejected.update(dict.fromkeys(guilty, nack))

    # Responses.

    def _awaits(self, *type_urls: str) -> bool:
        return any(self._types[type_url].pending for type_url in type_urls)

    def _additions(self, type_url: str, state: _Type, snapshot: Snapshot) -> Response | None:
        wanted = snapshot.resources[type_url]
        changed = self._changed(type_url, state, snapshot)
        unknown = [
            name for name in state.names if name not in wanted and name not in state.held and name not in state.absent
        ]
        asked = [name for name in state.due if name not in wanted]
        gone = [name for name in state.held if name not in wanted] if type_url == LISTENER else []
        removed = tuple(dict.fromkeys([*unknown, *asked, *gone]))
        # The first request of a wildcard type is answered even with nothing, else Envoy waits for its configuration
        # for ever.
        if not changed and not removed and (state.greeted or not state.wildcard):
            return None
        for name in removed:
            state.forget(name)
            if name in state.names:
                state.absent.add(name)
        return self._respond(type_url, state, snapshot.version, changed, removed)

    def _removals(self, snapshot: Snapshot) -> Response | None:
        """What is wanted no longer, once nothing that Envoy runs can refer to it any more."""
        listeners = self._types[LISTENER]
        # A client that has not asked for listeners when it has answered for clusters has none that refer to any: an
        # Envoy that reconnects subscribes to all types before it answers for one.
        if (listeners.wildcard and not listeners.greeted) or self._awaits(CLUSTER, ENDPOINT, LISTENER):
            return None
        # A listener whose change was rejected runs on as it was, and may need what the new one does not.
        if listeners.rejected:
            return None
        for type_url in _REMOVED_LAST:
            state = self._types[type_url]
            gone = tuple(name for name in state.held if name not in snapshot.resources[type_url])
            if gone and state.opened:
                for name in gone:
                    state.forget(name)
                return self._removal(type_url, state, snapshot, gone)
        return None

    def _removal(self, type_url: str, state: _Type, snapshot: Snapshot, gone: tuple[str, ...]) -> Response | None:
        state.absent.update(name for name in gone if name in state.names)
        return self._respond(type_url, state, snapshot.version, (), gone)

    def _changed(self, type_url: str, state: _Type, snapshot: Snapshot) -> list[Resource]:
        """What the client wants and does not hold in this version, and what is due."""
        wanted = snapshot.resources[type_url]
        names: Iterable[str] = wanted if state.wildcard else [name for name in state.names if name in wanted]
        held, due = state.held, state.due
        return [wanted[name] for name in names if held.get(name) != wanted[name].version or name in due]

    def _respond(
        self,
        type_url: str,
        state: _Type,
        version: str,
        resources: Iterable[Resource],
        removed: Iterable[str] = (),
    ) -> Response:
        """Records a response as sent."""
        sent, gone = tuple(resources), tuple(removed)
        self._nonces += 1
        nonce = str(self._nonces)
        state.greeted = True
        if type_url == CLUSTER:
            self._endpoints_due(r.name for r in sent if state.held.get(r.name) != r.version or r.name in state.due)
        for resource in sent:
            state.held[resource.name] = resource.version
            state.due.discard(resource.name)
        self._history.names[type_url].update(resource.name for resource in sent)
        assert self._snapshot is not None
        state.pending[nonce] = _Pending(version=self._snapshot.version, sent=sent, removed=gone)
        return Response(type_url=type_url, version=version, nonce=nonce, resources=sent, removed=gone)

    def _endpoints_due(self, clusters: Iterable[str]) -> None:
        """A cluster that was updated warms only when its endpoints come after it, changed or not; else it stalls 15
        s."""
        endpoints = self._types[ENDPOINT]
        endpoints.due.update(name for name in clusters if name in endpoints.held)
        endpoints.dirty = True


def _named(name: str, text: str) -> bool:
    """Whether Envoy's message is about `name`, and not only about one of which it is a part. Pure."""
    return re.search(rf"(?<![\w./:-]){re.escape(name)}(?![\w/-]|[.:]\w)", text) is not None
