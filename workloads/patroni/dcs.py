"""Patroni's Consul client as a member of the mesh needs it: `MeshConsul`, a subclass of `patroni.dcs.consul.Consul`.

What it does otherwise, each by overriding a method of Patroni's `AbstractDCS` contract:

- *Consul that does not know better is not there yet.* Patroni takes an error of Consul while it renews its session or
  its leader key for a lost key, and demotes. Servers that restart answer with such errors (ACL not found, no node, no
  leader). Here each one is a `ConsulError`, so that failsafe mode decides. Only an answer that says that somebody else
  holds the key is a lost key. Servers that came back empty count from the moment that they take a session.
- *The leader key is given away by who holds it.* The supervisor writes flags into the key (`runtime.leader_key`), so
  the version that Patroni read may be outdated. What counts is the session in the key.
- *A PostgreSQL that was killed gives nothing away.* Its processes may still acknowledge. The supervisor ends them first
  (`life`).
- *A leader that shuts down names a successor* where nobody who has its log may lead yet (`succession`).
- *A guard is asked* before the member takes a free leader key or bootstraps the cluster, and again once it has the key.
- *A bootstrap belongs to whoever locks it.* A claim that was left behind by a member that is gone keeps nobody waiting.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from consul import ConsulException
from patroni.dcs.consul import Consul, ConsulError
from patroni.utils import RetryFailedError
from urllib3.exceptions import HTTPError

from workloads.patroni import control
from workloads.patroni.succession import End, successor

log = logging.getLogger(__name__)

TRIES = 5
"""How often a leader key is read and deleted: the supervisor writes into it once or twice in a leader's life."""
ASKS = 5
"""How often the members are asked for the end of the log: a replica's answer has the timeline of its last round."""
ASK_PAUSE_SECONDS = 0.2
WATCH_SECONDS = 1.0
"""Of one blocking query on the leader key: the shortest for which Patroni makes one (`Consul.watch`)."""

BOOTSTRAP = "bootstrap"
"""The key that a member locks before it claims the bootstrap of a cluster."""
TERMS = "terms"
"""The key of the list of terms, beside Patroni's own."""
CLAIM = "claim"
"""The key in which who wins the leader key says the ID of its term, before its promotion begins."""

Ask = Callable[[Any], Any]
"""What the REST API of a member (`patroni.dcs.Member`) says to `GET /patroni`, parsed. Raises where it is silent."""


class Guard(Protocol):
    """Says whether this member may lead. Each method may take a few seconds, and raises nothing."""

    def may_lead(self, cluster: Any) -> bool:
        """Whether it may take the free leader key of `cluster` (`patroni.dcs.Cluster`; None: it was not loaded)."""

    def may_initialize(self, cluster: Any) -> bool:
        """Whether it may claim the bootstrap of `cluster`, which has no `initialize` key."""

    def claimed(self) -> bool:
        """Called when the bootstrap was claimed, before it begins; False gives the claim up."""

    def won(self) -> bool:
        """Called when the leader key was taken, before the promotion; False, or an error, gives the key back."""


