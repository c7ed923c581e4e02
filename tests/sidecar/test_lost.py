"""Which peers are lost: a table of what the link and Consul say, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from peer.link import Contact
from peer.path import ACTIVE_EVERY, DEAD_AFTER, LATE_AFTER
from sidecar.lost import (
    ASKED_AT_LEAST,
    FORGET_SECONDS,
    GIVEN_UP_SECONDS,
    LOOK_SECONDS,
    LOST_SECONDS,
    Watched,
    addresses,
    boots,
    listed,
    watch,
)
from tests.sidecar.test_desired import instance
from xds import transport

PLACE = "100.96.0.7"
PEER = Contact(peer_id="api-0", public_key="k", address=PLACE, heard_at=100.0, asked=0)
ASKED = replace(PEER, asked=20)


@dataclass
class Play:
    """Looks every LOOK_SECONDS at what it is told."""

    now: float = 100.0
    watched: Mapping[str, Watched] = field(default_factory=dict)

    def look(self, *contacts: Contact, listed: bool = False) -> bool:
        """Looks now; whether the peer is lost."""
        self.watched = watch(self.watched, contacts, frozenset({PEER.peer_id} if listed else ()), self.now)
        return PLACE in addresses(self.watched)

    def until_lost(self, *contacts: Contact, listed: bool = False, most: float = 100.0) -> float | None:
        """Seconds until the peer is lost, or None when it is not within `most`."""
        start = self.now
        while self.now - start < most:
            self.now += LOOK_SECONDS
            if self.look(*contacts, listed=listed):
                return self.now - start
        return None


def test_a_peer_that_does_not_answer_is_lost_whatever_consul_says() -> None:
    """The link's own silence is enough, later than a change of path takes."""
    play = Play()
    play.look(PEER, listed=True)
    assert play.until_lost(ASKED, listed=True) == LOST_SECONDS
    assert LOST_SECONDS > DEAD_AFTER + 0.1


def test_consul_and_silence_together_suffice_sooner() -> None:
    """A peer that Consul stopped to list in this silence is given up."""
    play = Play()
    play.look(PEER, listed=True)
    assert play.until_lost(ASKED, listed=False) == GIVEN_UP_SECONDS


def test_consul_alone_cuts_nobody() -> None:
    """A peer that answers is not lost though Consul gives it up, for ever."""
    play = Play()
    play.look(PEER, listed=True)
    for second in range(200):
        play.now += LOOK_SECONDS
        assert not play.look(replace(ASKED, heard_at=play.now - ACTIVE_EVERY * (second % 2)))


def test_what_consul_never_listed_does_not_shorten_the_silence() -> None:
    """Neither a peer without services, nor one whose checks failed before the silence, is given up."""
    play = Play()
    play.look(PEER, listed=False)
    assert play.until_lost(ASKED, listed=False) == LOST_SECONDS


@pytest.mark.parametrize("gap", [LATE_AFTER, DEAD_AFTER + 0.1])
def test_a_change_of_path_cuts_nobody(gap: float) -> None:
    """Silence ends with the relay's first answer: 6.1 s after the last one at the latest, if Consul still lists the
    peer, and 2.6 s where there is a relay already, whether it does or not.
    """
    play = Play()
    play.look(PEER, listed=True)
    assert play.until_lost(ASKED, listed=gap > GIVEN_UP_SECONDS, most=gap - LOOK_SECONDS) is None
    play.now += gap
    assert not play.look(replace(PEER, heard_at=play.now))


def test_who_is_not_asked_is_not_silent() -> None:
    """An idle peer whose probes are not sent is not lost, nor one that missed one or two."""
    play = Play()
    play.look(PEER)
    assert play.until_lost(replace(PEER, asked=ASKED_AT_LEAST - 1)) is None


def test_who_was_never_heard_is_not_lost() -> None:
    """A peer that is being connected to has no connections to reset."""
    assert Play().until_lost(replace(ASKED, heard_at=None)) is None


def test_a_process_that_stood_still_did_not_listen() -> None:
    """A pause of a minute between two looks counts as one second."""
    play = Play()
    play.look(PEER, listed=True)
    play.now += 60.0
    assert not play.look(ASKED, listed=False)


def test_the_first_arrival_ends_it() -> None:
    """And the next silence is counted from there."""
    play = Play()
    play.look(PEER)
    assert play.until_lost(ASKED)
    assert not play.look(replace(PEER, heard_at=play.now))
    assert play.until_lost(replace(ASKED, heard_at=play.now)) == LOST_SECONDS


def test_a_new_key_ends_it() -> None:
    """A CVM that booted anew is reachable before it was ever heard, and after."""
    play = Play()
    play.look(PEER)
    assert play.until_lost(ASKED)
    assert not play.look(replace(ASKED, public_key="new", heard_at=None))
    assert play.until_lost(ASKED)
    assert not play.look(replace(ASKED, public_key="new"))


def test_who_is_no_longer_admitted_is_lost_like_who_is_silent_and_forgotten_later() -> None:
    """Its connections have no tunnel. Another peer at that address is not concerned, and nothing is kept for ever."""
    play = Play()
    play.look(PEER, listed=True)
    assert play.until_lost(listed=False) == LOST_SECONDS
    play.now += LOOK_SECONDS
    assert play.look()
    for _ in range(int(FORGET_SECONDS / LOOK_SECONDS)):
        play.now += LOOK_SECONDS
        play.look()
    assert play.watched == {}


def test_others_are_not_concerned() -> None:
    """Each peer has its own silence."""
    play = Play()
    other = replace(PEER, peer_id="api-1", public_key="l", address="100.96.0.8")
    play.look(PEER, other)
    while not play.look(ASKED, replace(other, heard_at=play.now)):
        play.now += LOOK_SECONDS
    assert addresses(play.watched) == {PLACE}


def test_tcp_sends_again_between_the_loss_and_its_own_time_out() -> None:
    """Only what is sent meets the reset: data that nobody acknowledges is sent again at times that double, keep-alive
    every 2 s; either has to come before the kernel ends the connection without a reset.
    """
    found_by = LOST_SECONDS + LOOK_SECONDS
    for first in (0.2, 0.3, 0.5, 1.0):
        at, pause = first, first
        while at <= found_by:
            pause *= 2
            at += pause
        assert at < transport.DEAD_AFTER
    assert found_by + transport.KEEPALIVE_INTERVAL < transport.DEAD_AFTER


def test_the_listed_are_those_of_every_service() -> None:
    """What is held on to counts as listed: an empty catalog after a recovery says nothing."""
    one, two = instance("api-0"), instance("api-1")
    assert listed({"api": (one,)}, {"api": (two,), "db": ()}) == {"api-0", "api-1"}


def test_the_last_boot_that_was_heard_of_each_peer_is_kept() -> None:
    """A peer that is not heard yet has no boot, and one that is away keeps the one it had."""
    first = boots({}, [PEER])
    assert first == {PLACE: ("k", 0)}
    assert boots({}, [replace(PEER, heard_at=None)]) == {}
    assert boots(first, []) == first
    assert boots(first, [replace(PEER, public_key="new", heard_at=None)]) == first
    assert boots(first, [replace(PEER, public_key="new")]) == {PLACE: ("new", 0)}
    assert boots(first, [replace(PEER, restarts=1)]) == {PLACE: ("k", 1)}
