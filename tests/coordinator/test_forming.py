"""How a Consul server may start: no second cluster, no vote without its log, and a way on when disks are lost."""

from __future__ import annotations

import itertools

import pytest

from coordinator.forming import UNKNOWN, Action, Sibling, Standing, decide

A, B, C = "100.96.0.1", "100.96.0.2", "100.96.0.3"
EMPTY = Standing(records=False)
VOTERS = (A, B, C)
HOLDS = Standing(records=True, term=3, index=100, voters=VOTERS)
LED = Standing(records=True, led=True, term=3, index=100, voters=VOTERS)
ROOM = Standing(records=True, led=True, term=3, index=100, voters=VOTERS, room=True)


def others(b: Standing | None, c: Standing | None) -> tuple[Sibling, ...]:
    """coordinator-1 and -2 as coordinator-0 sees them."""
    return (
        Sibling(peer_id="coordinator-1", address=B, standing=b),
        Sibling(peer_id="coordinator-2", address=C, standing=c),
    )


def action(own: Standing, *siblings: Sibling) -> Action:
    """What coordinator-0 does."""
    return decide(own, "coordinator-0", A, siblings).action


def test_alone_and_empty_founds() -> None:
    """The only coordinator of a manifest has nobody to ask."""
    assert action(EMPTY) is Action.FOUND


def test_a_cluster_is_founded_by_all_or_by_nobody() -> None:
    """Empty: of all that the siblings may say, only "no records" from each of them founds a cluster."""
    for b, c in itertools.product((None, UNKNOWN, EMPTY, HOLDS, LED, ROOM), repeat=2):
        founds = action(EMPTY, *others(b, c)) is Action.FOUND
        assert founds == (b is EMPTY and c is EMPTY), (b, c)


def test_an_empty_disk_waits_until_its_old_server_is_out() -> None:
    """It starts beside a leader when that one made room, not before: Raft would count its vote for the old log."""
    assert action(EMPTY, *others(LED, None)) is Action.WAIT
    assert action(EMPTY, *others(HOLDS, HOLDS)) is Action.WAIT
    assert action(EMPTY, *others(ROOM, None)) is Action.JOIN


def test_an_empty_disk_waits_until_all_records_follow_the_leader() -> None:
    """After a recovery, another server with records has its old configuration until it follows: empty servers at the
    addresses of that one could elect it, and what the leader acknowledged would be lost (four coordinators or more).
    """
    found = decide(EMPTY, "coordinator-0", A, others(ROOM, HOLDS))
    assert (found.action, "coordinator-2" in found.reason) == (Action.WAIT, True)
    assert action(EMPTY, *others(ROOM, ROOM)) is Action.JOIN
    assert action(EMPTY, *others(ROOM, LED)) is Action.JOIN
    assert action(EMPTY, *others(ROOM, EMPTY)) is Action.JOIN


def test_the_reason_names_who_is_waited_for() -> None:
    """Each sibling with what is known of it."""
    found = decide(EMPTY, "coordinator-0", A, others(None, HOLDS)).reason
    assert "coordinator-1 (not reached)" in found
    assert "coordinator-2 (has records, and no leader)" in found


@pytest.mark.parametrize("own", [HOLDS, LED, UNKNOWN])
def test_who_has_records_founds_nothing(own: Standing) -> None:
    """Records, or not knowing: no sibling's word makes it found or join anew."""
    for b, c in itertools.product((None, UNKNOWN, EMPTY, HOLDS, LED), repeat=2):
        assert action(own, *others(b, c)) in (Action.RUN, Action.RECOVER)


def test_siblings_that_say_that_theirs_are_lost_let_nobody_go_on_alone() -> None:
    """One of three disks left: everybody was asked, nobody leads, nobody else has anything. They may be others than
    this one knew, which a host has booted empty. It says what the owners can do, and their word without a manifest
    that drops somebody is none.
    """
    found = decide(HOLDS, "coordinator-0", A, others(EMPTY, EMPTY))
    assert (found.action, found.leaderless) == (Action.RUN, True)
    assert "coordinator-1, coordinator-2 say that the disk is empty" in found.reason
    assert "sign a manifest that drops their coordinators, and ./mesh set it on coordinator-0" in found.reason
    for b, c in itertools.product((None, UNKNOWN, EMPTY, HOLDS, LED), repeat=2):
        assert decide(HOLDS, "coordinator-0", A, others(b, c), word=True).action is Action.RUN, (b, c)


def test_a_quorum_of_what_was_configured_is_waited_for() -> None:
    """A cluster that has just grown from one server needs only that one."""
    grown = Standing(records=True, term=1, index=9, voters=(A,))
    assert action(grown, *others(EMPTY, EMPTY)) is Action.RUN