class OpenGuard:
    """The guard that allows everything."""

    def may_lead(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """Yes."""
        return True

    def may_initialize(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """Yes."""
        return True

    def claimed(self) -> bool:
        """Yes."""
        return True

    def won(self) -> bool:
        """Yes."""
        return True


class MeshConsul(Consul):  # type: ignore[misc]
    """Patroni's Consul client; see the module's docstring."""

    def __init__(self, config: dict[str, Any], mpp: Any, *, data: Path, ask: Ask, guard: Guard) -> None:
        """`config`: Patroni's section `consul` with what `patroni.dcs.get_dcs` adds to it. `data`: PostgreSQL's data
        directory.
        """
        self._data = data
        self._ask = ask
        self._guard = guard
        self._remembers = False
        """This process has seen keys of the cluster."""
        self._unclaimed = False
        """The leader key may be ours, and the guard has not said yes to that yet."""
        super().__init__(config, mpp)

    # --- Consul that is not there yet ---

    @staticmethod
    def _run_and_handle_exceptions(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `method` returns. Each failure is a ConsulError: none of them says that the leader key is lost."""
        retry = kwargs.pop("retry", None)
        try:
            return retry(method, *args, **kwargs) if retry else method(*args, **kwargs)
        except (RetryFailedError, ConsulException, HTTPException, HTTPError, OSError) as error:
            raise ConsulError(error) from error

    def _postgresql_cluster_loader(self, path: str) -> Any:
        """The cluster below `path`. Servers that lost it are believed once they take a session of ours.

        Until then they do not know our node either, and the failsafe topology of before is what the leader needs.
        """
        cluster = super()._postgresql_cluster_loader(path)
        if not cluster.is_empty():
            self._remembers = True
        elif self._remembers:
            self._do_refresh_session(True)
        return cluster

    def _cluster_from_nodes(self, nodes: dict[str, Any]) -> Any:
        """The cluster out of its keys. An empty `initialize` says that somebody bootstraps, and Patroni waits for it.

        Whoever does has locked the key beside it; without that the member is gone, and the key says nothing.
        """
        claim = nodes.get("initialize")
        if claim and not claim["Value"] and not nodes.get(BOOTSTRAP, {}).get("Session"):
            nodes = {name: node for name, node in nodes.items() if name != "initialize"}
        return super()._cluster_from_nodes(nodes)

    def _update_leader(self, leader: Any) -> bool:
        """Whether this member still leads, with its claim; where Consul does not say, ConsulError."""
        retry = self._retry.copy()
        self._run_and_handle_exceptions(self._do_refresh_session, True, retry=retry)
        if leader.session == self._session:
            return self._claim()
        retry.ensure_deadline(1, ConsulError("update_leader timeout"))
        log.warning("The session of the leader key has ended; taking the key with the new one")
        held = self._run_and_handle_exceptions(self._leader_entry)
        if held and held.get("Session") != self._session:
            if _text(held) != self._name:
                return False
            if held.get("Session") and not self._is_of_this_node(str(held["Session"])):
                return False
        retry.ensure_deadline(0.5, ConsulError("update_leader timeout"))
        return self._retake(held) and self._claim()

    def _retake(self, held: Any) -> bool:
        """Whether the leader key is our session's: taken from `held`, of an earlier session of ours, or from nobody.

        In one transaction: no replica sees a key that is free meanwhile, and what the supervisor wrote into it stays.
        """
        lock = {
            "Verb": "lock",
            "Key": self.leader_path,
            "Value": base64.b64encode(self._name.encode()).decode(),
            "Flags": int(held["Flags"]) if held else 0,
            "Session": self._session,
        }
        calls = [lock]
        if held:
            calls.insert(0, {"Verb": "delete-cas", "Key": self.leader_path, "Index": int(held["ModifyIndex"])})
        answer = self._run_and_handle_exceptions(self._client.txn.put, [{"KV": call} for call in calls])
        return bool(answer) and not answer.get("Errors")

    def _is_of_this_node(self, session: str) -> bool:
        """Whether `session` was opened on the node of our own one. ConsulError where Consul does not show it.

        A CVM that lost its slot while it was cut off has the name of the one that holds it now, until it is stopped:
        the name in the leader key does not say whose it is. Consul shows a member the sessions of its own node only.
        """
        nodes = []
        for each in (session, self._session):
            _, found = self._run_and_handle_exceptions(self._client.session.info, each, consistency="consistent")
            if not found:
                raise ConsulError(f"the leader key names {self._name}, and its session {session!r} is not of this node")
            nodes.append(found.get("Node"))
        return bool(nodes[0] == nodes[1])

    def _leader_entry(self) -> Any:
        """The leader key as the servers have it; None without one."""
        _, entry = self._client.kv.get(self.leader_path, consistency="consistent")
        return entry

    def watch(self, leader_version: int | None, timeout: float) -> bool:
        """Whether to look again at once: something has happened within about `timeout` seconds.

        In parts of one second. Patroni asks a Consul that answers with errors again without a pause, as long as there
        is a second left.
        """
        end = time.monotonic() + timeout
        while True:
            if super().watch(leader_version, min(timeout, WATCH_SECONDS)):
                return True
            if end - time.monotonic() < WATCH_SECONDS / 2:
                return False

    # --- giving the key away ---

    def delete_leader(self, leader: Any, last_lsn: int | None = None) -> bool:
        """Gives the leader key away, as Patroni does. `last_lsn`: the end of the log after a clean stop."""
        if leader and last_lsn:
            try:
                self._name_successor()
            except Exception:
                log.exception("No successor could be named")
        return bool(super().delete_leader(leader, last_lsn))

    def _delete_leader(self, leader: Any) -> bool:
        """Whether the leader key is gone: deleted while our own session holds it, whatever its version."""
        if self._was_killed():
            log.warning("PostgreSQL was killed: the supervisor gives the leader key away when nothing of it is left")
            return False
        try:
            if leader.session == self._session and self._client.kv.delete(self.leader_path, cas=int(leader.version)):
                return True
            for _ in range(TRIES):
                held = self._leader_entry()
                if held is None:
                    return True
                if held.get("Session") != self._session:
                    return False
                if self._client.kv.delete(self.leader_path, cas=int(held["ModifyIndex"])):
                    return True
        except (ConsulException, HTTPException, HTTPError, OSError) as error:
            log.warning("The leader key could not be deleted: %r", error)
        return False

    def _was_killed(self) -> bool:
        """Whether a PostgreSQL ended without removing its PID file; one that shuts down keeps it to its last moment."""
        return (self._data / "postmaster.pid").exists() and not control.is_shut_down(self._data)

    def _name_successor(self) -> None:
        """Names a member that has the whole log in the `sync` key, where none that is named there has it."""
        found = control.read(self._data)
        if found is None or found.state != control.SHUT_DOWN:
            return
        end = End(lsn=found.checkpoint, timeline=found.timeline)
        cluster = self.get_cluster()
        if not cluster.sync.leader_matches(self._name):
            # Asynchronous: whoever is healthiest may lead.
            return
        named = [name for name in cluster.sync.members if name.lower() != self._name.lower()]
        others = [member for member in cluster.members if member.name != self._name]
        for _ in range(ASKS):
            answers = self._answers(others, named, end)
            name = successor(named, answers, end)
            if name is not None:
                log.info("Naming %s in the sync key: it has the log up to %X", name, end.lsn)
                self.write_sync_state(self._name, [name], 0, version=cluster.sync.version)
                return
            if successor([], answers, end) is not None or not others:
                return
            time.sleep(ASK_PAUSE_SECONDS)
        log.warning("No member says that it has the log up to %X", end.lsn)

    def _answers(self, others: list[Any], named: list[str], end: End) -> Mapping[str, Any]:
        """What members say of themselves: who is named first, and nobody else when that one has everything."""
        answers: dict[str, Any] = {}
        for member in sorted(others, key=lambda it: it.name not in named):
            try:
                answers[member.name] = self._ask(member)
            except Exception as error:  # noqa: BLE001 -- whatever another member makes of it, that one is silent
                log.info("%s does not say how far it is: %r", member.name, error)
                continue
            if successor([], {member.name: answers[member.name]}, end) is not None:
                break
        return answers

    # --- the guard ---

    def attempt_to_acquire_leader(self) -> bool:
        """Whether the leader key is ours now: taken where the guard allows it."""
        if not self._guard.may_lead(self.cluster):
            return False
        # Also where the answer is lost: Patroni finds the key in its next round, and would promote.
        self._unclaimed = True
        return bool(super().attempt_to_acquire_leader()) and self._claim()

    def _claim(self) -> bool:
        """Whether the guard agrees that the leader key is ours; gives it back otherwise.

        ConsulError where Consul does not answer. Then the key may stay ours; `_update_leader`, which comes before each
        promotion, asks again.
        """
        if not self._unclaimed:
            return True
        try:
            self._unclaimed = not self._guard.won()
        except ConsulError as error:
            log.warning("the leader key goes back, for its claim could not be written: %s", error)
        if self._unclaimed:
            held = self._run_and_handle_exceptions(self._leader_entry)
            if held and held.get("Session") == self._session:
                self._run_and_handle_exceptions(self._client.kv.delete, self.leader_path, cas=int(held["ModifyIndex"]))
        return not self._unclaimed

    def initialize(self, create_new: bool = True, sysid: str = "") -> bool:
        """Whether the `initialize` key is ours now: a claim of a new cluster needs the guard's word."""
        if create_new and not self._guard.may_initialize(self.cluster):
            return False
        if not create_new or sysid:
            return bool(super().initialize(create_new, sysid))
        # Patroni writes an empty value, and nobody can tell whose it is: an answer that came too late would be taken
        # for a refusal, and all members would wait for a bootstrap that nobody does. The lock says whose it is.
        path = self.client_path(BOOTSTRAP)
        if not self._run_and_handle_exceptions(self._client.kv.put, path, self._name, acquire=self._session):
            return False
        if not super().initialize(create_new, sysid):
            _, entry = self._run_and_handle_exceptions(
                self._client.kv.get, self.initialize_path, consistency="consistent"
            )
            if entry is None or _text(entry):
                return False
        if self._guard.claimed():
            return True
        self.cancel_initialization()
        self._run_and_handle_exceptions(self._client.kv.put, path, self._name, release=self._session)
        return False

    def read_system_id(self) -> str:
        """The system identifier of the cluster; empty where Consul knows none."""
        _, entry = self._run_and_handle_exceptions(self._client.kv.get, self.initialize_path, consistency="consistent")
        return _text(entry) if entry else ""

    # --- the terms ---

    def read_terms(self) -> tuple[int, str]:
        """Index and text of the cluster's list of terms (`workloads.patroni.terms`); 0 and "" where there is none."""
        _, entry = self._run_and_handle_exceptions(self._client.kv.get, self.client_path(TERMS))
        return (int(entry["ModifyIndex"]), _text(entry)) if entry else (0, "")

    def write_terms(self, text: str, index: int) -> bool:
        """Writes the list if it still has this index; whether it had."""
        return bool(self._run_and_handle_exceptions(self._client.kv.put, self.client_path(TERMS), text, cas=index))

    def read_claim(self) -> str:
        """ID of the term that was claimed last; empty where none was."""
        _, entry = self._run_and_handle_exceptions(self._client.kv.get, self.client_path(CLAIM))
        return _text(entry) if entry else ""

    def write_claim(self, term_id: str) -> None:
        """Writes the ID of the term that this member claims."""
        self._run_and_handle_exceptions(self._client.kv.put, self.client_path(CLAIM), term_id)

    def nominate(self) -> bool:
        """Lets Patroni's rules allow this member to lead a synchronous cluster whose leader and standbys are lost: it
        is named in the `sync` key, and how far the lost ones were is forgotten. Whether that is done: False where
        somebody leads, or the key has changed. Raises where Consul does not answer.
        """
        cluster = self.get_cluster()
        if not cluster.is_unlocked():
            return False
        if not self.write_sync_state(cluster.sync.leader, [self._name], 0, version=cluster.sync.version):
            return False
        # The one holds against a member that is over 1 MiB behind, the other against one that was away.
        for path in (self.status_path, self.failsafe_path):
            self._run_and_handle_exceptions(self._client.kv.delete, path)
        return True

    def forget(self, system_id: str) -> bool:
        """Removes what Consul knows of the database with this system identifier; whether it still knew it."""
        _, entry = self._run_and_handle_exceptions(self._client.kv.get, self.initialize_path, consistency="consistent")
        if not entry or _text(entry) != system_id:
            return False
        own = (self.client_path(TERMS), self.client_path(CLAIM))
        for path in (self.history_path, self.sync_path, self.status_path, self.failsafe_path, self.failover_path, *own):
            self._run_and_handle_exceptions(self._client.kv.delete, path)
        return bool(
            self._run_and_handle_exceptions(self._client.kv.delete, self.initialize_path, cas=int(entry["ModifyIndex"]))
        )


def _text(entry: Mapping[str, Any]) -> str:
    return (entry.get("Value") or b"").decode(errors="replace")
