"""Probe packets."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.probe import SIZE, Kind, Probe, ProbeKey, decode, encode, probe_key, sender_hint
from peer.spec import LinkError
from peer.wireguard import generate_key


def _pair() -> tuple[ProbeKey, ProbeKey]:
    one, one_public = generate_key()
    other, other_public = generate_key()
    return probe_key(one, other_public, one_public), probe_key(other, one_public, other_public)


ONE, OTHER = _pair()


@given(kind=st.sampled_from(Kind), number=st.integers(0, 2**64 - 1), through=st.booleans())
def test_the_other_side_reads_what_one_wrote(kind: Kind, number: int, through: bool) -> None:
    """Both ends compute the same key; a probe survives the trip."""
    data = encode(ONE, kind, number, through=through)
    assert len(data) == SIZE
    assert decode(OTHER, data) == Probe(kind=kind, number=number, through=through)


@given(padding=st.integers(0, 2000), position=st.integers(0, (SIZE + 2000) * 8))
def test_padding_is_part_of_the_probe(padding: int, position: int) -> None:
    """A padded probe has the size that was asked for; cut, lengthened or with any bit flipped it is refused."""
    data = encode(ONE, Kind.SIZE, 7, padding=padding)
    assert len(data) == SIZE + padding
    assert decode(OTHER, data) == Probe(kind=Kind.SIZE, number=7, through=False)
    assert decode(OTHER, data + b"\0") is None
    assert decode(OTHER, data[:-1]) is None
    flipped = bytearray(data)
    flipped[position // 8 % len(data)] ^= 1 << position % 8
    assert decode(OTHER, bytes(flipped)) is None


@given(position=st.integers(0, SIZE * 8 - 1))
def test_any_flipped_bit_is_refused(position: int) -> None:
    """The MAC covers every bit."""
    data = bytearray(encode(ONE, Kind.PING, 7))
    data[position // 8] ^= 1 << position % 8
    assert decode(OTHER, bytes(data)) is None


@given(st.binary(max_size=100))
def test_garbage_is_no_probe(data: bytes) -> None:
    """Whatever comes in, decoding does not raise."""
    assert decode(OTHER, data) is None
    assert sender_hint(data) is None


def test_own_probes_are_not_taken_back() -> None:
    """A reflected probe does not look like the other side's."""
    assert decode(ONE, encode(ONE, Kind.PING, 7)) is None


def test_strangers_cannot_make_probes() -> None:
    """Another key pair's probe is refused, also with the right hint."""
    stranger, _ = _pair()
    forged = encode(ProbeKey(mac=stranger.mac, own_hint=ONE.own_hint, their_hint=b""), Kind.PING, 7)
    assert sender_hint(forged) == OTHER.their_hint
    assert decode(OTHER, forged) is None


def test_keys_are_not_shown() -> None:
    """A key in a log line or a dataclass dump stays hidden."""
    assert ONE.mac.hex() not in repr(ONE)
    assert str(ONE.mac) not in repr(ONE)


def test_wireguard_takes_no_probe_for_its_own() -> None:
    """WireGuard's packets begin with 1 to 4."""
    assert encode(ONE, Kind.PING, 7)[0] not in (1, 2, 3, 4)


def test_a_key_that_agrees_with_everybody_is_refused() -> None:
    """A point of small order is a LinkError as any other bad key, not a crash of whoever computes with it."""
    private, public = generate_key()
    with pytest.raises(LinkError, match="X25519"):
        probe_key(private, base64.b64encode(b"\1" + bytes(31)).decode(), public)
