"""The text protocol of userspace devices."""

from __future__ import annotations

import base64

import pytest

from peer import uapi
from peer.spec import LinkError, RemovePeer, SetPeer
from peer.wireguard import generate_key
from runtime.secret import Secret

KEY = base64.b64encode(b"k" * 32).decode()
HEX = (b"k" * 32).hex()


def test_operations_become_lines_in_order() -> None:
    """Endpoint and networks come before the keep-alive, whose start sends a packet."""
    change = SetPeer(public_key=KEY, allowed=("100.96.0.2/32",), endpoint="1.2.3.4:5", keepalive=25)
    assert uapi.set_request(RemovePeer(public_key=KEY)) == f"set=1\npublic_key={HEX}\nremove=true\n\n"
    assert uapi.set_request(change) == (
        f"set=1\npublic_key={HEX}\nendpoint=1.2.3.4:5\n"
        "replace_allowed_ips=true\nallowed_ip=100.96.0.2/32\npersistent_keepalive_interval=25\n\n"
    )


def test_what_is_not_named_is_not_touched() -> None:
    """An operation that changes the endpoint says nothing about the rest."""
    assert uapi.set_request(SetPeer(public_key=KEY, endpoint="1.2.3.4:5")) == (
        f"set=1\npublic_key={HEX}\nendpoint=1.2.3.4:5\n\n"
    )


def test_no_addresses_are_a_change_too() -> None:
    """An empty tuple of networks takes all away; None keeps them."""
    assert "replace_allowed_ips=true" in uapi.set_request(SetPeer(public_key=KEY, allowed=()))


def test_the_key_stays_secret() -> None:
    """The request that carries the private key does not show it."""
    private, _ = generate_key()
    request = uapi.configure_request(private, 51820)
    assert isinstance(request, Secret)
    assert base64.b64decode(private.reveal()).hex() in request.reveal()


def test_a_state_is_read() -> None:
    """Two peers, of which one was never heard."""
    private, public = generate_key()
    raw = base64.b64decode(private.reveal()).hex()
    state = uapi.parse_state(
        f"private_key={raw}\nlisten_port=51820\n"
        f"public_key={HEX}\npreshared_key={'0' * 64}\nprotocol_version=1\nendpoint=198.18.1.1:51820\n"
        "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=500000000\ntx_bytes=3\nrx_bytes=4\n"
        "persistent_keepalive_interval=25\nallowed_ip=100.96.0.2/32\nallowed_ip=100.96.0.3/32\n"
        f"public_key={'ab' * 32}\nlast_handshake_time_sec=0\n"
        "errno=0\n\n"
    )
    assert (state.public_key, state.listen_port) == (public, 51820)
    first, second = state.peers.values()
    assert first.allowed == ("100.96.0.2/32", "100.96.0.3/32")
    assert (first.endpoint, first.latest_handshake) == ("198.18.1.1:51820", 1700000000.5)
    assert (first.rx, first.tx, first.keepalive) == (4, 3, 25)
    assert (second.endpoint, second.latest_handshake, second.allowed) == (None, 0.0, ())


def test_a_device_without_key_is_new() -> None:
    """The sign that a device was restarted."""
    assert uapi.parse_state("listen_port=4\nerrno=0\n\n").public_key == ""
    assert uapi.parse_state(f"private_key={'0' * 64}\nerrno=0\n\n").public_key == ""


@pytest.mark.parametrize("answer", ["errno=22\n\n", "", "nonsense\n\n"])
def test_refusals_are_errors(answer: str) -> None:
    """Anything but `errno=0` is a refusal."""
    with pytest.raises(LinkError):
        uapi.check_answer(answer)


@pytest.mark.parametrize(
    "line",
    ["listen_port=x", f"listen_port={'1' * 5000}", "private_key=zz", "public_key=zz", f"public_key={HEX}\ntx_bytes=x"],
)
def test_a_state_of_nonsense_is_refused(line: str) -> None:
    """The device is another program, of which only that has failed."""
    with pytest.raises(LinkError):
        uapi.parse_state(f"{line}\nerrno=0\n\n")
