"""Which manifest may follow which: one judgement for all who take manifests. Pure.

A manifest follows its head when it has the next epoch, names the head's digest, is of the same cluster and the same
coordinators' app, and is signed by the head's owners. So a manifest that was signed before the owners changed, or one of
two that were signed at the same time, does not pass for the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from topology.envelope import Signed, open_envelope
from topology.manifest import Manifest, ManifestError
from topology.owners import Owners


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
    """Not signed by those that have to sign, or no manifest."""


class SuccessionError(ManifestError):
    """A manifest does not follow the head. The message says why."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def follow(head: Signed, envelope: str) -> Signed:
    """The manifest in `envelope`, which is the successor of `head`. SuccessionError."""
    found = _open(envelope, head.manifest.owners)
    _check_same_mesh(head.manifest, found.manifest)
    _check_newer(head, found)
    if found.manifest.epoch > head.manifest.epoch + 1:
        raise SuccessionError(
            Fault.GAP,
            f"{_named(found)} does not follow {_named(head)} directly; those in between are needed first",
        )
    return found


def overtake(held: Signed, envelope: str, *, settled: bool, signed: bool = True) -> Signed | None:
    """The manifest in `envelope` when it counts more than `held`, of which the reader may have missed successors; None
    when `held` goes on. SuccessionError when it is not to be believed.

    `settled`: the coordinators enforce `held`, so another one of the same epoch is a fork. Otherwise `held` is what the
    reader began with, and a coordinator's manifest of the same epoch replaces it. `signed=False` skips signatures.
    """
    found = _open(envelope, held.manifest.owners if signed else None)
    _check_same_mesh(held.manifest, found.manifest)
    if found.digest == held.digest or found.manifest.epoch < held.manifest.epoch:
        return None
    if found.manifest.epoch == held.manifest.epoch and not settled:
        return found
    _check_newer(held, found)
    return found


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
            raise SuccessionError(Fault.GAP, f"the history begins with {_named(first)}, expected epoch 1")
        found.append(first)
    return tuple(found)


def _open(envelope: str, owners: Owners | None) -> Signed:
    try:
        return open_envelope(envelope, owners)
    except ManifestError as error:
        raise SuccessionError(Fault.INVALID, str(error)) from error


def _check_same_mesh(head: Manifest, found: Manifest) -> None:
    if found.cluster != head.cluster:
        raise SuccessionError(Fault.FOREIGN, f"the manifest is of cluster {found.cluster!r}, not of {head.cluster!r}")
    if found.coordinators.app_id != head.coordinators.app_id:
        raise SuccessionError(
            Fault.FOREIGN,
            f"the manifest names the coordinators' app {found.coordinators.app_id}, not {head.coordinators.app_id}",
        )


def _check_newer(head: Signed, found: Signed) -> None:
    if found.digest == head.digest:
        raise SuccessionError(Fault.IDENTICAL, f"{_named(found)} is in force already")
    if found.manifest.epoch < head.manifest.epoch:
        raise SuccessionError(Fault.OLDER, f"{_named(found)} is older than {_named(head)}, which is in force")
    direct = found.manifest.epoch == head.manifest.epoch + 1
    if found.manifest.epoch == head.manifest.epoch or (direct and found.manifest.previous != head.digest):
        raise SuccessionError(
            Fault.FORKED,
            f"{_named(found)} follows another manifest than {_named(head)}, which is in force: two were signed for one "
            "epoch",
        )


def _named(signed: Signed) -> str:
    return f"epoch {signed.manifest.epoch} ({signed.digest[:12]})"
