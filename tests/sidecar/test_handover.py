"""Several CVMs and manifests that follow each other, in any order of events: each CVM that runs takes every other's
certificate at each moment.
"""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st

from coordinator.authority import mesh_ca
from sidecar.certificate import POLL_SECONDS, PRESENT_SECONDS, Certificate, aged, begun, heard
from sidecar.certificate_reading import Authority, Given, Leaf
from tests.sidecar.world import CLUSTER_KEYS

OVERLAP = 120.0
CVMS = 3
MANIFESTS = [base64.b16encode(bytes([n]) * 32).decode().lower() for n in range(12)]
AUTHORITIES = [
    Authority(digest=digest, pem=mesh_ca(CLUSTER_KEYS, n + 1, digest).pem) for n, digest in enumerate(MANIFESTS)
]


@dataclass
class Cvm:
    """What one CVM shows, and what its Envoy has of that."""

    shows: Certificate
    envoy: Certificate
    said: str = ""
    """Digest that it has told the coordinators of."""
    last: float = 0.0
    """Of its last answer."""

    def takes(self, other: Cvm) -> bool:
        """Whether its Envoy takes what the other's shows."""
        return other.envoy.leaf.digest in {authority.digest for authority in self.envoy.trusted}


@dataclass
class Mesh:
    """CVMs that run, and coordinators with one record of who trusts what."""

    now: float = 0.0
    head: int = 0
    overlap: float = OVERLAP
    windows: list[float] = field(default_factory=list)
    """Of each manifest that was replaced, until when its authority is named."""
    cvms: list[Cvm] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in range(CVMS):
            self.cvms.append(self.newcomer())

    def newcomer(self) -> Cvm:
        """A CVM that is admitted now."""
        first = begun(self.given(self.leaf()), self.now, self.overlap)
        return Cvm(shows=first, envoy=first, said=MANIFESTS[self.head], last=self.now)

    def leaf(self) -> Leaf:
        """One of the manifest in force."""
        return Leaf(digest=MANIFESTS[self.head], pem="", expires_at=0)

    def given(self, leaf: Leaf | None) -> Given:
        """An answer as coordinators give it now."""
        open_ones = [AUTHORITIES[n] for n, until in enumerate(self.windows) if self.now < until]
        named = [AUTHORITIES[self.head], *reversed(open_ones)]
        all_trust = all(cvm.said == MANIFESTS[self.head] for cvm in self.cvms)
        return Given(authorities=tuple(named), leaf=leaf, all_trust=all_trust)

    def step(self, what: str, which: int) -> None:
        """One thing happens."""
        cvm = self.cvms[which]
        if what == "adopt" and self.head + 1 < len(MANIFESTS):
            self.head += 1
            self.windows.append(self.now + self.overlap)
        elif what == "renew":
            behind = cvm.shows.newest.digest != MANIFESTS[self.head]
            trusts = cvm.envoy.authorities[0].digest
            if trusts == MANIFESTS[self.head]:
                cvm.said = trusts
            cvm.shows = heard(cvm.shows, self.given(self.leaf() if behind else None), self.now, self.overlap, cvm.last)
            cvm.last = self.now
        elif what == "apply":
            cvm.envoy = cvm.shows
        for one in self.cvms:
            one.shows = aged(one.shows, self.now)

    def check(self) -> None:
        """Everybody takes everybody."""
        for one, other in itertools.permutations(self.cvms, 2):
            assert one.takes(other), (self.head, one.envoy, other.envoy)


STEPS = st.tuples(
    st.sampled_from(["adopt", "renew", "renew", "renew", "apply", "apply", "apply"]), st.integers(0, CVMS - 1)
)


@settings(max_examples=300, deadline=None)
@each(st.lists(STEPS, max_size=60))
def test_nobody_is_refused_in_any_order_of_events(steps: list[tuple[str, int]]) -> None:
    """Also with manifests that follow each other before the one before is through, as long as nobody is silent for
    longer than the others wait.
    """
    mesh = Mesh()
    for what, which in steps:
        mesh.step(what, which)
        mesh.check()
        mesh.now += PRESENT_SECONDS / 100
    # Then it comes to its end: everybody shows the newest.
    for what, which in itertools.product(["renew", "apply", "renew", "renew", "apply"], range(CVMS)):
        mesh.step(what, which)
        mesh.check()
    assert {cvm.envoy.leaf.digest for cvm in mesh.cvms} == {MANIFESTS[mesh.head]}


def test_a_change_takes_two_renewals_and_a_question() -> None:
    """Hear of it, say that Envoy trusts it, and ask until the last one has: two polls where all are as fast."""
    mesh = Mesh()
    mesh.step("adopt", 0)
    began = mesh.now
    for what in ("renew", "apply", "renew"):
        for which in range(CVMS):
            mesh.step(what, which)
    while any(cvm.shows.leaf.digest != MANIFESTS[1] for cvm in mesh.cvms):
        mesh.now += POLL_SECONDS
        for which in range(CVMS):
            mesh.step("renew", which)
    assert mesh.now - began <= POLL_SECONDS


def test_one_that_never_says_so_holds_the_others_up_for_a_while() -> None:
    """Then they show the new certificate, and it is refused by them no more than they by it."""
    mesh = Mesh()
    mesh.step("adopt", 0)
    for what in ("renew", "apply", "renew", "apply"):
        for which in range(CVMS - 1):
            mesh.step(what, which)
    assert {cvm.shows.leaf.digest for cvm in mesh.cvms} == {MANIFESTS[0]}
    mesh.now += PRESENT_SECONDS
    mesh.step("apply", 0)
    assert [cvm.shows.leaf.digest for cvm in mesh.cvms] == [MANIFESTS[1], MANIFESTS[1], MANIFESTS[0]]
    assert mesh.cvms[0].takes(mesh.cvms[2])


@pytest.mark.parametrize(("apart", "overlap"), [(20, 60.0), (20, 120.0), (10, 60.0), (10, 120.0), (5, 120.0)])
def test_manifests_one_after_the_other_while_one_cvm_is_silent(apart: int, overlap: float) -> None:
    """Its Envoy takes nothing, so nobody is ever told that all trust: each leaf is shown when its own time has come, by
    those that run, and every one that is shown is trusted, also by a CVM that is admitted at that moment.
    """
    mesh = Mesh(overlap=overlap)
    for second in range(0, apart * len(MANIFESTS) + 60, 1):
        mesh.now = float(second)
        if second % apart == 0:
            mesh.step("adopt", 0)
        for which in range(CVMS - 1):
            if second % 5 == which:
                mesh.step("renew", which)
            mesh.step("apply", which)
        late = mesh.newcomer()
        for one, other in itertools.permutations(mesh.cvms[: CVMS - 1], 2):
            assert one.takes(other), (second, digits(other.envoy.leaf.digest))
            assert late.takes(one), (second, digits(one.envoy.leaf.digest))
    assert {cvm.envoy.leaf.digest for cvm in mesh.cvms[: CVMS - 1]} == {MANIFESTS[-1]}


def digits(digest: str) -> str:
    """The number of a manifest in MANIFESTS."""
    return str(MANIFESTS.index(digest))
