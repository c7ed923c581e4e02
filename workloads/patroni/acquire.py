"""How a standby takes the leader key: one transaction where Patroni has four round trips to Consul's servers.

Patroni takes the key, reads the whole cluster again, writes into the `sync` key that it leads and has no synchronous
standby yet, and reads that key, for a write does not say its index. Only then it promotes. Consul does all of it at
once or not at all: locks the key, writes `sync` if it still is what this member went by, and gives the tree as it then
is. What Patroni asks for next is answered from that, to the same thread, once.

Why it is safe: the same things are checked, and none of them later than before. Where the transaction fails, for the
key was taken or `sync` was changed, Patroni goes its own way, and finds out which it was. A transaction that was done
although its answer was lost leaves a key that our session holds: Patroni takes that as its own, finds `sync` changed,
and promotes in its next round.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from workloads.patroni import txn
from workloads.patroni.txn import Nodes

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
"""How long an answer may stand for a new one. Patroni asks within milliseconds."""


def hasten(dcs: Any, ha: Any) -> None:
    """Has Patroni's `dcs` and `ha` take the key as above."""
    one = _OneStep(dcs, ha)
    dcs._do_attempt_to_acquire_leader = one.take
    dcs._postgresql_cluster_loader = one.load
    dcs.set_sync_state_value = one.set_sync_state


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the transaction gave."""

    nodes: Nodes
    sync: str | None
    """What was written into the `sync` key; None: nothing."""
    thread: int
    at: float


class _OneStep:
    def __init__(self, dcs: Any, ha: Any) -> None:
        self._dcs = dcs
        self._ha = ha
        self._take = dcs._do_attempt_to_acquire_leader
        self._load = dcs._postgresql_cluster_loader
        self._set_sync = dcs.set_sync_state_value
        self._loads: _Taken | None = None
        """For the next load."""
        self._syncs: _Taken | None = None
        """For the next write into `sync`."""

    def take(self, retry: Any) -> bool:
        """Whether the key is ours now."""
        self._loads = self._syncs = None
        ha, dcs = self._ha, self._dcs
        if ha.state_handler.role != "replica" or ha.is_paused() or ha.is_standby_cluster():
            return bool(self._take(retry))
        value = None
        if ha.sync_mode_is_active() and not ha.is_quorum_commit_mode():
            value = json.dumps(dcs.sync_state(dcs._name, None, 0), separators=(",", ":"))
        try:
            nodes = self._transact_with_session(value)
        except Exception as error:  # noqa: BLE001 -- whatever it is, Patroni's own way meets it again and says so
            log.info("the leader key is not taken in one step: %r", error)
            return bool(self._take(retry))
        self._loads = self._syncs = _Taken(nodes, value, threading.get_ident(), time.monotonic())
        return True

    def _transact_with_session(self, sync: str | None) -> Nodes:
        """As `_transact`, with a new session if ours has ended.

        Patroni would try with the old one for seconds: it knows the error of a server, not what an agent makes of it.
        """
        try:
            return self._transact(sync)
        except Exception as error:
            if "invalid session" not in str(error):
                raise
            log.info("the session has ended; the leader key is taken with a new one")
            self._dcs._session = None
            self._dcs._do_refresh_session()
            return self._transact(sync)

    def _transact(self, sync: str | None) -> Nodes:
        """Everything below the cluster's path once the key is ours. Raises where the servers did nothing."""
        dcs = self._dcs
        path = dcs.client_path("")
        writes = [txn.call("lock", dcs.leader_path, dcs._name, Session=dcs._session)]
        if sync is not None:
            writes.append(txn.call("cas", dcs.sync_path, sync, Index=self._ha.cluster.sync.version))
        found = txn.commit(dcs._client, [*writes, txn.call("get-tree", path)])
        return txn.nodes(path, found[len(writes) :])

    def load(self, path: str) -> Any:
        """The cluster: as the transaction gave it, when that was a moment ago in this thread; else as it is now."""
        taken, self._loads = self._loads, None
        if taken is None or not _is_ours(taken):
            return self._load(path)
        return self._dcs._cluster_from_nodes(taken.nodes)

    def set_sync_state(self, value: str, version: int | None = None) -> Any:
        """The index of `sync` with this value; False where it has another version, or could not be written."""
        taken, self._syncs = self._syncs, None
        if taken is None or not _is_ours(taken) or taken.sync != value:
            return self._set_sync(value, version)
        index = taken.nodes[self._dcs._SYNC]["ModifyIndex"]
        return index if index == version else self._set_sync(value, version)


def _is_ours(taken: _Taken) -> bool:
    return taken.thread == threading.get_ident() and time.monotonic() - taken.at < FRESH_SECONDS
