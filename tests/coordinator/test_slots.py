"""Who holds which slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.slots import (
    Holder,
    Node,
    NodeState,
    Taken,
    all_trust,
    claim,
    dead,
    doubled,
    lapsed,
    left_behind,
    newcomers_wait,
    propose,
)

ALIVE = Node(state=NodeState.ALIVE, since=0.0)
NOBODY: dict[str, Node] = {}


def holder(peer_id: str = "api-0", instance: str = "i0", key: str = "k0", at: float = 100.0, **more: Any) -> Holder:
    """A holder that was admitted at `at`."""
    return Holder(
        peer_id=peer_id, group="api", instance_id=instance, boot_key=key, leaf_key="l", compose_hash="c",
        renewed_at=at, **more
    )  # fmt: skip


def failed(since: float) -> Node:
    """A node that gossip lost at `since`."""
    return Node(state=NodeState.FAILED, since=since)


def test_of_two_holders_of_one_key_the_later_is_named() -> None:
    """Whoever wrote first keeps the key; a released slot claims none."""
    slots = {name: holder(name, name, key) for name, key in (("a", "k"), ("b", "k"), ("c", "other"))}
    assert [each.peer_id for each in doubled(slots, {"a": 7, "b": 5, "c": 6})] == ["a"]
    assert doubled(slots | {"b": replace(slots["b"], released=True)}, {"a": 7, "b": 5}) == ()


def test_a_free_slot_is_given() -> None:
    """Nobody holds it: granted."""
    wanted = holder()
    assert claim({}, wanted, NOBODY) == wanted


def test_the_same_boot_is_granted_again_at_once() -> None:
    """Asking twice from one boot is no second holder."""
    first = holder(at=100.0, joined=True)
    again = claim({"api-0": first}, holder(at=101.0), {"api-0": ALIVE})
    assert isinstance(again, Holder)
    assert again.joined
    assert again.renewed_at == 101.0


@pytest.mark.parametrize("instance", ["i0", "i9"])
def test_a_second_holder_is_refused_while_the_first_lives(instance: str) -> None:
    """Another boot, of the same instance or of another, does not get a slot whose holder renews its lease."""
    refused = claim({"api-0": holder(at=100.0)}, holder(instance=instance, key="k9", at=114.0), NOBODY)
    assert isinstance(refused, Taken)
    assert "held by another boot" in refused.reason


def test_an_alive_node_keeps_the_slot_without_renewals() -> None:
    """With all coordinators away nobody renews; gossip says that the holder lives."""
    slots = {"api-0": holder(at=100.0, joined=True)}
    assert isinstance(claim(slots, holder(key="k9", at=10_000.0), {"api-0": ALIVE}), Taken)


def test_a_lapsed_lease_frees_the_slot_of_a_cvm_that_never_joined() -> None:
    """Lease gone, no node: another boot gets it."""
    wanted = holder(key="k9", at=115.1)
    assert claim({"api-0": holder(at=100.0)}, wanted, NOBODY) == wanted


def test_a_node_that_joined_and_failed_frees_the_slot_at_once() -> None:
    """Gossip's verdict is enough, the lease need not lapse."""
    wanted = holder(key="k9", at=103.0)
    assert claim({"api-0": holder(at=100.0, joined=True)}, wanted, {"api-0": failed(102.0)}) == wanted


def test_a_renewal_after_the_failure_keeps_the_slot() -> None:
    """Only the agent is gone: the CVM itself has renewed since."""
    slots = {"api-0": holder(at=102.5, joined=True)}
    assert isinstance(claim(slots, holder(key="k9", at=103.0), {"api-0": failed(102.0)}), Taken)


def test_a_failed_node_from_an_earlier_boot_says_nothing_about_a_new_holder() -> None:
    """A holder that has not joined yet is judged by its lease."""
    assert not dead(holder(at=103.0), failed(90.0), 104.0)


def test_one_instance_holds_one_slot() -> None:
    """An instance that lives in one slot gets no other, from whichever boot."""
    slots = {"api-0": holder()}
    for key in ("k0", "k9"):
        refused = claim(slots, holder(peer_id="api-1", key=key, at=101.0), NOBODY)
        assert isinstance(refused, Taken)
        assert "already holds api-0" in refused.reason


def test_a_slot_left_behind_is_named() -> None:
    """When an instance moves, the slot that it had is to be freed, others and the new one are not."""
    old, new = holder(), holder(peer_id="api-1", key="k9")
    slots = {"api-0": old, "api-1": new, "api-2": holder(peer_id="api-2", instance="i2")}
    assert left_behind(slots, new) == (old,)
    assert left_behind({"api-0": replace(old, released=True)}, new) == ()


def test_a_released_slot_is_free() -> None:
    """After a clean stop another boot, and the instance elsewhere, are granted."""
    slots = {"api-0": holder(released=True)}
    assert isinstance(claim(slots, holder(key="k9", at=100.1), NOBODY), Holder)
    assert isinstance(claim(slots, holder(peer_id="api-1", key="k9", at=100.1), NOBODY), Holder)


