"""What the owners have revoked: single CVMs, apps and machines that are refused whatever else a manifest allows. Pure.

A revocation says what is bad, the rest of the manifest what is good: a compose file that several groups run, one
instance of an app, or a machine whose keys are known to have leaked is taken away in one line, and stays away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields


class RevocationError(ValueError):
    """An entry is not what it must be. The message is the end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One entry. Exactly one of the fields has a value."""

    peer_id: str | None = None
    """A slot: nobody holds it."""
    instance_id: str | None = None
    """One instance of a dstack app: 40 hex digits."""
    compose_hash: str | None = None
    """Every CVM that measures it, of whichever app: 64 hex digits."""
    device: str | None = None
    """Every CVM on this machine, by the platform ID (PPID) in Intel's certificate of it: 32 hex digits."""

    @property
    def text(self) -> str:
        """What is revoked, for people."""
        found = [(it.name, getattr(self, it.name)) for it in fields(self)]
        return " ".join(f"{name} {value}" for name, value in found if value is not None)


_FORMS = {
    "peer_id": (re.compile(r"[a-z][a-z0-9-]{0,62}"), "a peer ID"),
    "instance_id": (re.compile(r"[0-9a-f]{40}"), "40 hex digits in lower case"),
    "compose_hash": (re.compile(r"[0-9a-f]{64}"), "64 hex digits in lower case"),
    "device": (re.compile(r"[0-9a-f]{32}"), "32 hex digits in lower case"),
}


def check(revoked: Iterable[Revocation]) -> None:
    """RevocationError unless each entry names one thing, in its form."""
    for n, each in enumerate(revoked):
        given = [name for name in _FORMS if getattr(each, name) is not None]
        if len(given) != 1:
            raise RevocationError(f"[{n}] names {given or 'nothing'}, expected exactly one of {', '.join(_FORMS)}")
        form, wanted = _FORMS[given[0]]
        if not form.fullmatch(value := getattr(each, given[0])):
            raise RevocationError(f"[{n}].{given[0]} is {value!r:.80}, expected {wanted}")


def why_revoked(
    revoked: Iterable[Revocation], *, peer_id: str = "", instance_id: str = "", compose_hash: str = "", device: str = ""
) -> str | None:
    """What of a CVM is revoked, as a sentence; None when nothing is. What is not known of it is empty."""
    own = {
        "peer_id": peer_id,
        "instance_id": instance_id.lower(),
        "compose_hash": compose_hash.lower(),
        "device": device.lower(),
    }
    for each in revoked:
        if any(own[name] and getattr(each, name) == own[name] for name in own):
            return f"the manifest revokes {each.text}"
    return None
