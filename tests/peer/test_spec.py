"""Checks of link values."""

from __future__ import annotations

import base64

import pytest

from peer.spec import LinkError, check_address, check_key, parse_endpoint

KEY = base64.b64encode(b"k" * 32).decode()


def test_good_values_pass() -> None:
    """What is right comes back."""
    assert check_key(KEY) == KEY
    assert check_address("100.96.0.7", "100.96.0.0/16") == "100.96.0.7"
    assert parse_endpoint("198.18.0.1:51820") == ("198.18.0.1", 51820)


@pytest.mark.parametrize("key", ["", "x", KEY[:-1], KEY + "=", base64.b64encode(b"k" * 31).decode(), KEY[:-2] + "r="])
def test_bad_keys(key: str) -> None:
    """Two spellings of one key would be two peers: only the canonical one is taken."""
    with pytest.raises(LinkError, match="WireGuard public key"):
        check_key(key)


@pytest.mark.parametrize("address", ["100.97.0.1", "127.0.0.1", "fd00::1", "worker-0", "100.96.0.1/32"])
def test_bad_addresses(address: str) -> None:
    """Only one address of the pool will do."""
    with pytest.raises(LinkError):
        check_address(address, "100.96.0.0/16")


@pytest.mark.parametrize("endpoint", ["198.18.0.1", "host:1", "198.18.0.1:0", "198.18.0.1:65536", "[::1]:1", ""])
def test_bad_endpoints(endpoint: str) -> None:
    """Names are not resolved here; ports are in range."""
    with pytest.raises(LinkError, match=r"endpoint|port"):
        parse_endpoint(endpoint)
