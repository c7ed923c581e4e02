"""When a manifest has come everywhere, out of what the CVMs say. Callers in CVMs: tests/e2e/test_trust.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meshctl.errors import UserError
from meshctl.trust_load import follow

NEW, OLD = "new" + "0" * 61, "old" + "0" * 61


def machine(peer: str, digest: str | None) -> dict[str, Any]:
    """One machine of the lab's status; `digest` is of the manifest that a coordinator enforces, or of a CVM's
    certificate.
    """
    if peer.startswith("coordinator"):
        return {"peer_id": peer, "group": "coordinator", "sidecar": {"manifest_digest": digest and digest[:12]}}
    certificate = {"manifest_digest": digest[:12]} if digest else None
    return {"peer_id": peer, "group": peer.partition("-")[0], "sidecar": {"certificate": certificate}}


def looks(*states: tuple[str | None, ...]) -> tuple[Callable[[], list[Mapping[str, Any]]], Callable[[], float]]:
    """One look after the other at coordinator-0, api-0 and api-1, the last for ever; the clock counts looks."""
    count = 0

    def look() -> list[Mapping[str, Any]]:
        nonlocal count
        state = states[min(count, len(states) - 1)]
        count += 1
        return [machine(*it) for it in zip(("coordinator-0", "api-0", "api-1"), state, strict=True)]

    return look, lambda: float(count)


def test_time_begins_at_the_last_look_without_it_and_ends_at_the_first_with_all() -> None:
    """So what is measured is never less than what it took."""
    look, clock = looks((OLD, OLD, OLD), (OLD, OLD, OLD), (NEW, OLD, OLD), (NEW, NEW, OLD), (NEW, NEW, NEW))
    spread = follow(look, NEW, ("api-0", "api-1"), clock=clock)
    assert (spread.set_at, spread.everywhere, spread.seconds) == (1.0, 5.0, 4.0)


def test_only_those_that_stay_are_waited_for() -> None:
    """An evicted CVM shows no new certificate; a sidecar that does not answer shows none."""
    look, clock = looks((OLD, OLD, None), (NEW, NEW, None))
    assert follow(look, NEW, ("api-0",), clock=clock).seconds == 2.0


def test_those_that_lack_it_in_time_are_named() -> None:
    """Where no coordinator takes it, that is said: it is not the CVMs' fault."""
    look, clock = looks((OLD, OLD, OLD), (NEW, NEW, OLD))
    with pytest.raises(UserError, match="has not come to api-1"):
        follow(look, NEW, ("api-0", "api-1"), seconds=3.0, clock=clock)
    look, count = looks((OLD, OLD, OLD))
    with pytest.raises(UserError, match="no coordinator enforces the manifest new"):
        follow(look, NEW, ("api-0",), seconds=3.0, clock=lambda: 100 * count())
