"""How a member stands to its cluster: what Patroni's process tells the supervisor and the command line. IO: one file.

The file lies in the private folder on tmpfs (`POSTGRES_RUN`), so it ends with the container.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

FILE = "standing.json"
ALLOWANCE = "may-lead"
"""The file by which an operator allows this member to lead; its content is not read."""
ALLOWANCE_SECONDS = 600.0
"""How long an operator's word holds, by the file's age. A member that has not led by then is asked for again."""


class State(StrEnum):
    """How a member stands."""

    WHOLE = "whole"
    """Nothing says that its data differ from the leader's."""
    WAITING = "waiting"
    """Nobody leads, and this member needs a person's word, or others: Consul does not remember the cluster, and not
    every member has said what it has; or only members that are not there may lead.
    """
    FORK = "fork"
    """It has what the leader's history does not have, or is being made a copy of the leader because of that."""
    BEHIND = "behind"
    """The leader has removed log that it lacks, or it is being made a copy of the leader because of that."""
    FOREIGN = "foreign"
    """Its data are of another database than the cluster's; PostgreSQL is down."""


NO_READERS = frozenset({State.FORK, State.BEHIND, State.FOREIGN})
"""States of members whose rows no reader is to see: they are not the cluster's, or old and not getting newer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The file's content."""

    state: State = State.WHOLE
    reason: str = ""


def write(run: Path, standing: Standing) -> None:
    """Replaces the file in the folder `run`. OSError where that is refused."""
    new = run / f"{FILE}.new"
    new.write_text(json.dumps(asdict(standing)), encoding="utf-8")
    new.replace(run / FILE)


def read(run: Path) -> Standing:
    """The file's content; a whole member where there is none."""
    try:
        tree = json.loads((run / FILE).read_text(encoding="utf-8"))
        return Standing(state=State(tree["state"]), reason=str(tree["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Standing()
