"""The rendezvous' feed."""

from __future__ import annotations

import asyncio

from admission.protocol import MeshPeer
from coordinator.feed import LATELY_SECONDS, MAX_POLLS, Feed
from runtime.tasks import TaskScope

PEER = MeshPeer(peer_id="api-0", public_key="k", address="100.96.0.1", kind="workload")


class Clock:
    """A clock that stands."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_poll_returns_at_once_when_there_is_news() -> None:
    """A caller that has applied another version gets the newest."""
    feed = Feed(1000, Clock())
    feed.publish((PEER,))
    news = await feed.poll(0)
    assert news.peers == (PEER,)
    assert news.version == feed.version


async def test_news_beside_the_set_are_announced() -> None:
    """Whoever waits is answered with the set as it is, and asks anew."""
    feed = Feed(1000, Clock())
    async with TaskScope() as scope:
        poll = scope.start("poll", feed.poll(feed.version))
        await asyncio.sleep(0)
        feed.announce()
        assert (await poll).version == 1001


async def test_a_poll_waits_for_news() -> None:
    """A caller that is up to date is answered when something changes."""
    feed = Feed(1000, Clock())
    async with TaskScope() as scope:
        poll = scope.start("poll", feed.poll(feed.version))
        await asyncio.sleep(0)
        assert not poll.done()
        feed.publish((PEER,))
        assert (await poll).peers == (PEER,)


async def test_a_poll_ends_without_news() -> None:
    """After its time a poll is answered with what there is."""
    feed = Feed(1000, Clock())
    assert (await feed.poll(feed.version, wait=0.01)).version == feed.version


async def test_the_same_peers_are_no_news() -> None:
    """Publishing an equal set keeps the version."""
    feed = Feed(1000, Clock())
    feed.publish((PEER,))
    version = feed.version
    feed.publish((PEER,))
    assert feed.version == version


async def test_an_admission_waits_until_the_rendezvous_has_the_key() -> None:
    """`applied` ends when a poll says that the version was seen."""
    feed = Feed(1000, Clock())
    async with TaskScope() as scope:
        first = scope.start("poll", feed.poll(feed.version))
        await asyncio.sleep(0)
        feed.publish((PEER,))
        version = (await first).version
        waiting = scope.start("wait", feed.applied(version, wait=10.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        again = scope.start("poll", feed.poll(version, wait=10.0))
        assert await waiting
        again.cancel()


async def test_nobody_waits_without_a_rendezvous() -> None:
    """Before any poll, and long after the last, an admission is answered at once."""
    clock = Clock()
    feed = Feed(1000, clock)
    assert not await feed.applied(feed.version + 1, wait=10.0)
    await feed.poll(0, wait=10.0)
    clock.now += LATELY_SECONDS + 1
    assert not await feed.applied(feed.version + 1, wait=10.0)


async def test_the_wait_is_bounded() -> None:
    """A rendezvous that polls but never applies costs the given time only."""
    feed = Feed(1000, Clock())
    await feed.poll(0)
    assert not await feed.applied(feed.version + 1, wait=0.01)


async def test_a_version_of_another_process_is_not_believed() -> None:
    """Neither an earlier process' version nor an invented one counts as seen."""
    feed = Feed(1000, Clock())
    feed.publish((PEER,))
    for seen in (5, 10**12):
        await feed.poll(seen)
        assert not await feed.applied(feed.version, wait=0.01)


async def test_no_more_polls_wait_than_may() -> None:
    """One more answers the oldest at once, with all that there is; the others wait on."""
    feed = Feed(1000, Clock())
    feed.publish((PEER,))
    async with TaskScope() as scope:
        polls = []
        for _ in range(MAX_POLLS + 2):
            polls.append(scope.start("poll", feed.poll(feed.version, wait=60.0)))
            await asyncio.sleep(0)
        for poll in polls[:2]:
            assert (await poll).peers == (PEER,)
        assert not any(poll.done() for poll in polls[2:])
        feed.publish(())
        assert [(await poll).peers for poll in polls[2:]] == [()] * MAX_POLLS
