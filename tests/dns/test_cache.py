"""Answers that are kept: until when, how many, and how they look then."""

from __future__ import annotations

from dnslib import QTYPE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dns import cache
from dns.cache import MAX_ENTRY, MAX_STALE, STALE_TTL, Cache, aged
from dns.records import Reading, read


def reading(ttl: int = 60, records: int = 1) -> Reading:
    """An answer as it is kept."""
    reply = DNSRecord.question("example.org").reply(aa=1)
    reply.add_answer(*(RR("example.org", QTYPE.A, ttl=ttl, rdata=A(f"192.0.2.{i % 250}")) for i in range(records)))
    found = read(bytes(reply.pack()), 12 + 13 + 4)
    assert found is not None
    return found


def test_ttls_count_down_and_a_stale_answer_has_little_left() -> None:
    """To 0 at the end, STALE_TTL from then on; nobody's authority is claimed."""
    kept = Cache()
    kept.put("q", reading(), 100.0)
    for now, left in ((100.0, 60), (130.7, 30), (159.9, 1), (160.0, STALE_TTL), (5000.0, STALE_TTL)):
        stored = kept.get("q", now)
        assert stored is not None
        reply = DNSRecord.parse(aged(stored, now))
        assert (reply.rr[0].ttl, reply.header.aa) == (left, 0)


def test_nothing_is_kept_for_ever() -> None:
    """A day after its end an answer is gone, and its octets with it."""
    kept = Cache()
    kept.put("q", reading(), 0.0)
    assert kept.get("q", 60 + MAX_STALE - 1) is not None
    assert kept.get("q", 60 + MAX_STALE) is None
    assert (len(kept), kept.octets) == (0, 0)


def test_an_answer_that_may_not_be_kept_takes_the_older_one_away() -> None:
    """What the server says now counts."""
    kept = Cache()
    kept.put("q", reading(), 0.0)
    kept.put("q", reading(ttl=0), 1.0)
    assert (kept.get("q", 1.0), kept.octets) == (None, 0)


def test_large_answers_are_not_kept() -> None:
    """One name must not push out hundreds."""
    big = reading(records=600)
    assert len(big.wire) > MAX_ENTRY
    kept = Cache()
    kept.put("q", big, 0.0)
    assert len(kept) == 0


def test_what_was_used_longest_ago_goes_first() -> None:
    """Use, not age, keeps an answer."""
    kept = Cache(entries=2)
    kept.put("a", reading(), 0.0)
    kept.put("b", reading(), 0.0)
    kept.get("a", 1.0)
    kept.put("c", reading(), 2.0)
    assert (kept.get("b", 3.0), kept.get("a", 3.0) is not None) == (None, True)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.sampled_from([0, 60])), max_size=60))
def test_count_and_octets_are_bounded(puts: list[tuple[int, int, int]]) -> None:
    """Whatever is put in, and the count of octets is that of what is there."""
    kept = Cache(entries=8, octets=600)
    for key, records, ttl in puts:
        kept.put(key, reading(ttl, records), 0.0)
        assert len(kept) <= 8
        assert kept.octets <= 600
        assert kept.octets == sum(len(stored.reading.wire) for stored in kept._stored.values())
    kept.clear()
    assert (len(kept), kept.octets) == (0, 0)


def test_the_bounds_are_megabytes() -> None:
    """A memory of names is a small part of a sidecar."""
    assert cache.MAX_OCTETS <= 4 << 20
    assert cache.MAX_ENTRIES * 1024 <= cache.MAX_OCTETS
