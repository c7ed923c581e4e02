"""The newest manifest that this boot has taken, for a sidecar that starts again within it.

It lies in the private folder, beside the boot's keys: it was judged when it was taken, and nobody else writes there. So
a sidecar that restarts has its routes at once, also while no coordinator answers, and is not led back to an older one.
It is kept for the latter also where it cannot be carried out: the group was dropped, or this machine failed to.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from runtime.consul import write_private
from topology.envelope import Signed, open_envelope
from topology.trees import ManifestError

FILE = "manifest.signed"
TRIED = "manifest.tried"
"""Beside it: the digest of the manifest that a start carries out now, or that one ended over."""


def read(state_dir: Path, cluster: str) -> Signed | None:
    """What `keep` wrote; None when there is nothing that can be read, or it is of another cluster."""
    try:
        found = open_envelope((state_dir / FILE).read_text(encoding="ascii"), None)
    except (OSError, ValueError, ManifestError):
        return None
    return found if found.manifest.cluster == cluster else None


def keep(state_dir: Path, signed: Signed) -> None:
    """Notes `signed`, over which no start has ended. OSError when the file cannot be written."""
    write_private(state_dir / FILE, signed.envelope)
    (state_dir / TRIED).unlink(missing_ok=True)


def try_once(state_dir: Path, signed: Signed) -> bool:
    """Notes that this start carries `signed` out, until `keep` says that it did; False when a start before has ended
    over it, and so might each. Where that cannot be noted it is tried all the same.
    """
    with contextlib.suppress(OSError):
        if (state_dir / TRIED).is_file() and (state_dir / TRIED).read_bytes() == signed.digest.encode():
            return False
        write_private(state_dir / TRIED, signed.digest)
    return True
