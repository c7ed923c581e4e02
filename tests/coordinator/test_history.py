"""Which kept manifests count: in order, and whatever somebody has made of the files."""

from __future__ import annotations

import base64
import dataclasses
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.history import History, Mesh, arrange, extend, is_name, name_of
from tests.coordinator.test_head import of_newer_program
from tests.coordinator.world import OWNER, OWNERS, make_manifest
from tests.topology.support import after, opened
from topology.envelope import Signed, seal
from topology.handover import Handover
from topology.owners import Owners, key_of
from topology.succession import led

SECOND = Ed25519PrivateKey.from_private_bytes(bytes(32))
ONE = opened(make_manifest(), OWNER)
TWO = opened(after(ONE, leaf_hours=9), OWNER)
TWIN = opened(after(ONE, leaf_hours=10), OWNER)
THREE = opened(after(TWO, owners=Owners(keys=(key_of(SECOND),))), OWNER)
FOUR = opened(after(THREE), SECOND)
FIVE = opened(after(FOUR), SECOND)
ALL = (ONE, TWO, THREE, FOUR, FIVE)
MESH = Mesh(cluster="tests", app_id=ONE.manifest.coordinators.app_id.upper(), owners=OWNERS)


def kept(*manifests: Signed) -> dict[str, str]:
    """As they lie on a disk."""
    return {name_of(it): it.envelope for it in manifests}


def chain(*manifests: Signed) -> tuple[Signed, ...]:
    """What counts of them."""
    return arrange(kept(*manifests), MESH).chain


def test_a_whole_history_is_the_chain() -> None:
    """In whatever order the files are listed; the owners changed in between."""
    for order in itertools.permutations(ALL):
        found = arrange(kept(*order), MESH)
        assert (found.chain, found.ignored, found.unreadable) == (ALL, (), "")
        assert found.newest == FIVE


def test_nothing_kept_is_no_history() -> None:
    """A new coordinator's."""
    assert arrange({}, MESH) == History()
    assert History().newest is None


def test_owners_are_led_by_the_manifests_in_which_they_were_replaced() -> None:
    """And by the first one; the last of them, where there is no room for all. The newest is not among them."""
    found = arrange(kept(*ALL), MESH)
    both = (ONE.envelope, THREE.envelope)
    size = sum(map(len, both))
    assert found.handovers(size) == both
    assert found.handovers(size - 1) == both[1:]
    assert found.handovers(0) == ()
    assert arrange(kept(ONE, TWO, THREE), MESH).handovers(size) == both[:1]
    assert History().handovers(size) == ()
    assert led(OWNERS, (*both, FIVE.envelope)) == FIVE


def test_what_led_to_a_manifest_ends_with_it() -> None:
    """Nothing that came later, and alone where the history does not know it; without the first ones where they are too
    many.
    """
    found = arrange(kept(*ALL), MESH)
    three = (ONE.envelope, TWO.envelope, THREE.envelope)
    size = sum(map(len, three))
    assert found.up_to(THREE, size) == three
    assert found.up_to(THREE, size - 1) == three[1:]
    assert found.up_to(THREE, 0) == three[2:]
    assert found.up_to(TWIN, size) == (TWIN.envelope,)


def test_a_gap_ends_the_chain_and_not_the_trust() -> None:
    """The newest counts as far as the newest before the gap names its owners."""
    assert chain(ONE, TWO, THREE, FIVE) == (FIVE,)
    assert chain(THREE, FOUR) == (THREE, FOUR), "the measured owners signed the third"
    assert chain(TWO, FIVE) == (TWO,), "who signed the fifth is not known without the third"
    assert chain(FOUR, FIVE) == ()


