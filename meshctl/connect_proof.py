"""What `./mesh connect` trusts: the folder that `./mesh verify` wrote. IO: that folder's files, the clock.

Its bundle is verified again, as `./mesh verify --offline` does it, by the manifest that it ends with: the quote, the
history, the authorities, and what this machine has seen enforced. So a folder that somebody else made up is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshctl import verify_files
from meshctl.connect_target import Ports
from meshctl.errors import UserError
from meshctl.verify_files import BUNDLE

if TYPE_CHECKING:
    from evidence.bundle import Bundle
    from evidence.outside import Verified
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
    insecure: bool
    """By a development root: nothing is proven about any hardware."""
    ports: Ports | None
    """Those of its anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """By what quotes are judged."""

    development_root: bytes | None = None
    """DER; None: Intel's root."""
    seen: Path | None = None
    """Where is remembered what was seen enforced; None: where this machine keeps it for the mesh."""
    ports: Ports | None = None
    """Of a lab that runs here."""


async def read(folder: Path, anchors: tuple[Anchor, ...] = (Anchor(),)) -> Proof:
    """What `folder` proves now, by the first of `anchors` whose root its quote has. UserError where it is none of
    `./mesh verify`'s, or does not prove what it has to.
    """
    from evidence.bundle import MAX_BUNDLE, BundleError, decode
    from evidence.outside import UnprovenError
    from topology.trees import ManifestError

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
        found, anchor = await _verified(bundle, anchors)
    except (BundleError, UnprovenError, ManifestError) as error:
        raise UserError(f"{path} does not verify: {error}", _AGAIN) from error
    return Proof(
        manifest=found.head.manifest,
        digest=found.head.digest,
        mesh_ca=bundle.mesh_ca,
        root_ca=bundle.root_ca,
        insecure=found.evidence.development_root,
        ports=anchor.ports,
    )


async def _verified(bundle: Bundle, anchors: tuple[Anchor, ...]) -> tuple[Verified, Anchor]:
    """What is proven, and by which of `anchors`. BundleError, UnprovenError, ManifestError; UserError where what was
    seen cannot be read.
    """
    from evidence.bundle import BundleError
    from evidence.outside import Cause, Trusted, UnprovenError, verify
    from topology.envelope import open_envelope

    if not bundle.history:
        raise BundleError("it has no manifest")
    head = open_envelope(bundle.history[-1], None)
    kept = verify_files.seen_path(head.manifest.cluster, head.manifest.coordinators.app_id)
    for anchor in anchors:
        trusted = Trusted(manifest=head.manifest, digest=head.digest, development_root=anchor.development_root)
        seen = verify_files.read_seen(anchor.seen or kept)
        try:
            return await verify(bundle, trusted, nonce=None, seen=seen, now=time.time()), anchor
        except UnprovenError as error:
            if error.cause is not Cause.EVIDENCE or anchor is anchors[-1]:
                raise
    raise ValueError("expected at least one anchor")


def stamp(folder: Path) -> tuple[int, int, int] | None:
    """Differs when the folder was written anew; None while there is none."""
    try:
        found = (folder / BUNDLE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
