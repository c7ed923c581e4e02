"""Whose signatures count, out of a process's environment: the same for coordinators, sidecars and the bootstrap
endpoint. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime import values
from runtime.env import EnvReader, Problem
from topology.owners import OWNERS_VARIABLE, Owners, parse

UNSIGNED = "MESH_INSECURE_UNSIGNED_MANIFEST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the environment says."""

    owners: Owners | None
    """Those of the measured compose file; None: signatures are not looked at, or `reader` has the problem."""
    insecure: tuple[str, ...]
    """What an operator must keep being told."""


def read(reader: EnvReader) -> Given:
    """The owners that `reader` holds. Every problem is the reader's."""
    reader.hint(
        "MESH_MANIFEST", "no environment has a manifest: ./mesh set gives it to the coordinators, and all get it there"
    )
    unsigned = reader.optional(UNSIGNED, values.flag, False)
    none: Owners | None = None
    if unsigned:
        if reader.optional(OWNERS_VARIABLE, parse, none) is not None:
            reader.problems.append(Problem(UNSIGNED, f"contradicts {OWNERS_VARIABLE}; unset one of them"))
        return Given(owners=None, insecure=(f"the manifest is not signed ({UNSIGNED})",))
    wanted = f"KEY, or '2 of KEY, KEY, KEY' (or, for local use, {UNSIGNED}=1)"
    return Given(owners=reader.required(OWNERS_VARIABLE, parse, none, wanted), insecure=())