def test_a_longer_history_by_owners_that_were_replaced_does_not_count() -> None:
    """It forks before the change, and goes on by the former ones after it. At the change itself none can be told."""
    forked = [TWIN]
    for _ in range(4):
        forked.append(opened(after(forked[-1]), OWNER))
    assert forked[-1].manifest.epoch > FOUR.manifest.epoch
    assert chain(ONE, TWO, THREE, FOUR, *forked) == (ONE, TWO, THREE, FOUR)
    assert chain(ONE, *forked) == (ONE, *forked), "nobody was replaced"


def test_what_an_older_one_follows_is_vouched_for_by_its_digest() -> None:
    """Owners of the compose file that came later did not sign it."""
    later = Owners(keys=(key_of(SECOND),))
    assert arrange(kept(*ALL), Mesh(cluster="tests", app_id=MESH.app_id, owners=later)).chain == ALL


@pytest.mark.parametrize(
    "envelope",
    [
        "",
        "garbage",
        TWO.envelope[:-40],
        TWO.envelope[40:],
        TWO.envelope.partition(".")[0] + ".",
        seal(TWO.manifest, SECOND),
        seal(after(ONE, leaf_hours=72), OWNER),
        "A" * (2 << 20),
        "\0\xff",
    ],
    ids=["empty", "garbage", "truncated", "beheaded", "unsigned", "forged", "another", "long", "bytes"],
)
def test_a_damaged_file_is_named_and_not_obeyed(envelope: str) -> None:
    """What is older goes on counting, and what is newer too where its owners are known."""
    files = {**kept(ONE), name_of(TWO): envelope}
    found = arrange(files, MESH)
    assert found.chain == (ONE,)
    assert len(found.ignored) == 1
    assert found.ignored[0].startswith(name_of(TWO))


def test_no_flipped_bit_of_a_file_counts() -> None:
    """Each byte of the newest: it is left out, or it is what the owners signed."""
    for place in range(0, len(FOUR.envelope), 7):
        text = FOUR.envelope
        flipped = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        found = arrange({**kept(ONE, TWO, THREE), name_of(FOUR): flipped}, MESH)
        assert found.newest in (THREE, opened_again(FOUR, flipped)), place


def opened_again(signed: Signed, envelope: str) -> Signed:
    """`signed` as in an envelope whose text differs where base64 has no meaning."""
    from dataclasses import replace

    return replace(signed, envelope=envelope)


def test_a_file_under_another_name_does_not_count() -> None:
    """An old manifest cannot pass for a newer one."""
    files = {**kept(ONE), f"9-{'0' * 64}": ONE.envelope, "readme": TWO.envelope}
    found = arrange(files, MESH)
    assert found.chain == (ONE,)
    assert len(found.ignored) == 2
    assert [is_name(text) for text in (name_of(ONE), "readme", "0-" + "0" * 64, "../x", "1-AA")] == [True] + [False] * 4


def test_retired_owners_cannot_go_on() -> None:
    """A key that was replaced signs no successor, neither of the newest nor over a gap."""
    fork = opened(after(FOUR, leaf_hours=20), OWNER)
    far = opened(after(opened(after(FIVE))), OWNER)
    found = arrange(kept(ONE, TWO, THREE, FOUR, fork, far), MESH)
    assert found.newest == FOUR
    assert len(found.ignored) == 2


def test_retired_owners_cannot_go_on_beside_the_history() -> None:
    """What they sign later follows a manifest that is kept, or an epoch 1 of their own: it counts by itself, and the
    chain in which they were replaced overrules it.
    """
    second = Owners(keys=(key_of(SECOND),))
    late = opened(after(TWO, epoch=9), OWNER)
    assert chain(ONE, TWO, THREE, FOUR, late) == (ONE, TWO, THREE, FOUR)
    first = opened(dataclasses.replace(ONE.manifest, owners=second), OWNER)
    newest = opened(after(first), SECOND)
    other = opened(dataclasses.replace(ONE.manifest, leaf_hours=9), OWNER)
    assert chain(first, newest, opened(after(first, epoch=9, owners=OWNERS), OWNER)) == (first, newest)
    assert chain(first, newest, other, opened(after(other, epoch=9), OWNER))[-1] == newest


