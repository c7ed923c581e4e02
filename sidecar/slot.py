"""Which slot this CVM asks for. Pure.

A CVM whose owner set MESH_PEER_ID asks for that slot and no other. Any other CVM claims the slot that this boot holds,
and gives it up for whichever slot of its group is free once the slot is lost for good.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The slot to ask a coordinator for."""

    pinned: str | None = None
    """MESH_PEER_ID."""
    held: str | None = None
    """The peer ID that this boot was admitted as."""
    evicted: str | None = None
    """The peer ID that this boot held until the manifest had it no more; None: it holds one, or had none."""
    taken_since: float | None = None
    """Unix seconds: since when another CVM is said to hold `held`; None: nobody said so since the last admission."""

    @property
    def peer_id(self) -> str | None:
        """The peer ID to ask for; None leaves it to the coordinator, which proposes one."""
        return self.pinned or self.held

    @property
    def advice(self) -> str:
        """What an operator has to know of a refusal beyond what the coordinator says; empty in most cases."""
        if self.pinned is None:
            return ""
        return f"MESH_PEER_ID is {self.pinned}, so this CVM asks for no other slot; unset it to take any of the group"

    def admitted(self, peer_id: str) -> Wish:
        """After an admission as `peer_id`."""
        return replace(self, held=peer_id, evicted=None, taken_since=None)

    def taken(self, now: float, lease_seconds: float) -> Wish:
        """After a refusal because another CVM holds the slot. For longer than a lease: then it is no leftover of this
        CVM's own earlier boot, which would have lapsed.
        """
        since = now if self.taken_since is None else self.taken_since
        if now - since > lease_seconds:
            return self.gone()
        return replace(self, taken_since=since)

    def gone(self) -> Wish:
        """The slot that this boot holds is another CVM's: any will do."""
        return replace(self, held=None, taken_since=None)

    def dropped(self) -> Wish:
        """After a refusal because the manifest has no such slot (any more)."""
        return replace(self.gone(), evicted=self.held or self.evicted)

    def eviction(self, reason: str) -> str | None:
        """What an owner has to hear first where no slot is free, for which the coordinator gives `reason`: that the
        manifest took this CVM's away. None where it did not.
        """
        if self.evicted is None:
            return None
        return (
            f"EVICTED: the manifest in force has no slot {self.evicted} any more, which this CVM held; and of the "
            f"others of its group none is free ({reason})"
        )
