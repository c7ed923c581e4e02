"""When a WireGuard handshake is started, and by whom; what the device should have for a peer. Pure.

WireGuard starts no handshake sooner than 5 s after its last, and two that cross on the way fail both. So nothing is
started before a probe has shown that the other end is there, and the end with the smaller key goes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.link import REKEY_AFTER, Health, handshake_age, health
from peer.path import LATE_AFTER
from peer.spec import KEEPALIVE, Operation, Peer, PeerState, SetPeer, WantedPeer

SECOND_STARTS_AFTER = 0.3
"""Seconds that the end with the greater key leaves the handshake to the other one."""
PUSH_EVERY = 6.0
"""Seconds between pushes for a handshake; WireGuard itself sends none sooner than 5 s after the last."""
EARLY = REKEY_AFTER - 5.0
"""Seconds: of two sessions closer together than this, the second was not a renewal of the first (REKEY_AFTER_TIME, less
than what the two clocks and a look at the device differ by). One end has lost the first: it has restarted."""
AWAITED_FOR = 10.0
"""Seconds that a handshake is awaited with attention once a way works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One peer as its path is now."""

    peer: Peer
    reachable: bool
    """Whether a way to it works."""
    endpoint: str | None
    """Where the tunnel should go; None leaves it."""
    contact: bool
    """Whether it was ever heard: it knows us."""
    up_at: float
    """Since when a way works, monotonic; infinite before."""
    pushed_at: float
    """When a handshake was last started or pushed, monotonic."""


def restarted(before: PeerState | None, after: PeerState, silent: float) -> bool:
    """Whether the peer seems to have restarted between two looks at the device: it has a new session, sooner than
    WireGuard renews one, or after `silent` seconds in which it did not answer. False for its first session.
    """
    if before is None or before.latest_handshake <= 0 or after.latest_handshake <= before.latest_handshake:
        return False
    return after.latest_handshake - before.latest_handshake < EARLY or silent > LATE_AFTER


def fresh(device: PeerState | None, now_unix: float) -> bool:
    """Whether the peer has a session that still carries packets."""
    if device is None:
        return False
    return health(handshake_age(device.latest_handshake, now_unix)) in (Health.UP, Health.STALE)


def wanted(view: View, device: PeerState | None, own_key: str, now: float, now_unix: float) -> WantedPeer:
    """What the device should have. Its keep-alive going on is what starts the first handshake."""
    # A peer gets its address with the first sign of life. Before, `wireguard-go` would spend the one handshake that it
    # starts in 5 s on an application's packet that has nowhere to go.
    known = view.contact or (device is not None and bool(device.allowed))
    return WantedPeer(
        public_key=view.peer.public_key,
        allowed=(f"{view.peer.address}/32",) if known else (),
        endpoint=view.endpoint,
        keepalive=KEEPALIVE if _keeps_alive(view, device, own_key, now, now_unix) else 0,
    )


def push(view: View, device: PeerState | None, own_key: str, now: float, now_unix: float) -> tuple[Operation, ...]:
    """Turns the keep-alive off and on, which starts a handshake, where one is overdue although a way works."""
    if device is None or not device.keepalive or not view.reachable or fresh(device, now_unix):
        return ()
    if now - view.pushed_at < PUSH_EVERY or not _our_turn(view, own_key, now):
        return ()
    key = view.peer.public_key
    return (SetPeer(public_key=key, keepalive=0), SetPeer(public_key=key, keepalive=KEEPALIVE))


def expecting(view: View, device: PeerState | None, now: float, now_unix: float) -> bool:
    """Whether a handshake may come any moment."""
    return view.reachable and now - view.up_at < AWAITED_FOR and not fresh(device, now_unix)


def _keeps_alive(view: View, device: PeerState | None, own_key: str, now: float, now_unix: float) -> bool:
    if device is not None and (device.keepalive or fresh(device, now_unix)):
        return True
    return view.reachable and _our_turn(view, own_key, now)


def _our_turn(view: View, own_key: str, now: float) -> bool:
    return own_key < view.peer.public_key or now - view.up_at > SECOND_STARTS_AFTER
