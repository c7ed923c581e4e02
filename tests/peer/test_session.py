"""Who starts a handshake, and when."""

from __future__ import annotations

import base64
import math
from dataclasses import replace

import pytest

from peer import session
from peer.session import View
from peer.spec import Peer, PeerState, SetPeer

SMALL, GREAT = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 200))
NOW, NOW_UNIX = 1000.0, 1_700_000_000.0
DEVICE = PeerState(public_key=GREAT, endpoint="1.2.3.4:5", latest_handshake=0.0, rx=0, tx=0, allowed=(), keepalive=0)
MET = replace(DEVICE, latest_handshake=NOW_UNIX - 10, keepalive=25)


def _view(key: str = GREAT, **changes: object) -> View:
    view = View(
        peer=Peer(public_key=key, address="100.96.0.2"),
        reachable=True,
        endpoint="1.2.3.4:5",
        contact=True,
        up_at=NOW,
        pushed_at=-math.inf,
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def test_the_smaller_key_goes_first() -> None:
    """Two handshakes that cross fail both: one end starts at once, the other one a little later."""
    assert SMALL < GREAT
    assert session.wanted(_view(GREAT), DEVICE, SMALL, NOW, NOW_UNIX).keepalive
    assert not session.wanted(_view(SMALL), DEVICE, GREAT, NOW, NOW_UNIX).keepalive
    assert session.wanted(_view(SMALL), DEVICE, GREAT, NOW + 0.31, NOW_UNIX).keepalive


def test_nothing_starts_without_a_way() -> None:
    """A handshake into the void costs the one that WireGuard allows in 5 s."""
    lost = _view(reachable=False, endpoint=None, contact=False, up_at=math.inf)
    assert session.wanted(lost, DEVICE, SMALL, NOW, NOW_UNIX).keepalive == 0
    assert session.push(lost, MET, SMALL, NOW, NOW_UNIX) == ()


def test_an_address_comes_with_the_first_sign_of_life() -> None:
    """And stays, also while the peer is away."""
    silent = _view(contact=False)
    assert session.wanted(silent, DEVICE, SMALL, NOW, NOW_UNIX).allowed == ()
    assert session.wanted(_view(), DEVICE, SMALL, NOW, NOW_UNIX).allowed == ("100.96.0.2/32",)
    kept = replace(DEVICE, allowed=("100.96.0.2/32",))
    assert session.wanted(silent, kept, SMALL, NOW, NOW_UNIX).allowed == ("100.96.0.2/32",)


def test_a_session_is_kept_alive_whoever_began() -> None:
    """Both ends keep it fresh, and go on while the peer is away."""
    assert session.wanted(_view(SMALL), replace(MET, keepalive=0), GREAT, NOW, NOW_UNIX).keepalive
    assert session.wanted(_view(SMALL, reachable=False), MET, GREAT, NOW, NOW_UNIX).keepalive


@pytest.mark.parametrize(("pushed", "wanted"), [(-math.inf, True), (NOW - 7.0, True), (NOW - 5.0, False)])
def test_overdue_handshakes_are_pushed_seldom(pushed: float, wanted: bool) -> None:
    """Off and on again is what makes WireGuard try; sooner than after 5 s it would not."""
    old = replace(MET, latest_handshake=NOW_UNIX - 500.0)
    operations = session.push(_view(pushed_at=pushed), old, SMALL, NOW, NOW_UNIX)
    both = (SetPeer(public_key=GREAT, keepalive=0), SetPeer(public_key=GREAT, keepalive=25))
    assert operations == (both if wanted else ())


def test_fresh_sessions_are_not_pushed() -> None:
    """Nor is the end pushed that should wait for the other."""
    assert session.push(_view(), MET, SMALL, NOW, NOW_UNIX) == ()
    old = replace(MET, latest_handshake=NOW_UNIX - 500.0)
    assert session.push(_view(SMALL), old, GREAT, NOW, NOW_UNIX) == ()
    assert session.push(_view(SMALL), old, GREAT, NOW + 1.0, NOW_UNIX)


def test_attention() -> None:
    """A handshake is awaited from when a way works, for a bounded time, until it is there."""
    assert session.expecting(_view(), DEVICE, NOW + 1, NOW_UNIX)
    assert not session.expecting(_view(), DEVICE, NOW + 11, NOW_UNIX)
    assert not session.expecting(_view(), MET, NOW + 1, NOW_UNIX)
    assert not session.expecting(_view(reachable=False), DEVICE, NOW + 1, NOW_UNIX)
    assert not session.fresh(None, NOW_UNIX)


@pytest.mark.parametrize(
    ("before", "after", "silent", "found"),
    [
        (0.0, 10.0, 0.0, False),
        (10.0, 10.0, 60.0, False),
        (10.0, 13.0, 0.0, True),
        (10.0, 131.0, 0.5, False),
        (10.0, 131.0, 3.0, True),
        (10.0, 5.0, 60.0, False),
    ],
    ids=[
        "the first session",
        "no new one",
        "sooner than a renewal",
        "a renewal",
        "after a silence",
        "a clock set back",
    ],
)
def test_a_new_session_that_is_no_renewal_is_a_restart(before: float, after: float, silent: float, found: bool) -> None:
    """WireGuard renews a session that is in use after 120 s."""
    devices = (replace(DEVICE, latest_handshake=moment) for moment in (before, after))
    assert session.restarted(*devices, silent) is found
    assert session.restarted(None, replace(DEVICE, latest_handshake=after), silent) is False