def test_lapsed_is_stricter_than_dead() -> None:
    """A failed node alone does not make us forget a holder; a lapsed lease without a living node does."""
    joined = holder(at=100.0, joined=True)
    assert dead(joined, failed(102.0), 103.0)
    assert not lapsed(joined, failed(102.0), 103.0)
    assert lapsed(joined, failed(102.0), 116.0)
    assert not lapsed(joined, ALIVE, 1000.0)
    assert not lapsed(replace(joined, released=True), None, 1000.0)


def test_an_instance_is_proposed_its_old_slot() -> None:
    """The slot that it has or had comes first."""
    slots = {"api-1": holder(peer_id="api-1", instance="i1", released=True)}
    assert propose(("api-0", "api-1"), slots, "i1", NOBODY, 100.0) == "api-1"


def test_a_new_instance_is_proposed_an_unused_slot_before_a_dead_one() -> None:
    """Old slots are kept for their instances while there are others."""
    slots = {"api-0": holder(released=True)}
    assert propose(("api-0", "api-1"), slots, "new", NOBODY, 100.0) == "api-1"
    assert propose(("api-0",), slots, "new", NOBODY, 100.0) == "api-0"


def test_nothing_is_proposed_when_all_live() -> None:
    """No slot: None."""
    assert propose(("api-0",), {"api-0": holder()}, "new", NOBODY, 101.0) is None


PEERS = ("api-0", "api-1", "api-2")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PEERS),
            st.sampled_from(["i0", "i1", "i2"]),
            st.sampled_from(["k0", "k1", "k2", "k3"]),
            st.floats(0.0, 6.0),
        ),
        max_size=30,
    )
)
def test_no_instance_and_no_slot_has_two_living_holders(claims: list[tuple[str, str, str, float]]) -> None:
    """Whatever is asked in whatever order, living holders have distinct instances and never lose their slot to
    another.
    """
    slots: dict[str, Holder] = {}
    now = 100.0
    for peer_id, instance, key, pause in claims:
        now += pause
        before = slots.get(peer_id)
        granted = claim(slots, holder(peer_id=peer_id, instance=instance, key=key, at=now), NOBODY)
        if isinstance(granted, Taken):
            continue
        if before is not None and (before.boot_key, before.instance_id) != (key, instance):
            assert dead(before, None, now)
        slots[peer_id] = granted
        living = [each.instance_id for each in slots.values() if not dead(each, None, now)]
        assert len(living) == len(set(living))


@pytest.mark.parametrize(
    ("slots", "waiting", "waits"),
    [
        pytest.param({}, [], True, id="nobody is known"),
        pytest.param({}, ["i0"], True, id="one of two asks: the other may hold a slot"),
        pytest.param({}, ["i0", "i1"], False, id="all CVMs of the group ask: none of them holds a slot"),
        pytest.param({}, ["i0", "i0"], True, id="an instance counts once"),
        pytest.param({"api-1": holder("api-1", "i1", at=101.0)}, ["i0"], False, id="a holder came and one asks"),
        pytest.param({"api-1": holder("api-1", "i1", at=101.0)}, ["i1"], True, id="a holder is no newcomer"),
        pytest.param({"api-1": holder("api-1", "i1", released=True)}, ["i0"], True, id="a released slot is free"),
        pytest.param({}, ["i0", "i1", "i2"], False, id="more CVMs than slots"),
    ],
)
def test_newcomers_wait_until_nobody_can_hold_a_free_slot(
    slots: dict[str, Holder], waiting: list[str], waits: bool
) -> None:
    """CVMs that run come first for a lease, of which 11 s are left, unless all of the group are accounted for."""
    found = newcomers_wait(("api-0", "api-1"), slots, NOBODY, waiting, 11.0, 104.0)
    assert found == (11.0 if waits else 0.0)
    assert newcomers_wait(("api-0", "api-1"), slots, NOBODY, waiting, 0.0, 104.0) == 0.0, "a lease has passed"


def test_all_trust_a_manifest_once_each_holder_that_lives_does() -> None:
    """Who is gone, or gave its slot back, is not waited for; a boot that asks again trusts what it did before."""
    new, old = holder("api-0", trusts="new"), holder("api-1", "i1", "k1", trusts="old")
    assert all_trust({}, NOBODY, "new", 100.0)
    assert all_trust({"api-0": new}, NOBODY, "new", 100.0)
    both = {"api-0": new, "api-1": old}
    assert not all_trust(both, NOBODY, "new", 100.0)
    assert not all_trust(both, NOBODY, "old", 100.0)
    assert not all_trust(both, {"api-1": ALIVE}, "new", 1000.0), "gossip says that it lives"
    assert all_trust(both, NOBODY, "new", 116.0), "its lease has lapsed"
    assert all_trust(both | {"api-1": replace(old, released=True)}, NOBODY, "new", 100.0)
    again = claim(both, holder("api-1", "i1", "k1", at=101.0, trusts="new"), NOBODY)
    assert isinstance(again, Holder)
    assert again.trusts == "old"
