"""Which manifest may follow which."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.topology.support import after, opened, sealed
from tests.topology.test_render import deployment, starter
from topology import envelope as envelopes
from topology import render
from topology.envelope import Signed, seal
from topology.handover import Handover
from topology.manifest import Manifest, Rotate, SecretEntry, encode
from topology.owners import Owners, key_of
from topology.succession import Fault, SuccessionError, chain, follow, led, overruled, overtake, pass_over, unproven

ALICE, BOB, CAROL = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
TWO_OF_THREE = Owners(keys=(key_of(ALICE), key_of(BOB), key_of(CAROL)), threshold=2)
FIRST = dataclasses.replace(
    render.manifest(starter(), deployment()), epoch=1, previous=None, owners=Owners(keys=(key_of(ALICE),))
)


def signed(manifest: Manifest, *keys: Ed25519PrivateKey) -> Signed:
    """The manifest as opened from its envelope, which ALICE signs unless told otherwise."""
    return opened(manifest, *(keys or (ALICE,)))


HEAD = signed(FIRST)
NEXT = signed(after(HEAD))


def test_the_next_epoch_follows() -> None:
    """With the head's digest and its owner's signature."""
    assert follow(HEAD, NEXT.envelope) == NEXT


def other_app(manifest: Manifest) -> Manifest:
    """The same for other coordinators."""
    return dataclasses.replace(manifest, coordinators=dataclasses.replace(manifest.coordinators, app_id="ee" * 20))


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        (HEAD, Fault.IDENTICAL),
        (signed(dataclasses.replace(FIRST, routes=())), Fault.FORKED),
        (signed(after(HEAD, previous="00" * 32)), Fault.FORKED),
        (signed(after(HEAD, epoch=3)), Fault.GAP),
        (signed(after(HEAD, cluster="other")), Fault.FOREIGN),
        (signed(other_app(after(HEAD))), Fault.FOREIGN),
        (signed(after(HEAD), BOB), Fault.INVALID),
    ],
)
def test_what_does_not_follow_is_refused_with_its_reason(candidate: Signed, fault: Fault) -> None:
    """Identical, forked, with a gap, foreign, or signed by somebody else."""
    with pytest.raises(SuccessionError) as caught:
        follow(HEAD, candidate.envelope)
    assert caught.value.fault is fault


def handed_over(head: Signed, to: str, handover_from: str) -> Manifest:
    """The manifest by which `head` gives the mesh to the coordinators' app `to`."""
    given = Handover(from_app_id=handover_from, until=2_000_000_000, urls=("https://former.example",))
    own = dataclasses.replace(head.manifest.coordinators, app_id=to, handover=given)
    return after(head, coordinators=own)


def test_another_app_takes_the_mesh_over_by_the_owners_word_alone() -> None:
    """From the app that has it; by those who sign. What follows is of the new app, with or without the entry."""
    before = HEAD.manifest.coordinators.app_id
    moved = signed(handed_over(HEAD, "ee" * 20, before))
    assert follow(HEAD, moved.envelope) == moved
    assert overtake(HEAD, moved.envelope, settled=True) == moved
    for coordinators in (moved.manifest.coordinators, dataclasses.replace(moved.manifest.coordinators, handover=None)):
        further = signed(after(moved, coordinators=coordinators))
        assert follow(moved, further.envelope) == further
    assert chain(FIRST.owners, (HEAD.envelope, moved.envelope)) == (HEAD, moved)
    for wrong, fault in (
        (signed(handed_over(HEAD, "ee" * 20, "dd" * 20)), Fault.FOREIGN),
        (signed(handed_over(HEAD, "ee" * 20, before), BOB), Fault.INVALID),
    ):
        with pytest.raises(SuccessionError) as caught:
            follow(HEAD, wrong.envelope)
        assert caught.value.fault is fault


def test_a_handover_is_taken_back_or_led_elsewhere_by_the_next_manifest() -> None:
    """An app of which neither manifest speaks is foreign."""
    before = HEAD.manifest.coordinators
    moved = signed(handed_over(HEAD, "ee" * 20, before.app_id))
    back = signed(after(moved, coordinators=before))
    assert follow(moved, back.envelope) == back
    third = signed(handed_over(moved, "dd" * 20, before.app_id))
    assert follow(moved, third.envelope) == third
    with pytest.raises(SuccessionError, match=r"no coordinators\.handover"):
        follow(HEAD, signed(other_app(after(HEAD))).envelope)


