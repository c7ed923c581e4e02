"""Names of the routes that this boot has had, for those that it has no more: programs still ask for them, and whoever
else would answer is not to be asked (dns.zone).

They lie in the private folder, so that a sidecar that starts again knows them. A boot that begins later has never told
anybody of them; its programs know what is in their own configuration, which the owners measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dns.zone import is_label
from runtime.consul import write_private

FILE = "routes.json"
MAX_NAMES = 4096
"""Names that are kept; a mesh of 1,000 routes may replace each of them three times in a boot."""


def read(state_dir: Path) -> tuple[str, ...]:
    """What `keep` wrote; nothing when there is nothing that can be read."""
    try:
        found = json.loads((state_dir / FILE).read_text(encoding="ascii"))
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(name for name in found if isinstance(name, str) and is_label(name)) if isinstance(found, list) else ()


def added(seen: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    """`seen` with the names in force behind it; the ones that were in force longest ago give way."""
    now = dict.fromkeys(sorted(names))
    return (*(name for name in seen if name not in now), *now)[-MAX_NAMES:]


def keep(state_dir: Path, seen: tuple[str, ...]) -> None:
    """Notes the names. OSError when the file cannot be written."""
    write_private(state_dir / FILE, json.dumps(seen))
