"""What of a manifest that is computed counts as generated, for the next run of `./mesh generate`. Pure.

The next run takes away what was generated and is not found again, and keeps what a person wrote.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from topology.model import COORDINATOR


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


def _hashes(tree: Any, app: str) -> set[str]:
    try:
        entry = tree["coordinators"] if app == COORDINATOR else tree["groups"][app]
        return {str(each) for each in entry["compose_hashes"]}
    except (KeyError, TypeError):
        return set()
