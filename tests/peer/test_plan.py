"""Plans for WireGuard devices."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.plan import check_wanted, make_plan
from peer.spec import DeviceState, LinkError, Operation, PeerState, RemovePeer, SetPeer, WantedPeer

KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(6)]
EMPTY = DeviceState(public_key="x", listen_port=1)


def _apply(state: DeviceState, operation: Operation) -> DeviceState:
    """What WireGuard does, without its silent move of a network from one peer to another."""
    peers = dict(state.peers)
    if isinstance(operation, RemovePeer):
        del peers[operation.public_key]
        return replace(state, peers=peers)
    now = peers.get(operation.public_key) or PeerState(
        public_key=operation.public_key, endpoint=None, latest_handshake=0, rx=0, tx=0, allowed=(), keepalive=0
    )
    peers[operation.public_key] = replace(
        now,
        allowed=now.allowed if operation.allowed is None else operation.allowed,
        endpoint=operation.endpoint or now.endpoint,
        keepalive=now.keepalive if operation.keepalive is None else operation.keepalive,
    )
    return replace(state, peers=peers)


@st.composite
def wanted_sets(draw: st.DrawFn) -> list[WantedPeer]:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    hosts = draw(st.permutations(range(1, 20)))
    return [
        WantedPeer(
            public_key=key,
            allowed=tuple(f"100.96.0.{hosts[3 * number + each]}/32" for each in range(draw(st.integers(0, 3)))),
            endpoint=draw(st.sampled_from([None, "198.18.1.1:51820", "198.18.1.2:51820"])),
            keepalive=draw(st.sampled_from([0, 25])),
        )
        for number, key in enumerate(keys)
    ]


@given(before=wanted_sets(), after=wanted_sets())
def test_plans_arrive_safely(before: list[WantedPeer], after: list[WantedPeer]) -> None:
    """From any device to any other: no network is with two peers at any step, no peer that stays is removed, and a
    second plan is empty."""
    state = EMPTY
    for operation in make_plan(state, before):
        state = _apply(state, operation)
    plan = make_plan(state, after)
    staying = {peer.public_key for peer in before} & {peer.public_key for peer in after}
    for operation in plan:
        assert not (isinstance(operation, RemovePeer) and operation.public_key in staying)
        state = _apply(state, operation)
        held = [network for peer in state.peers.values() for network in peer.allowed]
        assert len(held) == len(set(held))
    assert set(state.peers) == {peer.public_key for peer in after}
    assert make_plan(state, after) == ()
    for peer in after:
        assert set(state.peers[peer.public_key].allowed) == set(peer.allowed)
        assert state.peers[peer.public_key].keepalive == peer.keepalive


def test_an_endpoint_not_given_is_left_alone() -> None:
    """What the device learned from a handshake stays."""
    peer = WantedPeer(public_key=KEYS[0], allowed=("100.96.0.1/32",), keepalive=25)
    known = PeerState(
        public_key=KEYS[0],
        endpoint="1.2.3.4:5",
        latest_handshake=1,
        rx=0,
        tx=0,
        allowed=("100.96.0.1/32",),
        keepalive=25,
    )
    assert make_plan(replace(EMPTY, peers={KEYS[0]: known}), [peer]) == ()
    moved = replace(peer, endpoint="5.6.7.8:9")
    assert make_plan(replace(EMPTY, peers={KEYS[0]: known}), [moved]) == (
        SetPeer(public_key=KEYS[0], endpoint="5.6.7.8:9"),
    )


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (("100.96.0.1/32",), ("100.96.0.1/32",), "overlaps"),
        (("100.96.0.0/24",), ("100.96.0.77/32",), "overlaps"),
        (("100.96.0.1/24",), (), "not an IPv4 network"),
        (("fd00::/8",), (), "not an IPv4 network"),
    ],
)
def test_bad_networks_are_refused(one: tuple[str, ...], other: tuple[str, ...], message: str) -> None:
    """Overlaps would let one peer send as another."""
    peers = [WantedPeer(public_key=KEYS[0], allowed=one), WantedPeer(public_key=KEYS[1], allowed=other)]
    with pytest.raises(LinkError, match=message):
        check_wanted(peers)


def test_a_key_cannot_be_two_peers() -> None:
    """One key, one peer."""
    with pytest.raises(LinkError, match="wanted twice"):
        check_wanted([WantedPeer(public_key=KEYS[0], allowed=())] * 2)
