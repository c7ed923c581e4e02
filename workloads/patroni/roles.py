"""What a member publishes in Consul: one service, its role as a tag, and two checks. Pure.

The member check says that Patroni may run here, the database check that PostgreSQL answers: both decide whether the
mesh lists the member. The leader key hangs on neither. `writes` orders the calls so that bad news is told first and
good news last.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

MASTER = "master"
REPLICA = "replica"
_PRIMARY = frozenset({"primary", "master", "promoted"})
_FOLLOWING = frozenset({"replica", "standby_leader", "sync_standby", "quorum_standby"})
PASSING = "passing"
CRITICAL = "critical"
MEMBER_TTL = "30s"
"""Of the member check: it runs out only where the supervisor hangs; a dead one takes its member along."""
DATABASE_TTL = "30s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the sidecar registered this member: what the workload's own registration has to repeat."""

    service_id: str
    service: str
    address: str
    port: int

    @property
    def member_check(self) -> str:
        """ID of the member check."""
        return f"{self.service_id}:member"

    @property
    def database_check(self) -> str:
        """ID of the database check."""
        return f"{self.service_id}:database"


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """What the others are to know."""

    member: bool = False
    """Patroni may run."""
    database: bool = False
    """PostgreSQL answers."""
    role: str | None = None
    """The tag; None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One call to the agent: a registration, or the status of a check."""

    path: str
    body: dict[str, Any]


def announced(action: str, role: str) -> str | None:
    """The role that a callback of Patroni announces, as a tag; None when it stops or is none that is published."""
    if action == "on_stop":
        return None
    return MASTER if role in _PRIMARY else REPLICA if role in _FOLLOWING else None


def confirmed(claim: str | None, in_recovery: bool | None) -> str | None:
    """The tag: what Patroni announced, once the database itself is in that state.

    Patroni announces a promotion when it asks for it. A master that still replays would refuse its first writers: until
    it has stopped, it is the replica that it was.
    """
    if claim is None or in_recovery is None:
        return None
    if in_recovery:
        return REPLICA
    return MASTER if claim == MASTER else None


def outdated(claim: str | None, tag: str | None) -> bool:
    """Whether `tag` has to go at once, before the database was asked: nothing says it any more, or it is no leader."""
    return tag is not None and (claim is None or (tag == MASTER and claim != MASTER))


def place(service: Any) -> Place:
    """The place out of the agent's answer for the service, as the sidecar registered it.

    ValueError when it is not what the mesh registers.
    """
    try:
        return Place(
            service_id=str(service["ID"]),
            service=str(service["Service"]),
            address=str(service["Address"]),
            port=int(service["Port"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the sidecar's registration cannot be read: {error!r}") from error


def own_index(entries: Any, peer_id: str) -> int | None:
    """The index of the leader key while this member holds it, by the agent's answer for it; None: it is not ours."""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("Session"):
            try:
                if base64.b64decode(entry["Value"]).decode() == peer_id:
                    return int(entry["ModifyIndex"])
            except (KeyError, TypeError, ValueError):
                continue
    return None


def stands(service: Any, public: Public) -> bool:
    """Whether the agent's answer for the service is what `registration` wrote for `public`.

    The sidecar looks whether a service is there before it writes its placeholder; after a restart of the agent, ours
    may come in between.
    """
    if not isinstance(service, dict):
        return False
    tags = [public.role] if public.role else []
    return service.get("Tags") == tags and sorted(service.get("Meta") or {}) == ["owner", "peer-id", "registration"]


def disturbed(checks: Any, where: Place) -> list[str]:
    """IDs of our checks that the servers have as another service's, or not at all, by the answer of
    `/v1/health/node/<name>`. An answer of another shape says nothing.

    Consul lets a token that may write any service register it on another's node, with a check of any ID: that one takes
    the place of ours, which then says nothing about our service any more. Servers that lost what they knew have none of
    them, and the agent looks for that once in a minute or two.
    """
    if not isinstance(checks, list):
        return []
    owners = {where.member_check: where.service_id, where.database_check: where.service_id}
    found = {check.get("CheckID"): check.get("ServiceID") for check in checks if isinstance(check, dict)}
    return sorted(check_id for check_id, owner in owners.items() if found.get(check_id) != owner)


def registration(where: Place, public: Public, peer_id: str, number: int = 0) -> dict[str, Any]:
    """The whole service. The agent keeps the status of a check that it knows; the ones in here are for a new one.

    An agent whose registration the servers refused (a token that they do not know yet) counts it as done until it looks
    at everything, once in a minute or two; the same registration again changes nothing (Consul's agent/local/state.go,
    `syncService`, `setServiceStateLocked`). So each one that is to repair something has another `number`.
    """
    database = PASSING if public.database else CRITICAL
    notes = f"registration {number}"
    return {
        "ID": where.service_id,
        "Name": where.service,
        "Address": where.address,
        "Port": where.port,
        "Tags": [public.role] if public.role else [],
        "Meta": {"peer-id": peer_id, "owner": "workload", "registration": str(number)},
        "EnableTagOverride": False,
        "Checks": [
            {
                "CheckID": where.member_check,
                "Name": "Patroni may run",
                "Notes": notes,
                "TTL": MEMBER_TTL,
                "Status": PASSING if public.member else CRITICAL,
            },
            {
                "CheckID": where.database_check,
                "Name": "PostgreSQL answers",
                "Notes": notes,
                "TTL": DATABASE_TTL,
                "Status": database,
            },
        ],
    }


def writes(where: Place, peer_id: str, known: Public | None, wanted: Public, number: int = 0) -> tuple[Write, ...]:
    """The calls that bring the agent from `known` (None: it may hold anything) to `wanted`, in order. `number` is the
    registration's.
    """
    checks = (
        (where.member_check, None if known is None else known.member, wanted.member),
        (where.database_check, None if known is None else known.database, wanted.database),
    )
    changed = [(check, now) for check, before, now in checks if before is not now]
    bad = [status(check, healthy=False) for check, now in changed if not now]
    good = [status(check, healthy=True) for check, now in changed if now]
    register = Write(path="/v1/agent/service/register", body=registration(where, wanted, peer_id, number))
    if known is None:
        # The checks may not exist yet.
        return (register, *bad, *good)
    return (*bad, *((register,) if known.role != wanted.role else ()), *good)


def status(check: str, *, healthy: bool) -> Write:
    """The call that sets a check."""
    return Write(path=f"/v1/agent/check/update/{check}", body={"Status": PASSING if healthy else CRITICAL})


def beats(where: Place, wanted: Public) -> tuple[Write, ...]:
    """The calls that keep the passing checks from running out."""
    pairs = ((where.member_check, wanted.member), (where.database_check, wanted.database))
    return tuple(status(check, healthy=True) for check, healthy in pairs if healthy)
