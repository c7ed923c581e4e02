"""How a standby watches its cluster: by one blocking query of all its keys, whose answer is the next round's cluster.

Patroni watches the leader key alone, in pauses of a second at least, and loads the cluster when it wakes: one more
round trip to Consul's servers just when the leader is gone, and nobody answers as slowly as then (40 ms were measured).
Here the answer that wakes has everything in it, and the one that comes with the end of a pause saves the load that
would follow. What wakes is another holder of the leader key, or none; that the holder says something in it
(`publisher`) does not.

That Patroni still has what is changed here is for the tests to say.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from workloads.patroni import txn
from workloads.patroni.txn import Nodes

log = logging.getLogger(__name__)

SECONDS = 1.0
"""The shortest pause of a standby."""
FRESH_SECONDS = 1.0
"""How long an answer may stand for a load. Patroni asks within milliseconds."""


def hasten(dcs: Any) -> None:
    """Has Patroni's `dcs` watch as above. To be called by the thread that watches: Patroni's main one."""
    it = _Watch(dcs)
    dcs.watch = it.watch
    dcs._postgresql_cluster_loader = it.load


class _Watch:
    def __init__(self, dcs: Any) -> None:
        self._dcs = dcs
        self._watch = dcs.watch
        self._thread = threading.get_ident()
        """Who watches. What other threads load, for whoever asks over REST, is no answer to this one."""
        self._index: int | None = None
        """Of the last answer that it got."""
        self._holder: tuple[Any, ...] = ()
        """In that answer."""
        self._fresh: tuple[Nodes, float] | None = None

    def watch(self, leader_version: int | None, timeout: float) -> bool:
        """Whether something happened within `timeout` seconds. Without `leader_version` there is nothing to watch."""
        self._fresh = None
        if not leader_version or self._index is None or self._dcs._Consul__do_not_watch:
            return bool(self._watch(leader_version, max(timeout, SECONDS) if leader_version else timeout))
        # As Patroni's own: the session is renewed in the next round.
        self._dcs._last_session_refresh = 0
        end = time.monotonic() + max(timeout, SECONDS)
        while (left := end - time.monotonic()) > 0:
            try:
                nodes = self._ask(left)
            except Exception as error:  # noqa: BLE001 -- Patroni's own watch meets it again, and says so
                log.info("the cluster cannot be watched: %r", error)
                self._index = None
                return bool(self._watch(leader_version, max(left, SECONDS)))
            before, self._holder = self._holder, self._holder_in(nodes)
            self._fresh = nodes, time.monotonic()
            if self._holder != before:
                return True
        return False

    def load(self, path: str) -> Any:
        """The cluster: as the watch has just said, or as it is now."""
        watches = threading.get_ident() == self._thread
        if watches and self._fresh is not None:
            (nodes, at), self._fresh = self._fresh, None
            if time.monotonic() - at < FRESH_SECONDS:
                return self._dcs._cluster_from_nodes(nodes)
        dcs = self._dcs
        index, entries = dcs.retry(dcs._client.kv.get, path, recurse=True, consistency=dcs._consistency)
        nodes = txn.nodes(path, entries)
        if watches:
            self._index, self._holder = int(index), self._holder_in(nodes)
        return dcs._cluster_from_nodes(nodes)

    def _ask(self, seconds: float) -> Nodes:
        path = self._dcs.client_path("")
        # Patroni's transport reads the number back, and knows seconds alone.
        wait = f"{max(0.001, seconds):.3f}s"
        index, entries = self._dcs._client.kv.get(path, recurse=True, index=self._index, wait=wait)
        if int(index) < (self._index or 0):
            # The servers lost what they knew: their index starts over, and so do we.
            raise ValueError(f"the index went back from {self._index} to {index}")
        self._index = int(index)
        return txn.nodes(path, entries)

    def _holder_in(self, nodes: Nodes) -> tuple[Any, ...]:
        leader = nodes.get(self._dcs._LEADER)
        return (leader.get("Session"), leader["Value"]) if leader else ()
