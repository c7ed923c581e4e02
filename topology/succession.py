"""Which manifest may follow which: one judgement for all who take manifests. Pure.

A manifest follows its head when it has the next epoch, names the head's digest, is of the same cluster and the same
coordinators' app (or says from which one it takes the mesh over), counts no rotation back, and is signed by the head's
owners. So a manifest that was signed before the owners changed, or one of two that were signed at the same time, does
not pass for the newest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum

from topology.envelope import Signed, UnreadableError, claims, digest_of, message_of, open_envelope, signatures
from topology.manifest import Manifest
from topology.owners import Owners, signers, text_of
from topology.trees import ManifestError


class Fault(Enum):
    """Why a manifest does not follow."""

    IDENTICAL = "identical"
    OLDER = "older"
    FORKED = "forked"
    """Two manifests follow one."""
    GAP = "gap"
    """Manifests in between are missing."""
    FOREIGN = "foreign"
    """Of another cluster or another coordinators' app."""
    INVALID = "invalid"
    """Not signed by those that have to sign."""
    TURNED_BACK = "turned back"
    """A count of `rotate` goes down: the key or text that it stands for is known to whom it was taken from."""
    UNREADABLE = "unreadable"
    """Well signed, and by its version or `critical` for a newer program."""
    WRONG = "wrong"
    """Well signed, and no manifest."""

    @property
    def unread(self) -> bool:
        """The owners signed it, and what they say in it is not known here: it is not overwritten, and nothing older is
        enforced in its place.
        """
        return self in (Fault.UNREADABLE, Fault.WRONG)


