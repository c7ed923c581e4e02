"""Which versions of Patroni a member runs with. Pure.

The mesh overrides methods of Patroni (`dcs`, `daemon`). They are no interface that Patroni promises to keep, so a
version with changes, which a new minor number stands for, is run only after the tests have run with it.
"""

from __future__ import annotations

TRIED = ("4.1",)
"""Minor versions that the tests ran with. CI runs the newest patch release of each (`.ci/run`)."""


def refusal(version: str) -> str | None:
    """Why Patroni `version` is not started; None: it is one that was tried."""
    if ".".join(version.split(".")[:2]) in TRIED:
        return None
    tried = ", ".join(f"{minor}.x" for minor in TRIED)
    return f"Patroni {version} was not tried with this supervisor; versions that were: {tried}. Install one of them"
