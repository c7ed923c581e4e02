"""What a name may be."""

from __future__ import annotations

import pytest

from topology.names import MAX_HOST, why_no_host, why_no_label


@pytest.mark.parametrize("name", ["a", "api", "a-1", "a" * 63])
def test_labels(name: str) -> None:
    """Lower-case letters, digits and dashes inside."""
    assert why_no_label(name) is None


@pytest.mark.parametrize("name", ["", "A", "1a", "a-", "a.b", "a_b", "a" * 64, "ä"])
def test_what_is_no_label(name: str) -> None:
    """Everything else, and the message stays short."""
    reason = why_no_label(name * 100 if name == "A" else name)
    assert reason is not None
    assert len(reason) < 250


@pytest.mark.parametrize("name", ["a", "bank.example.com", "_acme.x-1.example", "1.example", "a" * 63 + ".b"])
def test_host_names(name: str) -> None:
    """One part or several."""
    assert why_no_host(name) is None


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "Bank.example", "-a.b", "a-.b", "a b", "10.0.0.1", "a.1", "*.example.com", "a" * 64],
)
def test_what_is_no_host_name(name: str) -> None:
    """An empty part, a wildcard, an address, capitals: what a resolver or a certificate would read otherwise."""
    assert why_no_host(name) is not None


def test_a_host_name_has_an_end() -> None:
    """RFC 1035's limit."""
    long = ".".join(["a" * 49] * 5)
    assert len(long) < MAX_HOST
    assert why_no_host(long) is None
    assert why_no_host(f"{long}.bcde") is not None
