"""What `./mesh generate` does with trees before it merges them: what counts as generated, counts that only go up. Pure.

The next run takes away what was generated and is not found again, and keeps what a person wrote.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from topology.model import COORDINATOR

if TYPE_CHECKING:
    from topology.manifest import Rotate


def base(
    computed: Mapping[str, Any], inherited: Mapping[str, Collection[str]], edited: object, generated: object
) -> dict[str, Any]:
    """`computed` without the compose hashes that are in it for the manifest in force alone (`inherited`, by app) and
    that the draft `edited` has, and `generated`, what was computed last, has not: a person wrote them.

    Neither of the two has to be a manifest.
    """
    found: dict[str, Any] = json.loads(json.dumps(computed))
    for app, entry in {COORDINATOR: found["coordinators"], **found["groups"]}.items():
        by_hand = (_hashes(edited, app) - _hashes(generated, app)) & set(inherited.get(app, ()))
        entry["compose_hashes"] = [each for each in entry["compose_hashes"] if each not in by_hand]
    return found


def not_below(tree: Any, rotate: Rotate) -> Any:
    """`tree` with no count of `rotate` below the one in force: `./mesh evict` raises it there, no file of the cluster
    says so, and one that goes down is refused (`topology.succession`). What is no manifest stays as it is.
    """
    own, secrets = (tree.get(name) if isinstance(tree, dict) else None for name in ("rotate", "secrets"))
    if not isinstance(own, dict) or not isinstance(secrets, dict) or not isinstance(own.get("secrets"), dict):
        return tree
    counts = {name: count for name, count in rotate.secrets.items() if name in secrets}
    found = _raised({**own, "secrets": _raised(own["secrets"], counts)}, {"gossip": rotate.gossip})
    return {**tree, "rotate": found}


def _raised(counts: dict[str, Any], least: Mapping[str, int]) -> dict[str, Any]:
    found = dict(counts)
    for name, number in least.items():
        own = counts.get(name, 0)
        found[name] = max(own, number) if isinstance(own, int) else own
    return found


def _hashes(tree: Any, app: str) -> set[str]:
    try:
        entry = tree["coordinators"] if app == COORDINATOR else tree["groups"][app]
        return {str(each) for each in entry["compose_hashes"]}
    except (KeyError, TypeError):
        return set()
