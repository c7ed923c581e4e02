"""Checks of link values."""

from __future__ import annotations

import base64

import pytest

from peer.spec import LinkError, check_address, check_key, link_mtu, parse_endpoint, parse_path_mtu

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


OTHER_FORMS = (
    "198.18.0.1: 5",
    "198.18.0.1:5\n",
    "198.18.0.1:+5",
    "198.18.0.1:1_0",
    "198.18.0.1:05",
    "198.18.0.1:\u0665",
)


@pytest.mark.parametrize(
    "endpoint",
    [
        "198.18.0.1",
        "host:1",
        "198.18.0.1:0",
        "198.18.0.1:65536",
        "198.18.0.1:" + "1" * 5000,
        "[::1]:1",
        "",
        *OTHER_FORMS,
    ],
)
def test_bad_endpoints(endpoint: str) -> None:
    """Names are not resolved here; ports are in range, and in the one form that makes no further line at the device."""
    with pytest.raises(LinkError, match=r"endpoint|port"):
        parse_endpoint(endpoint)


@pytest.mark.parametrize(("path_mtu", "mtu"), [(1500, 1440), (1460, 1392), (1400, 1328), (1280, 1216), (9000, 8928)])
def test_the_links_mtu_follows_from_the_paths(path_mtu: int, mtu: int) -> None:
    """The padded packet with its 60 bytes of headers fits the path, and no larger multiple of 16 would."""
    assert link_mtu(path_mtu) == mtu
    assert mtu + 60 <= path_mtu < mtu + 16 + 60


@pytest.mark.parametrize("text", ["", "1279", "9001", "-1400", "1400.0", "١٤٠٠", "1" * 5000])
def test_path_mtus_by_hand_have_limits(text: str) -> None:
    """What is no number of bytes from 1,280 to 9,000 is refused, without repeating a long text."""
    with pytest.raises(LinkError, match="expected") as refused:
        parse_path_mtu(text)
    assert len(str(refused.value)) < 100


def test_good_path_mtus() -> None:
    """Both limits are good values."""
    assert [parse_path_mtu(text) for text in ("1280", "1400", "9000")] == [1280, 1400, 9000]
