"""The manifests that were in force one after the other, as files and keys keep them. Pure.

Each is kept under its epoch and digest, as the owners signed it, and is never changed. What is kept is believed no more
than what a stranger brings: a file counts that is named for what it holds, and that the owners signed, or that one
which counts follows. So a damaged or forged one is left out by name, and cannot take a coordinator back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from admission.protocol import MAX_HANDOVERS
from topology.envelope import Signed, UnreadableError, claims, digest_of, open_envelope
from topology.owners import Owners
from topology.succession import overruled, overtake, signed_by
from topology.trees import ManifestError

_NAME = re.compile(r"[1-9][0-9]{0,18}-[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Whose history it is."""

    cluster: str
    app_id: str
    """The coordinators'."""
    owners: Owners | None
    """Those of the measured compose file; None skips signatures."""
    apps: frozenset[str] = frozenset()
    """Coordinators' apps that had the mesh before, or have it since, by the manifest that the coordinator began with.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is kept, put in order."""

    chain: tuple[Signed, ...] = ()
    """The newest that counts, and before it what it follows, as far back as there is no gap. Oldest first."""
    unproven: tuple[str, ...] = ()
    """Digests of those in the chain whose envelope is not signed by those that had to sign: what they say is sure, for
    the next one names their digest, and nobody outside would believe it."""
    ignored: tuple[str, ...] = ()
    """What does not count, each with the reason."""
    unreadable: str = ""
    """Why none may be enforced: a newer one is well signed, and this program cannot read it."""
    unreadable_epoch: int = 0
    """Of that one; 0 for none."""

    @property
    def newest(self) -> Signed | None:
        """None where nothing is kept."""
        return self.chain[-1] if self.chain else None

    @property
    def missing(self) -> str:
        """Digest of the manifest that the first of the chain follows, which is not kept; empty where nothing is
        missing.
        """
        return (self.chain[0].manifest.previous or "") if self.chain else ""

    def last_of(self, app_id: str) -> Signed | None:
        """The newest whose coordinators are of that app; None where there is none."""
        found = (it for it in reversed(self.chain) if it.manifest.coordinators.app_id == app_id.lower())
        return next(found, None)

    def handovers(self, room: int) -> tuple[str, ...]:
        """The envelopes before the newest in which owners were replaced, or that come first, oldest first; the last of
        them, as many as have at most `room` characters.
        """
        found: list[str] = []
        pairs = zip((None, *self.chain), self.chain[:-1], strict=False)
        for before, each in reversed(tuple(pairs)):
            if before is not None and before.manifest.owners == each.manifest.owners:
                continue
            room -= len(each.envelope)
            if room < 0 or len(found) == MAX_HANDOVERS:
                break
            found.append(each.envelope)
        return tuple(reversed(found))

    def up_to(self, signed: Signed, room: int) -> tuple[str, ...]:
        """The last of the envelopes that led to `signed`, as many as have at most `room` characters; its own last, and
        that one in any case.
        """
        digests = [each.digest for each in self.chain]
        led = self.chain[: digests.index(signed.digest)] if signed.digest in digests else ()
        found = [signed.envelope]
        room -= len(signed.envelope)
        for each in reversed(led):
            room -= len(each.envelope)
            if room < 0:
                break
            found.append(each.envelope)
        return tuple(reversed(found))


def name_of(signed: Signed) -> str:
    """Under which a manifest is kept."""
    return f"{signed.manifest.epoch}-{signed.digest}"


def is_name(text: str) -> bool:
    """Whether a manifest can be kept under `text`."""
    return _NAME.fullmatch(text) is not None


def order(name: str) -> tuple[int, str]:
    """What sorts names by epoch; first those that are none."""
    return (int(name.partition("-")[0]) if is_name(name) else 0, name)


def arrange(kept: Mapping[str, str], mesh: Mesh) -> History:
    """The order of the envelopes in `kept`, by the names that they are kept under."""
    found: dict[str, Signed] = {}
    ignored: list[str] = []
    closed: list[str] = []
    for name in sorted(kept, key=order):
        try:
            signed = open_envelope(kept[name], None)
            if name != name_of(signed):
                raise ManifestError(f"holds {name_of(signed)}")
            found[signed.digest] = signed
        except ManifestError as error:
            ignored.append(f"{name} {error}")
            closed.append(kept[name])
    apps = _apps(found.values(), mesh)
    for digest, signed in tuple(found.items()):
        if signed.manifest.cluster != mesh.cluster or signed.manifest.coordinators.app_id not in apps:
            own = signed.manifest
            ignored.append(f"{name_of(signed)} is of cluster {own.cluster!r}, app {own.coordinators.app_id}")
            closed.append(signed.envelope)
            del found[digest]
    counted, reasons = _counted(found.values(), mesh.owners)
    chain = _rightful(counted, found, mesh)
    newest = chain[-1] if chain else None
    ignored += [f"{name_of(it)} {reason}" for it, reason in reasons if it not in chain]
    ignored += [
        f"{name_of(it)} is another of its epoch"
        for it in counted
        if it not in chain and it.manifest.epoch >= chain[0].manifest.epoch
    ]
    epoch, reason = _unreadable(closed, newest, mesh)
    unproven = tuple(it.digest for n, it in enumerate(chain) if not _proven(it, chain, n, mesh))
    return History(chain=chain, unproven=unproven, ignored=tuple(ignored), unreadable=reason, unreadable_epoch=epoch)