def test_an_older_manifest_is_refused() -> None:
    """Also one that was in force before."""
    with pytest.raises(SuccessionError) as caught:
        follow(NEXT, HEAD.envelope)
    assert caught.value.fault is Fault.OLDER


ROTATED = signed(
    dataclasses.replace(
        FIRST,
        secrets={"database": SecretEntry(owner="api", groups=())},
        rotate=Rotate(gossip=2, secrets={"database": 3}),
    )
)


@pytest.mark.parametrize(
    ("rotate", "entry"),
    [
        (Rotate(gossip=1, secrets={"database": 3}), "rotate.gossip 1, and .* has 2"),
        (Rotate(gossip=2, secrets={"database": 2}), "rotate.secrets.database 2, and .* has 3"),
        (Rotate(gossip=3), "rotate.secrets.database 0, and .* has 3"),
    ],
)
def test_no_rotation_is_taken_back(rotate: Rotate, entry: str) -> None:
    """It would bring back a key or a text that others know, also where manifests in between were missed."""
    back = signed(after(ROTATED, rotate=rotate))
    with pytest.raises(SuccessionError, match=entry) as caught:
        follow(ROTATED, back.envelope)
    assert caught.value.fault is Fault.TURNED_BACK
    with pytest.raises(SuccessionError, match=entry):
        overtake(ROTATED, signed(after(back, rotate=rotate)).envelope, settled=True)


def test_a_rotation_goes_on_or_ends_with_its_secret() -> None:
    """A count that is as it was, greater, or of a secret that is no more."""
    for changes in (
        {},
        {"rotate": Rotate(gossip=3, secrets={"database": 3})},
        {"rotate": Rotate(gossip=2), "secrets": {}},
    ):
        following = signed(after(ROTATED, **changes))
        assert follow(ROTATED, following.envelope) == following


def test_the_predecessors_owners_sign() -> None:
    """A change of owners needs the old ones; what comes after it needs the new ones, as many as it says."""
    changed = signed(after(HEAD, owners=TWO_OF_THREE))
    assert follow(HEAD, changed.envelope) == changed
    further = after(changed, routes=())
    assert follow(changed, seal(further, BOB, CAROL)).manifest == further
    for keys in ((ALICE,), (BOB,), (BOB, BOB)):
        with pytest.raises(SuccessionError, match="signed by 1 of the owner keys that count, expected 2"):
            follow(changed, seal(further, *keys))
    # Signing one after the other, each with a key of his own.
    envelope = envelopes.attach(seal(further, BOB), CAROL.sign(envelopes.message(further)))
    assert follow(changed, envelope).manifest == further


def test_a_history_is_judged_from_its_first_manifest() -> None:
    """Every order but the right one is refused, and so is a beginning in the middle."""
    changed = signed(after(NEXT, owners=TWO_OF_THREE))
    last = signed(after(changed), ALICE, BOB)
    history = [HEAD, NEXT, changed, last]
    first = Owners(keys=(key_of(ALICE),))
    assert [it.digest for it in chain(first, (it.envelope for it in history))] == [it.digest for it in history]
    assert chain(first, ()) == ()
    for wrong, fault in (
        (history[1:], Fault.GAP),
        ([HEAD, changed], Fault.GAP),
        ([HEAD, NEXT, NEXT], Fault.IDENTICAL),
        ([HEAD, NEXT, HEAD], Fault.OLDER),
    ):
        with pytest.raises(SuccessionError) as caught:
            chain(first, (it.envelope for it in wrong))
        assert caught.value.fault is fault
    with pytest.raises(SuccessionError, match="signed by 0"):
        chain(Owners(keys=(key_of(BOB),)), [HEAD.envelope])


def test_the_same_manifest_is_the_same_under_whatever_signatures() -> None:
    """Also one that named other owners: those of before signed it, and they count no more."""
    changed = signed(after(HEAD, owners=Owners(keys=(key_of(BOB),))))
    for envelope in (changed.envelope, seal(changed.manifest, CAROL)):
        with pytest.raises(SuccessionError) as caught:
            follow(changed, envelope)
        assert caught.value.fault is Fault.IDENTICAL
        assert overtake(changed, envelope, settled=True) is None


