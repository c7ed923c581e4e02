"""A PostgreSQL and a Consul that stand in, and a member's memory between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.patroni import record, standing
from workloads.patroni.dcs import ConsulError
from workloads.patroni.memory import Memory
from workloads.patroni.record import Claim, Record
from workloads.patroni.standing import State
from workloads.patroni.terms import Term, Terms, parse


def term(timeline: int, mark: str = "a", begin: int = 50) -> Term:
    """A term that `postgres-<mark>` led."""
    return Term(id=f"{timeline}{mark}".rjust(32, "0"), timeline=timeline, begin=begin, leader=f"postgres-{mark}")


@dataclass
class Postgres:
    """What is asked of Patroni's `Postgresql`."""

    data_dir: str
    state: str = "running"
    primary: int = 0
    """Timeline of a primary."""
    streams: bool = False
    timeline: int = 1
    lsn: int = 10
    waits: str = "RecoveryRetrieveRetryInterval"
    sysid: str = "7"

    def data_directory_empty(self) -> bool:
        return not (Path(self.data_dir) / "PG_VERSION").exists()

    def is_running(self) -> bool:
        return self.state == "running"

    def is_starting(self) -> bool:
        return self.state == "starting"

    def is_primary(self) -> bool:
        return self.primary > 0

    def get_primary_timeline(self) -> int:
        return self.primary

    def get_history(self, timeline: int) -> list[tuple[int, int, str]]:
        return [(n, 50, "") for n in range(1, timeline)]

    def get_replica_timeline(self) -> int:
        return self.timeline

    def received_timeline(self) -> int:
        return self.timeline

    def replay_lsn(self) -> int:
        return self.lsn

    def replication_state(self) -> str | None:
        return "streaming" if self.streams else None

    def query(self, _: str, retry: bool) -> list[tuple[Any, ...]]:
        assert not retry
        return [(not self.primary, self.lsn, self.waits, self.primary)]


@dataclass
class Consul:
    """The key of the terms."""

    text: str = ""
    index: int = 0
    written: list[Terms] = field(default_factory=list)
    system_id: str = ""
    claim: str = ""
    refuses: bool = False
    """The claim."""
    paused: bool = False
    """The cluster, as Patroni has it from the last Consul that knew one."""
    nominated: int = 0

    def nominate(self) -> bool:
        self.nominated += 1
        return True

    def read_system_id(self) -> str:
        return self.system_id

    def forget(self, system_id: str) -> bool:
        assert system_id == self.system_id
        self.system_id = self.text = self.claim = ""
        return True

    def read_claim(self) -> str:
        return self.claim

    def write_claim(self, term_id: str) -> None:
        if self.refuses:
            raise ConsulError("no answer")
        self.claim = term_id

    def read_terms(self) -> tuple[int, str]:
        return self.index, self.text

    def write_terms(self, text: str, index: int) -> bool:
        if index != self.index:
            return False
        self.text, self.index = text, index + 1
        self.written.append(parse(text))
        return True


@dataclass
class Place:
    """A member `postgres-b` of two."""

    memory: Memory
    postgres: Postgres
    consul: Consul
    data: Path
    run: Path
    members: dict[str, tuple[str, int]]

    def has(self, *terms: Term, claim: Claim | None = None) -> None:
        """Gives it a database with this record."""
        (self.data / "pg_wal").mkdir(parents=True, exist_ok=True)
        (self.data / "PG_VERSION").write_text("15")
        record.save(self.data, Record(terms=terms, claim=claim))

    @property
    def recorded(self) -> Record:
        """The record of its data."""
        return record.load(self.data)

    @property
    def stands(self) -> State:
        """What the supervisor reads."""
        return standing.read(self.run).state
