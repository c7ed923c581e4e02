"""What programs may dial beside the routes' names, as a plan prints it: per group its egresses. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from meshctl.plan_snapshot import Facts, Snapshot
from topology.egress import MESH
from topology.model import COORDINATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """One loopback address in each CVM of a group."""

    group: str
    name: str
    listen: str
    """`ip:port`."""
    mode: str
    """`mesh` or `web`: what is spoken behind it."""
    leads_to: str

    def row(self) -> tuple[str, str, str, str]:
        """The cells of a table."""
        return f"{self.group}/{self.name}", self.listen, self.mode, self.leads_to


def dialled(snapshot: Snapshot) -> tuple[Dialled, ...]:
    """By group. Of a snapshot that knows no rights: nothing."""
    groups = dict.fromkeys(peer["group"] for peer in snapshot.peers.values() if peer["group"] != COORDINATOR)
    found = [_dialled(name, facts) for name, facts in (snapshot.egress or {}).items()]
    return tuple(it for group in groups for it in found if it.group == group)


def destination(facts: Facts) -> str:
    """Where an egress leads, in words, with who has to be there."""
    where = str(facts["remote"])
    if facts["tls"] == MESH:
        return where
    named = f" as {facts['sni']}" if facts["sni"] else ""
    return f"{where}{named}, " + (f"certificates {facts['ca']}" if facts["ca"] else "any public authority")


def _dialled(name: str, facts: Facts) -> Dialled:
    group, _, own = name.partition("/")
    return Dialled(
        group=group, name=own, listen=str(facts["listen"]), mode=str(facts["tls"]), leads_to=destination(facts)
    )
