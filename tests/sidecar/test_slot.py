"""Which slot is asked for after what was answered."""

from __future__ import annotations

import pytest

from sidecar.slot import Wish

LEASE = 15.0


@pytest.mark.parametrize(
    ("wish", "peer_id"),
    [
        (Wish(), None),
        (Wish(held="api-1"), "api-1"),
        (Wish(pinned="api-0"), "api-0"),
        (Wish(pinned="api-0", held="api-1"), "api-0"),
        (Wish(held="api-1").gone(), None),
        (Wish(pinned="api-0").gone(), "api-0"),
        (Wish(held="api-1").dropped(), None),
        (Wish().admitted("api-2"), "api-2"),
        (Wish(held="api-1").taken(100.0, LEASE), "api-1"),
        (Wish(held="api-1").taken(100.0, LEASE).taken(115.0, LEASE), "api-1"),
        (Wish(held="api-1").taken(100.0, LEASE).taken(115.1, LEASE), None),
        (Wish(pinned="api-0", held="api-0").taken(100.0, LEASE).taken(200.0, LEASE), "api-0"),
        (Wish(held="api-1").taken(100.0, LEASE).admitted("api-1").taken(200.0, LEASE), "api-1"),
    ],
)
def test_the_slot_that_is_asked_for(wish: Wish, peer_id: str | None) -> None:
    """The owner's, else the held one until it is gone or was another's for longer than a lease, else any."""
    assert wish.peer_id == peer_id


def test_an_eviction_is_remembered_until_there_is_a_slot() -> None:
    """A slot that another CVM took is none."""
    evicted = Wish(held="api-1").dropped()
    assert "has no slot api-1 any more" in (evicted.dropped().taken(100.0, LEASE).eviction("full") or "")
    assert evicted.admitted("api-0").eviction("full") is None
    assert Wish(held="api-1").gone().eviction("full") is None


def test_only_the_owners_choice_needs_advice() -> None:
    """Whoever set MESH_PEER_ID is told that it is why no other slot is taken."""
    assert Wish(held="api-1").advice == ""
    assert "unset it" in Wish(pinned="api-0").advice