def test_of_two_of_one_epoch_the_one_that_others_follow_counts() -> None:
    """The other is named."""
    for other in (TWIN, TWO):
        goes_on = opened(after(other, vip_pool="127.10.0.0/17"), OWNER)
        found = arrange(kept(ONE, TWO, TWIN, goes_on), MESH)
        assert found.chain == (ONE, other, goes_on)
        assert len(found.ignored) == 1
        assert "another of its epoch" in found.ignored[0]
    assert chain(ONE, TWO, TWIN)[-1] in (TWO, TWIN)


@pytest.mark.parametrize("changes", [{"version": 3}, {"critical": ["floor"], "floor": 1}], ids=["version", "critical"])
def test_what_only_a_newer_program_can_read_holds_an_older_one_back(changes: dict[str, object]) -> None:
    """Where the owners signed it and it is the newest."""
    envelope = of_newer_program(after(TWO), **changes)
    files = {**kept(ONE, TWO), f"3-{'0' * 64}": envelope}
    found = arrange(files, MESH)
    assert found.newest == TWO
    assert "needs a newer program" in found.unreadable
    assert arrange({**files, **kept(THREE)}, MESH).unreadable == "", "it is not the newest"
    forged = envelope.partition(".")[0] + "." + base64.urlsafe_b64encode(bytes(64)).decode().rstrip("=")
    assert arrange({**kept(ONE, TWO), "3": forged}, MESH).unreadable == ""


def test_a_history_of_another_mesh_does_not_count() -> None:
    """The owners of several meshes may have one key."""
    other = opened(dataclasses.replace(ONE.manifest, cluster="staging"), OWNER)
    app = dataclasses.replace(ONE.manifest.coordinators, app_id="11" * 20)
    foreign = opened(after(ONE, coordinators=app), OWNER)
    for manifest in (other, foreign):
        found = arrange({**kept(ONE), name_of(manifest): manifest.envelope}, MESH)
        assert found.chain == (ONE,)
        assert "is of cluster" in found.ignored[0]


def test_what_is_in_force_by_now_extends_the_history() -> None:
    """Again and again nothing; over a gap, and beside another of its epoch, as if all lay on the disk."""
    history = History()
    for signed in (ONE, ONE, TWO, THREE):
        history = extend(history, signed, MESH)
    assert history.chain == (ONE, TWO, THREE)
    assert extend(history, FIVE, MESH).chain == (FIVE,)
    assert extend(extend(History(), TWIN, MESH), TWO, MESH).chain in ((TWO,), (TWIN,))


def test_manifests_of_the_app_before_a_handover_are_of_the_same_mesh() -> None:
    """For the new coordinators, and for the former ones, by the manifest that names both; without it they are not."""
    app = ONE.manifest.coordinators.app_id
    given = Handover(from_app_id=app, until=2_000_000_000, urls=("https://former",))
    own = dataclasses.replace(TWO.manifest.coordinators, app_id="77" * 20, handover=given)
    moved = opened(after(TWO, coordinators=own), OWNER)
    last = opened(after(moved, coordinators=dataclasses.replace(own, handover=None)), OWNER)
    for mesh in (MESH, dataclasses.replace(MESH, app_id="77" * 20)):
        found = arrange(kept(ONE, TWO, moved, last), mesh)
        assert found.chain == (ONE, TWO, moved, last)
        assert (found.last_of(app), found.last_of("77" * 20), found.last_of("88" * 20)) == (TWO, last, None)
    heir = dataclasses.replace(MESH, app_id="77" * 20)
    assert arrange(kept(ONE, TWO), heir).chain == ()
    assert arrange(kept(ONE, TWO), dataclasses.replace(heir, apps=own.apps)).chain == (ONE, TWO)