def test_owners_that_were_replaced_rule_nothing() -> None:
    """However great the epoch, and whom they name: what comes after the change needs those that came. What they signed
    before, and a change at the same moment, is nobody's to tell from the genuine one.
    """
    bob = Owners(keys=(key_of(BOB),))
    changed = signed(after(HEAD, owners=bob))
    last = signed(after(changed), BOB)
    history = (HEAD, changed, last)
    for late in (
        signed(after(HEAD, epoch=9, previous="ee" * 32)),
        signed(after(signed(after(HEAD, routes=())))),
        signed(after(HEAD, epoch=9, previous="ee" * 32, owners=Owners(keys=(key_of(CAROL),)))),
    ):
        assert overruled(history, (late,))
        assert overruled(history, (HEAD, late, signed(after(late), CAROL)))
        assert not overruled((late,), history)
    both = signed(after(HEAD, epoch=9, previous="ee" * 32), ALICE, BOB)
    for fair in (history, (), (NEXT,), (signed(after(last), BOB),), (both,)):
        assert not overruled(history, fair)
    assert not overruled((HEAD, NEXT), (signed(after(HEAD, epoch=9, previous="ee" * 32)),)), "nobody was replaced"
    back = signed(after(last, owners=HEAD.manifest.owners), BOB)
    assert not overruled((*history, back), (signed(after(back)),)), "they were put back"
    assert overruled((*history, back), (signed(after(last, epoch=9, previous="ee" * 32), BOB),))


def test_the_first_manifest_may_replace_owners() -> None:
    """Those of the measured compose file, where they signed it; a new compose file's were not replaced by old ones."""
    alice, bob = HEAD.manifest.owners, Owners(keys=(key_of(BOB),))
    first = signed(dataclasses.replace(FIRST, owners=bob))
    history = (first, signed(after(first), BOB))
    late = signed(after(HEAD, epoch=9, previous="ee" * 32))
    assert overruled(history, (late,), alice)
    assert overruled(history, (signed(FIRST), signed(after(signed(FIRST), epoch=9))), alice)
    assert not overruled(history, (late,)), "nothing says who was before"
    assert not overruled((HEAD, NEXT), (signed(after(HEAD, epoch=9, previous="ee" * 32), BOB),), bob)
    for fair in (history, (signed(after(history[1]), BOB),), (signed(FIRST),)):
        assert not overruled(history, fair, alice)


def test_a_reader_takes_what_is_newer() -> None:
    """Those in between come first, unless it is known to have been in force. Of two of one epoch the coordinators'
    counts, once.
    """
    later = signed(after(NEXT))
    assert overtake(NEXT, later.envelope, settled=True) == later
    with pytest.raises(SuccessionError) as missing:
        overtake(HEAD, later.envelope, settled=True)
    assert missing.value.fault is Fault.GAP
    for settled in (True, False):
        assert overtake(HEAD, later.envelope, settled=settled, gaps=True) == later
    assert overtake(HEAD, later.envelope, settled=False) == later
    assert overtake(later, HEAD.envelope, settled=True) is None
    assert overtake(HEAD, HEAD.envelope, settled=True) is None
    twin = signed(dataclasses.replace(FIRST, routes=()))
    assert overtake(HEAD, twin.envelope, settled=False) == twin
    with pytest.raises(SuccessionError) as caught:
        overtake(HEAD, twin.envelope, settled=True)
    assert caught.value.fault is Fault.FORKED
    follows_twin = signed(after(twin))
    assert overtake(HEAD, follows_twin.envelope, settled=False) == follows_twin
    with pytest.raises(SuccessionError, match="follows another manifest than epoch 1"):
        overtake(HEAD, follows_twin.envelope, settled=True)
    with pytest.raises(SuccessionError, match="signed by 0"):
        overtake(HEAD, signed(after(HEAD), BOB).envelope, settled=True)


def test_what_cannot_be_read_is_passed_over_where_it_follows() -> None:
    """The next one names its digest, and is judged by the owners before it."""
    tree = json.loads(encode(NEXT.manifest)) | {"version": 3}

    def closed(**changes: object) -> str:
        return sealed(json.dumps(tree | changes, sort_keys=True, separators=(",", ":")).encode(), ALICE)

    stands = pass_over(HEAD, closed())
    last = signed(after(stands))
    assert follow(stands, last.envelope) == last
    for wrong in (
        {"epoch": 3},
        {"previous": "ee" * 32},
        {"previous": None},
        {"cluster": "other"},
        {"coordinators": {}},
    ):
        with pytest.raises(SuccessionError):
            pass_over(HEAD, closed(**wrong))
    for envelope in (signed(after(NEXT)).envelope, signed(after(stands), BOB).envelope):
        with pytest.raises(SuccessionError):
            follow(stands, envelope)