def _apps(found: Iterable[Signed], mesh: Mesh) -> frozenset[str]:
    """The coordinators' apps that have had the mesh one after the other, as far as handovers in `found` say."""
    own = [each.manifest.coordinators for each in found if each.manifest.cluster == mesh.cluster]
    apps = {mesh.app_id.lower(), *mesh.apps}
    for _ in own:
        more = {app for each in own if each.apps & apps for app in each.apps} - apps
        if not more:
            break
        apps |= more
    return frozenset(apps)


def wanted(history: History, envelope: str, mesh: Mesh) -> Signed | None:
    """The manifest in `envelope` where the history lacks it: it comes before the first of the chain, or the chain has
    it without the signatures that it needs. None for any other, which is not read: nobody has signed it yet.

    It is to be signed by those that had to, as far as they are known: a digest says nothing of signatures.
    """
    with contextlib.suppress(ManifestError):
        digest = digest_of(envelope)
        if digest not in (history.missing, *history.unproven):
            return None
        found = open_envelope(envelope, None)
        if digest == history.missing:
            begins = found.manifest.previous is None
            return found if not begins or _proven(found, (found,), 0, mesh) else None
        n = [each.digest for each in history.chain].index(digest)
        return found if _proven(found, history.chain, n, mesh) else None
    return None


def _proven(signed: Signed, chain: Sequence[Signed], n: int, mesh: Mesh) -> bool:
    """Whether those signed `signed` that had to, which is the `n`-th of `chain`: the owners that the one before names.
    Of the first one those of the compose file, or its own: a newer compose file has others, and what is before it may
    be missing.
    """
    if mesh.owners is None:
        return True
    own = signed.manifest.owners
    return any(signed_by(signed, each) for each in ((chain[n - 1].manifest.owners,) if n else (mesh.owners, own)))


def extend(history: History, signed: Signed, mesh: Mesh) -> History:
    """`history` with `signed`, which is in force by now."""
    newest = history.newest
    if newest is not None and newest.digest == signed.digest:
        return history
    if newest is not None and newest.digest == signed.manifest.previous:
        return replace(history, chain=(*history.chain, signed))
    kept = {name_of(it): it.envelope for it in (*history.chain, signed)}
    return replace(arrange(kept, mesh), ignored=history.ignored)


def _counted(
    found: Iterable[Signed], owners: Owners | None
) -> tuple[tuple[Signed, ...], tuple[tuple[Signed, str], ...]]:
    """Those of `found`, which come by epoch, that the owners stand behind; and the others with the reason."""
    counted: dict[str, Signed] = {}
    reasons: list[tuple[Signed, str]] = []
    for signed in found:
        newest = max(counted.values(), key=lambda it: it.manifest.epoch, default=None)
        before = counted.get(signed.manifest.previous or "", newest)
        try:
            if before is None or signed.manifest.previous is None:
                # Of two first ones both: which comes first by its digest says nothing.
                open_envelope(signed.envelope, owners)
            else:
                overtake(before, signed.envelope, settled=True, gaps=True, signed=owners is not None)
        except ManifestError as error:
            reasons.append((signed, f"does not count: {error}"))
        else:
            counted[signed.digest] = signed
    return tuple(counted.values()), tuple(reasons)


def _back(newest: Signed | None, found: Mapping[str, Signed]) -> tuple[Signed, ...]:
    """`newest` and what it follows: the digest that its owners signed vouches for each, whoever signed that one."""
    chain: list[Signed] = []
    while newest is not None:
        chain.append(newest)
        newest = found.get(newest.manifest.previous or "")
    return tuple(reversed(chain))


def _rightful(counted: Iterable[Signed], found: Mapping[str, Signed], mesh: Mesh) -> tuple[Signed, ...]:
    """The chain with the newest of `counted`; but none that another one overrules, in which owners were replaced."""
    counted = tuple(counted)
    followed = {it.manifest.previous for it in counted}
    chains = [_back(it, found) for it in counted if it.digest not in followed]
    if mesh.owners is not None:
        chains = [
            it for it in chains if not any(overruled(other, it, mesh.owners) for other in chains if other is not it)
        ]
    return max(chains, key=lambda it: (it[-1].manifest.epoch, it[-1].digest), default=())


def _unreadable(closed: Iterable[str], newest: Signed | None, mesh: Mesh) -> tuple[int, str]:
    """Of those in `closed` the epoch of one that is newer, well signed, and cannot be read, and what is said of
    it; else nothing.
    """
    trusted = mesh.owners if newest is None or mesh.owners is None else newest.manifest.owners
    for envelope in closed:
        said = claims(envelope)
        if said is None or (said.cluster, said.app_id.lower()) != (mesh.cluster, mesh.app_id.lower()):
            continue
        if newest and said.epoch <= newest.manifest.epoch:
            continue
        with contextlib.suppress(ManifestError):
            try:
                open_envelope(envelope, trusted)
            except UnreadableError as error:
                return said.epoch, (
                    f"the disk has a manifest of epoch {said.epoch} that this coordinator cannot read: it {error}"
                )
    return 0, ""
