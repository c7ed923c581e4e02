"""What `./mesh connect` trusts: the folder that `./mesh verify` wrote. IO: that folder's files.

The quote was verified when the folder was written. Here what has to hang together is held against it: the manifest and
the certificates are those of the statement that the quote covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshctl.errors import UserError
from meshctl.verify_files import BUNDLE

if TYPE_CHECKING:
    from topology.manifest import Manifest

_AGAIN = "./mesh verify writes it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proven."""

    manifest: Manifest
    digest: str
    """The manifest's, hex."""
    mesh_ca: str
    """PEM, as the next."""
    root_ca: str


def read(folder: Path) -> Proof:
    """What `folder` proves. UserError where it is none of `./mesh verify`'s, or does not hang together."""
    from evidence.bundle import MAX_BUNDLE, BundleError, decode
    from evidence.outside import UnprovenError, authorities
    from topology.envelope import open_envelope
    from topology.manifest import ManifestError

    path = folder / BUNDLE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise UserError(
            f"there is nothing to verify by: {path} cannot be read ({error.strerror})",
            "./mesh verify first, and read what it proved; --bundle names another folder",
        ) from error
    try:
        bundle = decode(data)
        authorities(bundle)
        if not bundle.history:
            raise BundleError("it has no manifest")
        head = open_envelope(bundle.history[-1], None)
    except (BundleError, UnprovenError, ManifestError) as error:
        raise UserError(f"{path} does not hang together: {error}", _AGAIN) from error
    if head.digest != bundle.statement.head.digest:
        raise UserError(f"{path} does not hang together: its last manifest is not the one that was proven", _AGAIN)
    return Proof(manifest=head.manifest, digest=head.digest, mesh_ca=bundle.mesh_ca, root_ca=bundle.root_ca)


def stamp(folder: Path) -> tuple[int, int, int] | None:
    """Differs when the folder was written anew; None while there is none."""
    try:
        found = (folder / BUNDLE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