def test_owners_that_were_replaced_lead_to_those_that_count() -> None:
    """Only the manifests in which they were replaced are needed; who is not led to by them is not believed, nor a
    manifest of another mesh in between, nor one that is older than what leads to it.
    """
    bobs, carols = (Owners(keys=(key_of(key),)) for key in (BOB, CAROL))
    to_bob = signed(after(signed(after(HEAD)), owners=bobs), ALICE)
    to_carol = signed(after(signed(after(to_bob), BOB), owners=carols), BOB)
    last = signed(after(signed(after(to_carol), CAROL)), CAROL)
    chain_of = [each.envelope for each in (HEAD, to_bob, to_carol, last)]
    assert led(HEAD.manifest.owners, chain_of) == last
    assert led(bobs, chain_of) == last, "of a compose file that is older than the newest owners"
    assert led(carols, chain_of[-1:]) == last
    alices = HEAD.manifest.owners
    for owners, shown in ((alices, chain_of[-1:]), (alices, [*chain_of[:2], chain_of[3]]), (carols, chain_of[1:2])):
        with pytest.raises(SuccessionError, match="signed by 0"):
            led(owners, shown)
    foreign = signed(dataclasses.replace(to_bob.manifest, cluster="other"), ALICE)
    with pytest.raises(SuccessionError):
        led(alices, [chain_of[0], foreign.envelope, *chain_of[2:]])
    with pytest.raises(SuccessionError, match="older"):
        led(alices, [to_bob.envelope, signed(dataclasses.replace(FIRST, leaf_hours=9), BOB).envelope])


def test_what_only_a_newer_program_can_read_is_told_apart() -> None:
    """Well signed: a newer version, and an unknown critical field. Signed by somebody else it is just wrong."""
    newer = json.loads(encode(after(HEAD))) | {"version": 3}
    strict = json.loads(encode(after(HEAD))) | {"critical": ["floor"], "floor": 1}
    other = strict | {"routes": {"in": "another form"}}
    for tree in (newer, strict, other):
        payload = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
        for key, fault in ((ALICE, Fault.UNREADABLE), (BOB, Fault.INVALID)):
            with pytest.raises(SuccessionError) as caught:
                overtake(HEAD, sealed(payload, key), settled=True)
            assert caught.value.fault is fault
            assert ("needs a newer program" in str(caught.value)) == (fault is Fault.UNREADABLE)
            assert caught.value.fault.unread == (fault is Fault.UNREADABLE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leaf_hours": 0}, "manifest.leaf_hours is 0, expected 1 to 72"),
        ({"version": 1}, "manifest.version is 1, expected 2"),
        ({"version": "3"}, "manifest.version is '3', expected 2"),
        ({"routes": 1}, "manifest.routes must be a list"),
    ],
)
def test_what_is_well_signed_and_wrong_is_called_so(change: dict[str, Any], words: str) -> None:
    """By what is wrong with it, not by the program that it is said to need; it is no more overwritten than that of a
    newer program. Signed by somebody else, that is what is wrong.
    """
    tree = json.loads(encode(after(HEAD))) | change
    payload = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    for key, fault in ((ALICE, Fault.WRONG), (BOB, Fault.INVALID)):
        with pytest.raises(SuccessionError) as caught:
            overtake(HEAD, sealed(payload, key), settled=True)
        assert caught.value.fault is fault
        assert "newer program" not in str(caught.value)
        assert "upgrade" not in str(caught.value)
        assert caught.value.fault.unread == (fault is Fault.WRONG)
        assert (f"the manifest is well signed, and wrong: {words}" in str(caught.value)) == (fault is Fault.WRONG)


def test_all_owners_may_be_replaced_at_once() -> None:
    """Six of six by six of six, whoever signs first: both sets sign it, and neither stands in the other's way."""
    old, new = ([Ed25519PrivateKey.from_private_bytes(bytes([16 * n + m]) * 32) for m in range(6)] for n in (1, 2))
    before, later = (Owners(keys=tuple(map(key_of, keys)), threshold=6) for keys in (old, new))
    head = signed(dataclasses.replace(FIRST, owners=before), *old)
    for order in (old + new, new + old):
        found = follow(head, signed(after(head, owners=later), *order).envelope)
        assert unproven(before, found) is None
        assert follow(found, signed(after(found), *new).envelope).manifest.epoch == 3
