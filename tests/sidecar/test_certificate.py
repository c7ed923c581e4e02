"""Which certificate a CVM shows and whom it trusts, through changes of the manifest and from odd coordinators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar import identity
from sidecar.certificate import MAX_FORMER, PRESENT_SECONDS, Certificate, aged, begun, heard, wrong_time
from sidecar.certificate_reading import CertificateError
from tests.sidecar.world import DIGEST, given, published
from topology.manifest import OVERLAP_SECONDS

KEYS = identity.make()
KEY = KEYS.public.leaf
NEXT, LATER = "e2" * 32, "f3" * 32
OVERLAP = 120.0


def first() -> Certificate:
    """What the first admission gives."""
    return begun(given(KEY), 0.0, OVERLAP)


def changed(at: float = 100.0, *digests: str, away: float = 5.0, **more: Any) -> Certificate:
    """What is held after the manifest has changed; the answer before came `away` seconds ago."""
    return heard(first(), given(KEY, *(digests or (NEXT, DIGEST)), epoch=4, **more), at, OVERLAP, at - away)


def digests(held: Certificate) -> list[str]:
    """Manifests whose CAs are trusted."""
    return [each.digest for each in held.trusted]


def test_first_certificate_is_shown_at_once() -> None:
    """There is nothing else to show, and the CVM serves nobody yet."""
    held = first()
    assert (held.leaf.digest, held.following, held.due) == (DIGEST, None, None)
    assert digests(held) == [DIGEST]
    with pytest.raises(CertificateError, match="no certificate"):
        begun(given(KEY, leaf=False), 0.0, OVERLAP)


def test_after_a_change_both_are_trusted_and_the_old_one_is_shown() -> None:
    """Until all trust the new CA; then the new one is."""
    held = changed()
    assert digests(held) == [NEXT, DIGEST]
    assert (held.leaf.digest, held.newest.digest) == (DIGEST, NEXT)
    waiting = heard(held, given(KEY, NEXT, DIGEST, epoch=4, leaf=False), 101.0, OVERLAP, 100.0)
    assert waiting.leaf.digest == DIGEST
    done = heard(waiting, given(KEY, NEXT, DIGEST, epoch=4, leaf=False, all_trust=True), 102.0, OVERLAP, 101.0)
    assert (done.leaf.digest, done.following) == (NEXT, None)
    assert digests(done) == [NEXT, DIGEST]


def test_all_trust_counts_for_the_newest_only() -> None:
    """A leaf of a manifest that was overtaken meanwhile is not shown for what is said of its successor."""
    held = changed()
    held = heard(held, given(KEY, LATER, NEXT, epoch=5, leaf=False, all_trust=True), 101.0, OVERLAP, 100.0)
    assert held.leaf.digest == DIGEST
    assert digests(held) == [LATER, NEXT, DIGEST]


def test_nobody_waits_for_ever() -> None:
    """A CVM that lives and says nothing delays the others for a while; a second answer does not begin it anew."""
    held = changed(100.0)
    assert held.due == 100.0 + PRESENT_SECONDS
    again = heard(held, given(KEY, NEXT, DIGEST, epoch=4), 110.0, OVERLAP, 105.0)
    assert aged(again, 100.0 + PRESENT_SECONDS - 0.1).leaf.digest == DIGEST
    assert aged(again, 100.0 + PRESENT_SECONDS).leaf.digest == NEXT
    assert OVERLAP_SECONDS[0] > 2 * PRESENT_SECONDS, "who missed an epoch needs two such times"


def test_each_certificate_is_shown_when_its_own_time_has_come() -> None:
    """Manifests that come faster than that do not put off the ones before; a renewed one keeps its predecessor's time,
    and of too many the last are left out.
    """
    held = changed(100.0)
    held = heard(held, given(KEY, LATER, NEXT, epoch=5), 120.0, OVERLAP, 115.0)
    held = heard(held, given(KEY, LATER, NEXT, epoch=5), 122.0, OVERLAP, 120.0)
    assert (held.leaf.digest, held.newest.digest, held.due) == (DIGEST, LATER, 100.0 + PRESENT_SECONDS)
    second = aged(held, 100.0 + PRESENT_SECONDS)
    assert (second.leaf.digest, second.newest.digest, second.due) == (NEXT, LATER, 120.0 + PRESENT_SECONDS)
    third = aged(second, 120.0 + PRESENT_SECONDS)
    assert (third.leaf.digest, third.following) == (LATER, None)
    assert aged(held, 1000.0).leaf.digest == LATER
    for n in range(40):
        held = heard(held, given(KEY, f"{n:064x}", LATER, epoch=6 + n), 123.0, OVERLAP, 122.0)
    assert (len(held.waiting), held.waiting[0].leaf.digest, held.newest.digest) == (MAX_FORMER, NEXT, f"{39:064x}")


def test_the_former_authority_ends_by_our_own_clock() -> None:
    """However early or late the coordinators' window ends, and also when none can be asked."""
    held = changed(100.0)
    early = heard(held, given(KEY, NEXT, epoch=4, leaf=False), 101.0, OVERLAP, 100.0)
    assert digests(early) == [NEXT, DIGEST]
    for each in (held, early):
        assert digests(aged(each, 219.9)) == [NEXT, DIGEST]
        assert digests(aged(each, 220.0)) == [NEXT]
    newcomer = begun(given(KEY, NEXT, DIGEST, epoch=4), 0.0, OVERLAP)
    assert digests(aged(newcomer, 119.9)) == [NEXT, DIGEST]
    assert digests(aged(newcomer, 120.0)) == [NEXT]


