"""Whom a CVM asks when coordinators come and go."""

from __future__ import annotations

from admission.broker import Broker
from admission.client import Greeting
from sidecar.brokers import Brokers


async def believe(_: Greeting) -> None:
    """Everybody."""


def test_a_coordinator_that_the_manifest_adds_is_asked_after_those_of_the_environment() -> None:
    """And no longer when it is dropped; each URL has one broker, with what that has verified."""
    named: list[str] = []
    brokers = Brokers(("https://one",), lambda: tuple(named), lambda url: Broker(url, believe))
    (one,) = brokers()
    named += ["https://one", "https://two"]
    first, two = brokers()
    assert (first, two.url) == (one, "https://two")
    named.clear()
    assert brokers() == (one,)
    named.append("https://two")
    assert brokers()[0] is one
    assert brokers()[1] is not two, "that one was closed meanwhile"
