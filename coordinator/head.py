"""The manifest that this coordinator enforces, and why it must not enforce any now. Pure.

It begins with the newest on its disk, or with the first that it was given. The records in Consul settle which one
counts; from then on only a successor takes its place.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from admission.protocol import MeshPeer
from coordinator import proposal
from runtime.guest import GuestInfo
from runtime.log import BY_STRANGERS
from topology.envelope import Claims, Signed, claims, digest_of
from topology.manifest import Manifest
from topology.succession import Fault, SuccessionError, overtake, pass_over
from topology.trees import ManifestError

log = logging.getLogger(__name__)


class Head:
    """`keep` is called before a manifest is enforced that the coordinators enforce, `changed` after each change."""

    def __init__(
        self,
        signed: Signed,
        info: GuestInfo,
        own: MeshPeer,
        *,
        check_signatures: bool,
        keep: Callable[[Signed], None],
        changed: Callable[[], None],
    ) -> None:
        """`signed` is what it begins with; `info` is what the guest agent says of this CVM, `own` its entry in the
        registry.
        """
        self.signed = signed
        self.adopted_at = 0.0
        """Unix seconds: when the coordinators adopted `signed`."""
        self.settled = False
        """The records have had their say."""
        self._info, self._own = info, own
        self._agreed = ""
        self._check = check_signatures
        self._keep = keep
        self._changed = changed
        self._floor: tuple[int, str] = (0, "")
        self._standoff: str | None = None
        self._refused: str | None = None
        self._passed: Signed | None = None
        """What stands for the successor of the head that cannot be read: what follows that one may be read again."""
        self.behind = False
        """The last that was to be taken does not follow the head directly: those in between have to come first."""
        self.left: str | None = None
        """What it began with, where that does not count."""

    @property
    def manifest(self) -> Manifest:
        """The one that is enforced."""
        return self.signed.manifest

    @property
    def misfit(self) -> str | None:
        """Why the manifest is not about this coordinator; None when it is."""
        return proposal.misfit(self.manifest, self._info) or proposal.dropped(self.manifest, self._own, self._info)

    @property
    def handed_over(self) -> bool:
        """Whether the manifest gives the mesh to another app, whose coordinators take over what is here."""
        return proposal.hands_over(self.manifest, self._info)

    @property
    def dismissed(self) -> str | None:
        """Why this coordinator has to leave: others enforce a manifest that is not about it. None: it stays."""
        return self.misfit if self._agreed == self.signed.digest else None

    @property
    def hindrance(self) -> str | None:
        """Why nothing is to be enforced now, as a sentence; None when the manifest is."""
        return self.misfit or self._standoff or self._floor[1] or None

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about the manifest."""
        return (
            *self.signed.notes,
            *(note for note in (self.left, self._refused) if note is not None),
        )

    def judge(self, envelope: str) -> Signed | None:
        """The manifest in `envelope` where it is newer, else None. SuccessionError when it is not to be believed; also
        when the records have had their say, and those between it and the head are not known: it may descend from
        another one.
        """
        return self._judge(envelope, settled=self.settled)

    def _judge(self, envelope: str, *, settled: bool) -> Signed | None:
        if envelope == self.signed.envelope or self._is_older(envelope):
            return None
        try:
            found = overtake(self.signed, envelope, settled=settled, signed=self._check)
        except SuccessionError as error:
            if error.fault is not Fault.GAP or self._passed is None:
                raise
            found = overtake(self._passed, envelope, settled=settled, signed=self._check)
        # Which of two of one epoch counts is for the records to say, not for whoever comes first.
        return None if found is None or found.manifest.epoch == self.manifest.epoch else found

    def _is_older(self, envelope: str) -> bool:
        """Whether `envelope` says of itself that it is of this mesh and of an epoch before. It takes no place then,
        whoever signed it: also owners who were replaced since.
        """
        found, head = claims(envelope), self.manifest
        return found is not None and found.epoch < head.epoch and _same_mesh(found, head)

    def is_in(self, envelope: str | None) -> bool:
        """Whether `envelope` has the manifest that is enforced, under whatever signatures."""
        with contextlib.suppress(ManifestError):
            return envelope is not None and digest_of(envelope) == self.signed.digest
        return False

    def proposed(self, envelope: str) -> Signed | None:
        """The manifest in `envelope`, which is to take the place of the one that is enforced; None when it is that one.
        RefusalError.
        """
        return proposal.judge(self.signed, envelope, self._info, self._own, signed=self._check)

    def brought(self, envelope: str) -> Signed | None:
        """The manifest in `envelope`, which anybody may have brought, where it is newer and may be set; else None. It
        may drop this coordinator. SuccessionError when it is not to be believed.
        """
        if len(envelope) > proposal.MAX_STORED:
            return None
        # Whoever brings it says nothing of what was in force: it follows the head, whatever the records will say.
        found = self._judge(envelope, settled=True)
        reason = proposal.why_not(self.signed, found, self._info, signed=self._check) if found is not None else None
        if found is None or reason is None:
            return found
        note = f"{found.name} was brought and is refused: {reason}"
        if self._refused != note:
            self._refused = note
            log.warning("manifest refused", extra={**BY_STRANGERS, "reason": note})
            self._changed()
        return None

    def take(self, envelope: str, adopted_at: float) -> bool:
        """Enforces the manifest in `envelope`, adopted at `adopted_at` (Unix seconds), when it is newer. One that is
        not to be believed is noted, and so is one to which some are missing (`behind`).
        """
        try:
            found = self.judge(envelope)
        except SuccessionError as error:
            # Owners may have changed in between, so that its signatures say nothing yet.
            self.behind = error.fault in (Fault.GAP, Fault.INVALID)
            if not self.cannot_read(envelope, error) and self._refused != (note := f"manifest refused: {error}"):
                self._refused = note
                log.warning("manifest refused", extra={**BY_STRANGERS, "reason": str(error)})
                self._changed()
            return False
        if found is not None:
            self.adopt(found, adopted_at)
            return True
        if self.behind:
            # Whoever shows the head, or one before it, has nothing that some are missing to.
            self.behind, self._refused = False, None
            self._changed()
        return False

    def cannot_read(self, envelope: str, error: SuccessionError) -> bool:
        """Stops enforcing when `error` says that a manifest that is not older is well signed and cannot be read, and it
        is of this mesh: owners may sign for several.
        """
        found, head = claims(envelope), self.manifest
        if not error.fault.unread or found is None or found.epoch < head.epoch:
            return False
        if not _same_mesh(found, head):
            return False
        with contextlib.suppress(SuccessionError):
            self._passed = pass_over(self.signed, envelope)
        self.stand_off(f"there is a manifest of epoch {found.epoch} that this coordinator cannot read: {error}")
        return True

    def adopt(self, found: Signed, adopted_at: float) -> None:
        """Enforces `found`, which was judged, and was adopted at `adopted_at` (Unix seconds)."""
        before = self.signed
        if found.digest == before.digest:
            return
        self._keep(found)
        if found.manifest.epoch >= self._floor[0]:
            self._floor = (0, "")
        self.signed, self.adopted_at, self._standoff, self._refused = found, adopted_at, None, None
        self.behind, self._passed = False, None
        if self.settled:
            self._agreed = found.digest
        if found.manifest.epoch <= before.manifest.epoch:
            self.left = f"{before.name}, with which it began, does not count: the coordinators enforce {found.name}"
            log.warning(
                "another manifest than it began with is in force", extra={"found": found.name, "own": before.name}
            )
        log.info("manifest adopted", extra={"epoch": found.manifest.epoch, "digest": found.digest})
        self._changed()

    def hold_back(self, epoch: int, reason: str) -> None:
        """Enforces nothing, for `reason`, until there is a manifest of `epoch` or a later one."""
        if epoch > self._floor[0]:
            log.error("no manifest is enforced", extra={"reason": reason})
            self._floor = (epoch, reason)
            self._changed()

    def stand_off(self, reason: str) -> None:
        """Enforces nothing, for `reason`, until a manifest is adopted or `settle` is called."""
        if self._standoff != reason:
            log.error("no manifest is enforced", extra={"reason": reason})
            self._standoff = reason
            self._changed()

    def agree(self) -> None:
        """The manifest that is enforced stands in the records, or another coordinator enforces it."""
        if self._agreed != self.signed.digest:
            self._agreed = self.signed.digest
            self._changed()

    def settle(self, adopted_at: float) -> None:
        """The records agree with what is enforced; they say that it was adopted at `adopted_at` (Unix seconds)."""
        self._keep(self.signed)
        self.settled, self.adopted_at, self._standoff = True, adopted_at, None
        self._agreed = self.signed.digest
        self._changed()


def _same_mesh(found: Claims, head: Manifest) -> bool:
    return (found.cluster, found.app_id.lower()) == (head.cluster, head.coordinators.app_id.lower())
