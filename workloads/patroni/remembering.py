"""Patroni's daemon with a memory of its cluster: `RememberingPatroni` asks `workloads.patroni.memory` at each step."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patroni.exceptions import DCSError, PatroniFatalException

from workloads.patroni import log_begin, members
from workloads.patroni.daemon import MeshPatroni
from workloads.patroni.dcs import Guard
from workloads.patroni.memory import Memory, ReplaceError

log = logging.getLogger(__name__)


class MemoryGuard:
    """The guard that goes by the memory. What it cannot find out, it does not allow."""

    def __init__(self, memory: Memory, peer_id: str) -> None:
        self._memory = memory
        self._peer_id = peer_id

    def may_lead(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """Whether Consul remembers this member's history, or every member was asked."""
        return self._ask("may_lead")

    def may_initialize(self, cluster: Any) -> bool:
        """Whether every member was asked, and none has more. Who holds the leader key was allowed to lead already."""
        leader = cluster.leader if cluster is not None else None
        if leader is not None and leader.name == self._peer_id:
            return True
        return self._ask("may_initialize")

    def claimed(self) -> bool:
        """Whether the mark of the bootstrap is on the disk: without it half a database might pass for a whole one."""
        return self._ask("claimed")

    def won(self) -> bool:
        """Whether the claim is on the disk: without it the promotion must not begin."""
        return self._ask("won")

    def _ask(self, question: str) -> bool:
        try:
            return bool(getattr(self._memory, question)())
        except DCSError:
            raise
        except Exception:
            log.exception("The memory does not say whether this member %s", question.replace("_", " "))
            return False


class RememberingPatroni(MeshPatroni):
    """Patroni's daemon; see the module's docstring."""

    _memory: Memory
    _prepared = False

    def __init__(self, config: Any, logger: Any) -> None:
        super().__init__(config, logger)
        self._memory.bind(self.postgresql, self.dcs, lambda: log_begin.ask(self.dcs.cluster.leader, self.postgresql))

    def guard(self) -> Guard:
        """A guard with a memory."""
        run = Path(self.config.config_file).parent
        # Patroni makes `ha` after this.
        self._memory = Memory(
            self.config["name"], run, self._listed, lambda: uuid.uuid4().hex, lambda: bool(self.ha.is_paused())
        )
        return MemoryGuard(self._memory, self.config["name"])

    @property
    def tags(self) -> dict[str, Any]:
        """Patroni's tags, and what this member says of its data."""
        return {**super().tags, **self._memory.tags}

    def _listed(self) -> Mapping[str, tuple[str, int]]:
        mesh = self.config["mesh"]
        try:
            text = Path(mesh["hosts"]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            log.warning("the mesh's names cannot be read: %s", error)
            return {}
        return members.addresses(text, mesh["route"], int(mesh["port"]), self.config["name"])

    def _run_cycle(self) -> None:
        """One round, the first one after the data were compared with the leader's."""
        if not self._prepared and not self._prepare():
            super().schedule_next_run()
            return
        if self.ha.rewind_failed:
            # As with a fork: the supervisor starts Patroni again, and `prepare` replaces the data.
            self._memory.spoil()
            raise PatroniFatalException("pg_rewind failed")
        super()._run_cycle()

    def _prepare(self) -> bool:
        try:
            self._prepared = self._memory.prepare(self._leader)
        except DCSError as error:
            log.info("Consul does not say who leads: %s", error)
            return False
        except OSError as error:
            # PostgreSQL is not started on data that may be a fork.
            log.warning("the data could not be compared with the leader's: %s", error)
            return False
        return self._prepared

    def _leader(self) -> str | None:
        leader = self.dcs.get_cluster().leader
        return leader.name if leader is not None and leader.name else None

    def schedule_next_run(self) -> None:
        """Looks at what the round has changed, then waits for the next one."""
        cluster = self.dcs.cluster
        try:
            if cluster is not None:
                leader = cluster.leader.name if cluster.leader and cluster.leader.name else None
                synchronous = self.ha.is_synchronous_mode() and not cluster.sync.is_empty
                named = (cluster.sync.leader, *cluster.sync.members) if synchronous else ()
                self._memory.look(leader, cluster.initialize or "", named)
        except ReplaceError as error:
            # The supervisor starts Patroni again. PostgreSQL is down then, and `prepare` replaces the data.
            raise PatroniFatalException(f"the data are to be replaced: {error}") from error
        except Exception as error:  # noqa: BLE001 -- Consul or PostgreSQL may be away; the next round looks again
            log.info("this member could not be compared with its leader: %r", error)
        super().schedule_next_run()
