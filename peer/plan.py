"""From what a device is to what it should be: ordered operations. Pure.

Every prefix of a plan leaves the device safe: networks are taken from a peer before another one gets them, so at no
step do two peers' packets count as the same sender, and a peer that stays is never removed.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence

from peer.spec import DeviceState, LinkError, Operation, PeerState, RemovePeer, SetPeer, WantedPeer, check_key


def check_wanted(wanted: Sequence[WantedPeer]) -> None:
    """LinkError when two peers share a key or their networks overlap: WireGuard would silently move the network."""
    owners: list[tuple[ipaddress.IPv4Network, str]] = []
    seen: set[str] = set()
    for peer in wanted:
        if check_key(peer.public_key) in seen:
            raise LinkError(f"public key {peer.public_key!r} is wanted twice; each peer has a key of its own")
        seen.add(peer.public_key)
        for text in peer.allowed:
            try:
                owners.append((ipaddress.IPv4Network(text), peer.public_key))
            except ValueError as error:
                raise LinkError(f"{text!r} of peer {peer.public_key!r} is not an IPv4 network: {error}") from error
    # Networks either nest or are apart, so after sorting an overlap shows between a network and the widest before it.
    owners.sort(key=lambda owner: (int(owner[0].network_address), owner[0].prefixlen))
    for (one, key), (other, other_key) in itertools.pairwise(owners):
        if one.overlaps(other):
            raise LinkError(
                f"{other} of peer {other_key!r} overlaps {one} of peer {key!r}; give each peer its own address"
            )


def make_plan(state: DeviceState, wanted: Sequence[WantedPeer]) -> tuple[Operation, ...]:
    """The operations that lead from `state` to `wanted`; empty when there is nothing to do. LinkError on overlaps."""
    check_wanted(wanted)
    goal = {peer.public_key: peer for peer in wanted}
    removals = [RemovePeer(public_key=key) for key in sorted(state.peers) if key not in goal]
    releases = [
        SetPeer(public_key=key, allowed=tuple(sorted(set(state.peers[key].allowed) & set(peer.allowed))))
        for key, peer in sorted(goal.items())
        if key in state.peers and set(state.peers[key].allowed) - set(peer.allowed)
    ]
    settings = [_change(state.peers.get(key), peer) for key, peer in sorted(goal.items())]
    return (*removals, *releases, *(change for change in settings if change is not None))


def _change(now: PeerState | None, peer: WantedPeer) -> SetPeer | None:
    if now is None:
        return SetPeer(
            public_key=peer.public_key, allowed=peer.allowed, endpoint=peer.endpoint, keepalive=peer.keepalive
        )
    allowed = peer.allowed if set(peer.allowed) - set(now.allowed) else None
    endpoint = peer.endpoint if peer.endpoint != now.endpoint else None
    keepalive = peer.keepalive if peer.keepalive != now.keepalive else None
    if allowed is None and endpoint is None and keepalive is None:
        return None
    return SetPeer(public_key=peer.public_key, allowed=allowed, endpoint=endpoint, keepalive=keepalive)
