"""The signed manifest and its owners out of a process's environment: the same for coordinators, sidecars and the
bootstrap endpoint. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime import values
from runtime.env import EnvReader, Problem
from topology.envelope import Signed, open_envelope
from topology.manifest import ManifestError
from topology.owners import OWNERS_VARIABLE, Owners, parse

MANIFEST = "MESH_MANIFEST"
UNSIGNED = "MESH_INSECURE_UNSIGNED_MANIFEST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the environment says."""

    signed: Signed | None
    """None: there is none, where there need not be one, or `reader` has the problem."""
    owners: Owners | None
    """Those of the measured compose file; None: signatures are not looked at, or `reader` has the problem."""
    insecure: tuple[str, ...]
    """What an operator must keep being told."""


def read(reader: EnvReader, *, needed: bool = True) -> Given:
    """The manifest that `reader` holds, opened. Every problem is the reader's; no manifest is one if it is `needed`."""
    if needed:
        envelope = reader.required(MANIFEST, values.text, "", "a manifest envelope, as the deployment renders it")
    else:
        envelope = reader.optional(MANIFEST, values.text, "")
    unsigned = reader.optional(UNSIGNED, values.flag, False)
    none: Owners | None = None
    if unsigned:
        owners = none
        if reader.optional(OWNERS_VARIABLE, parse, none) is not None:
            reader.problems.append(Problem(UNSIGNED, f"contradicts {OWNERS_VARIABLE}; unset one of them"))
    else:
        wanted = f"KEY, or '2 of KEY, KEY, KEY' (or, for local use, {UNSIGNED}=1)"
        owners = reader.required(OWNERS_VARIABLE, parse, none, wanted)
    signed = None
    if envelope and (unsigned or owners is not None):
        try:
            signed = open_envelope(envelope, owners)
        except ManifestError as error:
            reader.problems.append(Problem(MANIFEST, str(error)))
    insecure = (f"the manifest is not signed ({UNSIGNED})",) if unsigned else ()
    return Given(signed=signed, owners=owners, insecure=insecure)
