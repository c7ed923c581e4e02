"""Who may call what, as a plan prints it: per group what it may call, and who may call it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshctl.plan_snapshot import Snapshot
from topology.manifest import EVERYBODY
from topology.model import COORDINATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """One group's."""

    group: str
    may_call: tuple[str, ...]
    """Names of routes, sorted; the names of a route with `members` as one, `patroni-*`."""
    called_by: dict[str, tuple[str, ...]]
    """Backend to the groups that may call it; EVERYBODY alone is all of them."""

    def row(self) -> tuple[str, str, str]:
        """The cells of a table: group, may call, may be called by."""
        told = {backend: names_of(callers) for backend, callers in self.called_by.items()}
        if len(set(told.values())) == 1:
            by = next(iter(told.values()))
        else:
            by = "; ".join(f"{backend}: {who}" for backend, who in told.items())
        return self.group, ", ".join(self.may_call) or "nothing", by or "nobody: no backend"


def who_calls(snapshot: Snapshot) -> tuple[Calls, ...]:
    """One entry a workload group, in the order of the groups. Of a snapshot that knows no routes: nothing."""
    if snapshot.backends is None or snapshot.routes is None:
        return ()
    names = dict.fromkeys(peer["group"] for peer in snapshot.peers.values() if peer["group"] != COORDINATOR)
    callers = {name: tuple(facts["callers"]) for name, facts in snapshot.backends.items()}
    return tuple(
        Calls(
            group=name,
            may_call=tuple(
                sorted(
                    {
                        route if facts["peer"] is None else f"{route.rpartition('-')[0]}-*"
                        for route, facts in snapshot.routes.items()
                        if {name, EVERYBODY} & set(callers[f"{facts['group']}/{facts['backend']}"])
                    }
                )
            ),
            called_by={
                backend.partition("/")[2]: found
                for backend, found in callers.items()
                if backend.partition("/")[0] == name
            },
        )
        for name in names
    )


def names_of(callers: Sequence[str]) -> str:
    """A backend's callers in words."""
    if EVERYBODY in callers:
        return "everybody"
    return ", ".join(callers) or "nobody"