def test_who_was_away_for_long_shows_the_new_certificate_at_once() -> None:
    """The others have forgotten the authority of the old one; who was away for a moment has time to wait."""
    assert changed(1000.0, NEXT, away=121.0).leaf.digest == NEXT
    assert changed(1000.0, LATER, NEXT, away=OVERLAP - PRESENT_SECONDS + 0.1).leaf.digest == LATER
    assert changed(1000.0, LATER, NEXT, away=OVERLAP - PRESENT_SECONDS).leaf.digest == DIGEST
    assert changed(1000.0, NEXT, DIGEST, away=121.0).leaf.digest == DIGEST, "it is still named"


def test_an_end_that_comes_near_is_said_and_then_that_it_is_past() -> None:
    """From half of what is left when it should have been renewed; of the newest one."""
    held = first()
    end = held.leaf.expires_at
    assert wrong_time(held, 8, end - 2 * 3600) == ""
    assert "ends in 2.0 h, and no coordinator" in wrong_time(held, 8, end - 2 * 3600 + 1)
    assert "ended 0.0 h ago" in wrong_time(held, 8, end)
    renewed = heard(
        held,
        replace(given(KEY, NEXT, DIGEST, epoch=4), leaf=replace(held.leaf, digest=NEXT, expires_at=end + 9)),
        1,
        OVERLAP,
        0,
    )
    assert "ends in" in wrong_time(renewed, 8, end)


def test_a_clock_that_was_set_back_before_its_begin_is_said() -> None:
    """Nobody would believe it, by that clock."""
    held = first()
    begin = held.leaf.begins_at
    assert 0 < begin < held.leaf.expires_at
    assert wrong_time(held, 8, begin) == ""
    assert "good from 2.0 h from now by this CVM's clock" in wrong_time(held, 8, begin - 7200)


def test_renewal_under_the_same_manifest_is_shown_at_once() -> None:
    """Everybody trusts its CA."""
    held = heard(first(), replace(given(KEY), leaf=replace(first().leaf, expires_at=7)), 100.0, OVERLAP, 95.0)
    assert (held.leaf.expires_at, held.following, held.due) == (7, None, None)


def test_same_answer_changes_nothing() -> None:
    """Each renewal brings the authorities: an equal world is no news."""
    held = first()
    assert heard(held, given(KEY, leaf=False), 5.0, OVERLAP, 0.0) == held
    assert aged(held, 1e9) == held


def test_a_ca_whose_window_has_ended_does_not_come_back() -> None:
    """Also where a coordinator whose clock is behind still names it."""
    first = begun(given(KEY, DIGEST), 0.0, 120.0)
    changed = heard(first, given(KEY, NEXT, DIGEST, epoch=4), 10.0, 120.0, 5.0)
    ended = aged(changed, 131.0)
    assert [each.digest for each in ended.trusted] == [NEXT]
    again = heard(ended, given(KEY, NEXT, DIGEST, epoch=4, leaf=False), 140.0, 120.0, 131.0)
    assert [each.digest for each in again.trusted] == [NEXT]


PUBLIC_KEY = KEYS.public.public


def test_public_certificates_come_with_the_leaf_and_are_shown_at_once() -> None:
    """Whom CVMs trust has nothing to do with them. Their chain is whole: clients outside pin the root."""
    pem = published(PUBLIC_KEY)
    held = begun(given(KEY, public_key=PUBLIC_KEY, public_pems={"web": pem}), 0.0, OVERLAP)
    assert held.newest.public == {"web": pem}
    assert pem.count("BEGIN CERTIFICATE") == 2
    later = published(PUBLIC_KEY, digest=NEXT, epoch=4)
    answer = given(KEY, NEXT, DIGEST, epoch=4, public_key=PUBLIC_KEY, public_pems={"web": later})
    held = heard(held, answer, 100.0, OVERLAP, 95.0)
    assert (held.leaf.digest, held.newest.public) == (DIGEST, {"web": later})
