"""This CVM's certificate in the mesh and whom it trusts, through a change of the manifest. Pure.

Each manifest has a certificate authority of its own, its *mesh CA*. When the manifest changes, every CVM trusts the
new CA as soon as it hears of it, and shows its new certificate (the *leaf*) only once the others can be expected to
trust it: else who is a moment ahead is refused by who is a moment behind, and unchanged workloads lose requests.

When that is, the coordinators know: each CVM tells them when its Envoy trusts the new CA, and each is told once all
that live have said so. That takes as long as the slowest takes and no longer. Who lives and does not say so (its Envoy
does not start, say) delays the others by PRESENT_SECONDS at most. Where manifests follow each other faster than that,
each leaf waits for its own time and is shown in its turn: were the next one's time waited for each time, a CVM would
go on showing the first leaf until nobody takes it any more.

A CA that was the newest stays trusted for the manifest's `overlap_seconds` from when this CVM heard of its successor,
by this CVM's own clock: then whoever still shows a certificate of it has not been there for that long, or is evicted.
So who could not ask for so long shows its new leaf at once: nobody takes the old one any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from admission.protocol import MAX_AUTHORITIES
from sidecar.certificate_reading import Authority, CertificateError, Given, Leaf

PRESENT_SECONDS = 25.0
"""A new leaf is shown after so long, whoever has not said that it trusts its CA. A lease (15 s) and two renewals (5 s
each): by then who lives has renewed, and who does not has lost its lease. Shorter than the shortest window
(`topology.manifest.OVERLAP_SECONDS`)."""
POLL_SECONDS = 0.2
"""Between two questions whether all trust the new CA: what the change takes longer on average is half of it."""
RETIRED = MAX_AUTHORITIES
"""Manifests that are remembered as retired: coordinators name no more before theirs."""
MAX_FORMER = MAX_AUTHORITIES
"""Former CAs that are kept, and leaves that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A CA that was the newest before."""

    authority: Authority
    until: float
    """Monotonic seconds until which it is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A leaf that is held, and not shown yet."""

    leaf: Leaf
    shown_at: float
    """Monotonic seconds at which it is shown at the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What this CVM shows and trusts."""

    leaf: Leaf
    """The one that it shows."""
    waiting: tuple[Waiting, ...] = ()
    """Those that come after it, the next one first."""
    authorities: tuple[Authority, ...]
    """As the coordinators named them last."""
    former: tuple[Former, ...] = ()
    """The last one first."""
    retired: tuple[str, ...] = ()
    """Digests of the last RETIRED manifests whose CA is trusted here no more, also where a coordinator whose clock is
    behind still names it."""

    @property
    def digest(self) -> str:
        """Of the newest manifest whose CA it trusts."""
        return self.authorities[0].digest

    @property
    def following(self) -> Leaf | None:
        """The last one that is held, and not shown yet."""
        return self.waiting[-1].leaf if self.waiting else None

    @property
    def trusted(self) -> tuple[Authority, ...]:
        """All CAs that count, the newest first."""
        former = tuple(each.authority for each in self.former if each.authority not in self.authorities)
        return (*self.authorities, *former)

    @property
    def trusted_pem(self) -> str:
        """Likewise, one after the other."""
        return "".join(each.pem for each in self.trusted)

    @property
    def newest(self) -> Leaf:
        """The leaf that was given last. What it has for public listeners is shown at once: clients outside pin the
        root, or the one CA that they mean, and no CVM judges it.
        """
        return self.following or self.leaf

    @property
    def due(self) -> float | None:
        """Monotonic seconds at which `aged` does something; None: never."""
        moments = (*(each.shown_at for each in self.waiting), *(each.until for each in self.former))
        return min(moments, default=None)


def begun(given: Given, now: float, overlap_seconds: float) -> Certificate:
    """What the first admission gives at `now` (monotonic seconds). CertificateError when there is no leaf in it."""
    if given.leaf is None:
        raise CertificateError("the admission has no certificate")
    return Certificate(
        leaf=given.leaf,
        authorities=given.authorities,
        former=tuple(Former(authority=each, until=now + overlap_seconds) for each in given.authorities[1:]),
    )


def heard(held: Certificate, given: Given, now: float, overlap_seconds: float, last: float) -> Certificate:
    """What is shown and trusted after an answer of a coordinator at `now`, when the one before came at `last` (both
    monotonic seconds).
    """
    first, *others = given.authorities
    named = (first, *(each for each in others if each.digest not in held.retired))
    held = replace(held, authorities=named, former=_former(held, given, now + overlap_seconds))
    if given.leaf is not None:
        held = replace(held, waiting=_queued(held.waiting, given.leaf, now))
    following = held.following
    if following is None:
        return held
    all_trust = given.all_trust and following.digest == held.digest
    renewed = following.digest == held.leaf.digest
    # What is shown now is taken until `last + overlap_seconds` at least: others heard of its successor no sooner.
    counts = held.leaf.digest in {each.digest for each in held.authorities}
    worthless = not counts and now + PRESENT_SECONDS > last + overlap_seconds
    return replace(held, leaf=following, waiting=()) if all_trust or renewed or worthless else held


def _queued(waiting: tuple[Waiting, ...], leaf: Leaf, now: float) -> tuple[Waiting, ...]:
    """`waiting` and after it `leaf`, which was given at `now`. One more of the same manifest takes the other's turn; of
    more than MAX_FORMER the last ones are left out, for the first are due.
    """
    if waiting and waiting[-1].leaf.digest == leaf.digest:
        return (*waiting[:-1], replace(waiting[-1], leaf=leaf))
    return (*waiting[: MAX_FORMER - 1], Waiting(leaf=leaf, shown_at=now + PRESENT_SECONDS))


def _former(held: Certificate, given: Given, until: float) -> tuple[Former, ...]:
    """Those of before, and the one that was the newest until this answer."""
    newest, before = given.authorities[0], held.authorities[0]
    if newest == before:
        return held.former
    kept = (each for each in held.former if each.authority not in (newest, before))
    return (Former(authority=before, until=until), *kept)[:MAX_FORMER]


def aged(held: Certificate, now: float) -> Certificate:
    """What is shown and trusted at `now` (monotonic seconds), with no answer."""
    due = [each.leaf for each in held.waiting if now >= each.shown_at]
    if due:
        held = replace(held, leaf=due[-1], waiting=held.waiting[len(due) :])
    ended = {each.authority for each in held.former if now >= each.until}
    if not ended:
        return held
    return replace(
        held,
        former=tuple(each for each in held.former if each.authority not in ended),
        # The coordinators' own window ends at about the same time; where none can be asked, it ends here.
        authorities=tuple(each for each in held.authorities if each not in ended or each == held.authorities[0]),
        retired=(*held.retired, *sorted(each.digest for each in ended - {held.authorities[0]}))[-RETIRED:],
    )


def wrong_time(held: Certificate, leaf_hours: int, now: float) -> str:
    """What is wrong with the time of the newest leaf at `now` (Unix seconds), of which `leaf_hours` are a life; empty
    while all is well. A leaf is renewed at half of its life; after half of the rest that has failed for long. A clock
    before its begin was set back.
    """
    early = held.newest.begins_at - now
    if early > 0:
        return f"the certificate is good from {early / 3600:.1f} h from now by this CVM's clock, so calls fail: set it"
    left = held.newest.expires_at - now
    if left <= 0:
        return f"the certificate ended {-left / 3600:.1f} h ago, and no coordinator has renewed it: calls fail"
    if left < leaf_hours * 3600 / 4:
        return f"the certificate ends in {left / 3600:.1f} h, and no coordinator has renewed it: calls fail then"
    return ""
