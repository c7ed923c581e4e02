"""What `./mesh set` and `evict` remember of a mesh, in the file of `./mesh verify`: a coordinator that shows less than
this machine has seen enforced is refused. IO: that file, questions to the coordinator.

The evidence of a coordinator that is asked has no nonce of ours. So nothing is remembered for its word alone, only what
the owner's own file vouches for: the manifest that was to be set, once it is in force, and the one that it follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl import verify_files
from meshctl.errors import UserError

if TYPE_CHECKING:
    from evidence.outside import Seen
    from meshctl.owner_access import Mesh
    from topology.envelope import Signed
    from topology.manifest import Manifest


class RollbackError(UserError):
    """A coordinator shows less than this machine has seen enforced, or another manifest. Nothing was set."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(
            f"rolled back: {reason}",
            "ask another coordinator (-c); ./mesh set the newest manifest that was in force; if nobody knows why it is "
            f"so, do not trust this mesh\nif this mesh was begun anew: remove {path}, and what was seen is forgotten",
            exit_code=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What was seen enforced of one mesh before this command."""

    path: Path
    seen: Seen | None

    def check(self, mesh: Mesh, head: Signed, wanted: Signed) -> None:
        """Returns when the coordinator of `mesh`, which shows `head`, is not behind what was seen: its history leads
        through that. RollbackError. One that is behind may be given that very manifest, `wanted`, once more.
        """
        seen, epoch = self.seen, head.manifest.epoch
        if seen is None or (epoch, head.digest) == (seen.epoch, seen.digest):
            return
        if epoch > seen.epoch:
            self._check_history(mesh, head, wanted, seen)
            return
        reason = f"{mesh.url} has {head.name}, and this machine has seen {_name(seen)} enforced"
        if epoch == seen.epoch or wanted.digest != seen.digest:
            raise RollbackError(reason, self.path)
        click.echo(f"warning: rolled back: {reason}; it is set once more", err=True)

    def check_first(self, mesh: Mesh, wanted: Signed) -> None:
        """Returns when a mesh that has no manifest may begin with `wanted`: nothing newer was seen. RollbackError."""
        seen, manifest = self.seen, wanted.manifest
        if seen is None or (manifest.epoch, wanted.digest) == (seen.epoch, seen.digest):
            return
        if manifest.epoch > seen.epoch + 1 or (manifest.epoch > seen.epoch and manifest.previous == seen.digest):
            return
        raise RollbackError(
            f"{mesh.url} has no manifest, this machine has seen {_name(seen)} enforced, and {wanted.name} does not "
            "follow that",
            self.path,
        )

    def _check_history(self, mesh: Mesh, head: Signed, wanted: Signed, seen: Seen) -> None:
        from topology.trees import ManifestError

        try:
            reason = _why_not_through(mesh.history(wanted.envelope, seen.epoch - 1), seen, head)
        except ManifestError as error:
            reason = str(error)
        if reason:
            raise RollbackError(
                f"the history of {mesh.url} does not lead from {_name(seen)}, which this machine has seen enforced, to "
                f"{head.name}: {reason}",
                self.path,
            )

    def remember(self, signed: Signed) -> None:
        """Keeps `signed` as seen in force. UserError where another process has seen another one meanwhile. Where it
        cannot be written that is said: what is in force is in force all the same.
        """
        from evidence.outside import Seen, UnprovenError

        found = Seen(epoch=signed.manifest.epoch, digest=signed.digest, root_sha256="")
        try:
            verify_files.write_seen(self.path, found)
        except UnprovenError as error:
            raise RollbackError(error.reason, self.path) from error
        except UserError as error:
            click.echo(f"warning: not remembered as seen in force: {error.message}", err=True)


def recall(mesh: Mesh, manifest: Manifest) -> Memory:
    """What this machine has seen of the mesh of `manifest`. UserError when that cannot be read."""
    path = mesh.seen or verify_files.seen_path(manifest.cluster, manifest.coordinators.app_id)
    return Memory(path=path, seen=verify_files.read_seen(path))


def _why_not_through(envelopes: tuple[str, ...], seen: Seen, head: Signed) -> str:
    """Why the manifests in `envelopes`, from the epoch of `seen` on, do not lead from that to `head`; "" when they do.
    ManifestError for the first that does not follow.
    """
    from topology.envelope import open_envelope
    from topology.succession import SuccessionError, follow, pass_over

    if not envelopes:
        return "it has none of then"
    found = open_envelope(envelopes[0], None)
    if (found.manifest.epoch, found.digest) != (seen.epoch, seen.digest):
        return f"it has {found.name} there"
    for envelope in envelopes[1:]:
        try:
            found = follow(found, envelope)
        except SuccessionError as error:
            if not error.fault.unread:
                raise
            found = pass_over(found, envelope)
        if found.digest == head.digest:
            return ""
    # It may have come into force a moment ago, and the history have it a moment later.
    follow(found, head.envelope)
    return ""


def _name(seen: Seen) -> str:
    from topology.envelope import SHOWN_DIGITS

    return f"epoch {seen.epoch} ({seen.digest:.{SHOWN_DIGITS}})"