class SuccessionError(ManifestError):
    """A manifest does not follow the head. The message says why."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def follow(head: Signed, envelope: str, *, signed: bool = True) -> Signed:
    """The manifest in `envelope`, the successor of `head`. SuccessionError. `signed=False` skips signatures.

    The head once more is IDENTICAL, whoever signed it: where it names other owners, it is signed by those of before.
    """
    if _repeats(head, envelope):
        raise SuccessionError(Fault.IDENTICAL, f"{head.name} is in force already")
    found = _open(envelope, head.manifest.owners if signed else None)
    _check_same_mesh(head.manifest, found.manifest)
    _check_newer(head, found)
    _check_next(head, found)
    return found


def pass_over(head: Signed, envelope: str) -> Signed:
    """What stands for the manifest in `envelope`, which follows `head`, is well signed, and cannot be read here: `head`
    in its place, by whose owners the next one is judged that can be read. SuccessionError where it does not follow.
    """
    said = claims(envelope)
    own = head.manifest
    expected = (own.epoch + 1, own.cluster, own.coordinators.app_id.lower(), head.digest)
    if said is None or (said.epoch, said.cluster, said.app_id.lower(), said.previous) != expected:
        raise SuccessionError(Fault.UNREADABLE, f"a manifest that cannot be read here does not follow {head.name}")
    manifest = replace(own, epoch=said.epoch, previous=head.digest)
    return Signed(manifest=manifest, digest=digest_of(envelope), envelope=envelope)


def overtake(held: Signed, envelope: str, *, settled: bool, gaps: bool = False, signed: bool = True) -> Signed | None:
    """The manifest in `envelope` when it counts more than `held`; None when `held` goes on. SuccessionError when it is
    not to be believed.

    `settled`: the coordinators enforce `held`, so what does not follow `held` is a fork, or it is told from one by
    those in between, which are needed first (GAP). Otherwise `held` is what the reader began with, and a coordinator's
    manifest of the same epoch, or one that follows such a one, replaces it. `gaps`: those in between may be missing:
    only for what is known to have been in force, as of a coordinator's own disk. `signed=False` skips signatures.
    """
    if _repeats(held, envelope):
        return None
    found = _open(envelope, held.manifest.owners if signed else None)
    _check_same_mesh(held.manifest, found.manifest)
    if found.manifest.epoch < held.manifest.epoch:
        return None
    if settled:
        _check_newer(held, found)
        if not gaps:
            _check_next(held, found)
    return found


def unproven(owners: Owners, found: Signed) -> str | None:
    """Why `found`, which follows a manifest that names `owners`, is not to be put in force though they signed it: it
    names others, and of those not enough have signed it. None where all is well.

    Whoever is to sign what follows shows so that the keys are there. A key with a mistyped letter, or one that was
    lost, would lock every owner out for ever.
    """
    named = found.manifest.owners
    if named == owners or signed_by(found, named):
        return None
    return (
        f"{found.name} names other owners ({text_of(named)}), and is not signed by {named.threshold} of them: who is "
        "to sign from now on has to sign this one, too; ./mesh sign it with their keys as well"
    )


def chain(owners: Owners, envelopes: Iterable[str]) -> tuple[Signed, ...]:
    """The manifests in `envelopes`, each of which follows the one before. The first is the cluster's first, signed by
    `owners`. SuccessionError names the first that is wrong; without any there is no manifest.
    """
    found: list[Signed] = []
    for envelope in envelopes:
        if found:
            found.append(follow(found[-1], envelope))
            continue
        first = _open(envelope, owners)
        if first.manifest.previous is not None:
            raise SuccessionError(Fault.GAP, f"the history begins with {first.name}, expected epoch 1")
        found.append(first)
    return tuple(found)


def led(owners: Owners, envelopes: Sequence[str]) -> Signed:
    """The last of `envelopes`, which come oldest first, where it leads back to `owners`: the first that counts is
    signed by them, each after that by the owners whom the one before names. Those in which no owner was replaced may be
    missing, and what does not count is left out. SuccessionError for the last one.
    """
    found: Signed | None = None
    for envelope in envelopes[:-1]:
        # A mesh may have begun before these owners had it.
        with contextlib.suppress(SuccessionError):
            found = _after(found, envelope, owners)
    return _after(found, envelopes[-1], owners)


def _after(found: Signed | None, envelope: str, owners: Owners) -> Signed:
    """The manifest in `envelope`, signed by the owners that `found` names, before which some may be missing."""
    if found is None:
        return _open(envelope, owners)
    each = _open(envelope, found.manifest.owners)
    _check_same_mesh(found.manifest, each.manifest)
    _check_newer(found, each)
    return each


def overruled(chain: Sequence[Signed], others: Iterable[Signed], first: Owners | None = None) -> bool:
    """Whether one of `others` is the word of owners whom `chain`, which comes oldest first, had replaced before: signed
    by those, later than they were replaced, and by none that came after them. Then all that follows it is, too, however
    great its epoch: a key that was replaced rules nothing.

    `first` are those of the measured compose file. Where they signed the first of the chain, and it names others, it
    has replaced them.
    """
    known = {each.digest for each in chain}
    strangers = [each for each in others if each.digest not in known]
    began = first if first is not None and chain and signed_by(chain[0], first) else None
    for n, (before, after) in enumerate(zip((began, *(each.manifest.owners for each in chain)), chain, strict=False)):
        if before is None or before == after.manifest.owners:
            continue
        later = [each.manifest.owners for each in chain[n:]]
        for each in strangers:
            late = each.manifest.epoch > after.manifest.epoch and signed_by(each, before)
            if late and not any(signed_by(each, owners) for owners in later):
                return True
    return False


def signed_by(signed: Signed, owners: Owners) -> bool:
    """Whether as many of `owners` signed it as have to."""
    # All of them are looked for: it may have been signed by former owners first.
    made = signatures(signed.envelope)
    return len(signers(owners, message_of(signed.envelope), made)) >= owners.threshold


def _repeats(held: Signed, envelope: str) -> bool:
    """Whether `envelope` has the manifest `held`, under whatever signatures."""
    with contextlib.suppress(ManifestError):
        return digest_of(envelope) == held.digest
    return False


def _open(envelope: str, owners: Owners | None) -> Signed:
    try:
        return open_envelope(envelope, owners)
    except UnreadableError as error:
        raise SuccessionError(Fault.UNREADABLE if error.newer else Fault.WRONG, f"the manifest {error}") from error
    except ManifestError as error:
        raise SuccessionError(Fault.INVALID, str(error)) from error


def _check_same_mesh(head: Manifest, found: Manifest) -> None:
    if found.cluster != head.cluster:
        raise SuccessionError(Fault.FOREIGN, f"the manifest is of cluster {found.cluster!r}, not of {head.cluster!r}")
    # A handover is taken back by naming the former app again, and led elsewhere by naming a third.
    if not found.coordinators.apps & head.coordinators.apps:
        raise SuccessionError(
            Fault.FOREIGN,
            f"the manifest names the coordinators' app {found.coordinators.app_id}, not {head.coordinators.app_id}, "
            "and no coordinators.handover from that one",
        )


def _check_newer(head: Signed, found: Signed) -> None:
    if found.digest == head.digest:
        raise SuccessionError(Fault.IDENTICAL, f"{found.name} is in force already")
    if found.manifest.epoch < head.manifest.epoch:
        raise SuccessionError(Fault.OLDER, f"{found.name} is older than {head.name}, which is in force")
    direct = found.manifest.epoch == head.manifest.epoch + 1
    if found.manifest.epoch == head.manifest.epoch or (direct and found.manifest.previous != head.digest):
        raise SuccessionError(
            Fault.FORKED,
            f"{found.name} follows another manifest than {head.name}, which is in force: two were signed for one epoch",
        )
    _check_counts(head, found)


def _check_counts(head: Signed, found: Signed) -> None:
    """A secret that the manifest drops has no count any more."""
    before, after = head.manifest.rotate, found.manifest.rotate
    counts = [("rotate.gossip", before.gossip, after.gossip)]
    counts += [
        (f"rotate.secrets.{name}", number, after.secrets.get(name, 0))
        for name, number in sorted(before.secrets.items())
        if name in found.manifest.secrets
    ]
    for entry, old, new in counts:
        if new < old:
            raise SuccessionError(
                Fault.TURNED_BACK,
                f"{found.name} has {entry} {new}, and {head.name} has {old}: a count that goes down brings back what "
                f"was replaced; leave it at {old}, or raise it",
            )


def _check_next(head: Signed, found: Signed) -> None:
    if found.manifest.epoch > head.manifest.epoch + 1:
        raise SuccessionError(
            Fault.GAP,
            f"{found.name} does not follow {head.name} directly; those in between are needed first",
        )