def test_voters_that_the_manifest_dropped_are_waited_for() -> None:
    """From three coordinators to one, or to two: those that are dropped may lead. They are named, and records go on
    alone by the owners' word only.
    """
    two = others(HOLDS, None)[:1]
    alone = decide(HOLDS, "coordinator-0", A, ())
    assert (alone.action, alone.leaderless) == (Action.RUN, True)
    assert f"drops {B}, {C}" in alone.reason
    assert "./mesh set the manifest on coordinator-0" in alone.reason
    assert decide(HOLDS, "coordinator-0", A, (), word=True).action is Action.RECOVER
    # Two of three with records are a quorum in any case.
    assert decide(HOLDS, "coordinator-0", A, two, word=True).action is Action.RUN


def test_the_owners_word_needs_a_majority_of_those_that_the_manifest_keeps() -> None:
    """Who is kept and lost is no majority with one that has records: that one has to be dropped, too. New coordinators
    have nothing and do not count; who is kept and silent is waited for.
    """
    kept = others(EMPTY, None)[:1]
    assert decide(HOLDS, "coordinator-0", A, kept, word=True).action is Action.RUN
    new = tuple(Sibling(peer_id=f"coordinator-{n}", address=f"100.96.0.{n + 1}", standing=EMPTY) for n in (3, 4))
    assert decide(HOLDS, "coordinator-0", A, new, word=True).action is Action.RECOVER
    assert decide(HOLDS, "coordinator-0", A, (*new, *others(None, None)[:1]), word=True).action is Action.RUN


def test_who_is_dropped_and_answers_is_counted() -> None:
    """It has records that are needed, or it leads: its server is taken out later."""
    for standing in (HOLDS, LED):
        leaving = others(standing, None)
        assert decide(HOLDS, "coordinator-0", A, (), leaving, word=True).action is Action.RUN
    for standing in (None, UNKNOWN, EMPTY):
        leaving = others(standing, standing)
        assert decide(HOLDS, "coordinator-0", A, (), leaving, word=True).action is Action.RECOVER


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Standing(records=True, term=3, index=101, voters=VOTERS), Action.RUN),
        (Standing(records=True, term=4, index=1, voters=VOTERS), Action.RUN),
        (Standing(records=True, term=3, index=99, voters=VOTERS), Action.RECOVER),
        (Standing(records=True, term=3, index=100, voters=VOTERS), Action.RECOVER),
    ],
)
def test_the_most_recent_records_go_on(other: Standing, expected: Action) -> None:
    """Two of five left, and the others dropped: the higher term, then the longer log; of equal ones the first
    coordinator's, at all alike.
    """
    five = (*VOTERS, "100.96.0.4", "100.96.0.5")
    own = Standing(records=True, term=3, index=100, voters=five)
    sibling = Sibling(peer_id="coordinator-1", address=B, standing=other)
    assert decide(own, "coordinator-0", A, (sibling,), word=True).action is expected
    mirrored = Sibling(peer_id="coordinator-0", address=A, standing=own)
    second = Standing(records=True, term=other.term, index=other.index, voters=five)
    found = decide(second, "coordinator-1", B, (mirrored,), word=True).action
    assert {expected, found} == {Action.RUN, Action.RECOVER}


def test_who_says_that_there_is_a_leader_does_not_keep_the_owners_word_away() -> None:
    """For longer than a while; and then, once they have spoken, one that the manifest dropped does not count."""
    gone = others(LED, HOLDS)
    for word, long in ((False, False), (False, True), (True, False), (True, True)):
        for leaving in (gone, others(HOLDS, HOLDS)):
            found = decide(HOLDS, "coordinator-0", A, (), leaving, word=word, long=long)
            assert found.leaderless is long
            assert found.action is (Action.RECOVER if word and long else Action.RUN)
    found = decide(HOLDS, "coordinator-0", A, others(LED, None), long=True)
    assert (found.action, found.leaderless) == (Action.RUN, True)
    assert "coordinator-1 says that there is one" in found.reason
    assert "sign a manifest that drops" in found.reason
    # Of those that are kept, each counts.
    stays = others(LED, None)[:1]
    assert decide(HOLDS, "coordinator-0", A, stays, others(None, HOLDS)[1:], word=True, long=True).action is Action.RUN
    assert not decide(HOLDS, "coordinator-0", A, others(HOLDS, None)[:1]).leaderless
    assert decide(HOLDS, "coordinator-0", A, others(HOLDS, None)[:1], long=True).leaderless
    assert not decide(LED, "coordinator-0", A, gone, long=True, word=True).leaderless
