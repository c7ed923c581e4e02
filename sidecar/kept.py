"""The newest manifest that this boot has taken, for a sidecar that starts again within it.

It lies in the private folder, beside the boot's keys: it was judged when it was taken, and nobody else writes there. So
a sidecar that restarts has its routes at once, also while no coordinator answers, and is not led back to an older one.
"""

from __future__ import annotations

from pathlib import Path

from runtime.consul import write_private
from topology.envelope import Signed, open_envelope
from topology.manifest import ManifestError

FILE = "manifest.signed"


def read(state_dir: Path, cluster: str, group: str) -> Signed | None:
    """What `keep` wrote; None when there is nothing that can be read, or it is of another cluster or lacks `group`."""
    try:
        found = open_envelope((state_dir / FILE).read_text(encoding="ascii"), None)
    except (OSError, ValueError, ManifestError):
        return None
    return found if found.manifest.cluster == cluster and group in found.manifest.groups else None


def keep(state_dir: Path, signed: Signed) -> None:
    """Notes `signed`. OSError when the file cannot be written."""
    write_private(state_dir / FILE, signed.envelope)


def forget(state_dir: Path) -> None:
    """Removes what `keep` wrote: this machine cannot carry it out, and would try again at each start. OSError."""
    (state_dir / FILE).unlink(missing_ok=True)
