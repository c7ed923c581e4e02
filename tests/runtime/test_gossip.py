"""Gossip's bytes. That Consul understands them is shown in `test_keyring`."""

from __future__ import annotations

import base64
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.gossip import (
    HEADER,
    MAX_ANSWER,
    NONCE,
    Change,
    GossipError,
    Heard,
    heard,
    length,
    packed,
    ping,
    query,
    seal,
)
from runtime.secret import Secret

OLD, NEW = (Secret(base64.b64encode(bytes([n]) * 32).decode()) for n in (1, 2))
SEALED = bytes(range(NONCE))
ACK = b"\x02" + packed({"SeqNo": 1, "Payload": b""})
ERROR = b"\x0d" + packed({"Error": "No installed keys could decrypt the message"})


def compressed(message: bytes) -> bytes:
    """As Go writes it where nothing is there twice: codes of 9 bits, the lowest bit first."""
    bits, count = 0, 0
    for code in (256, *message, 257):
        bits |= code << count
        count += 9
    return b"\x09" + packed({"Algo": 0, "Buf": bits.to_bytes((count + 7) // 8, "little")})


def answer(key: Secret, message: bytes, *known: Secret) -> Heard:
    """What is heard of it."""
    text = seal(key, message, SEALED)
    assert length(text[:HEADER]) == len(text) - HEADER
    return heard(text[:HEADER], text[HEADER:], known)


@pytest.mark.parametrize("form", [bytes, compressed])
def test_an_answer_says_who_opens_and_who_seals(form: type[bytes]) -> None:
    """Also an error is sealed with the key that the member sends with."""
    assert answer(NEW, form(ACK), OLD, NEW) == Heard(opens=True, sealed_by=NEW)
    assert answer(OLD, form(ERROR), OLD, NEW) == Heard(opens=False, sealed_by=OLD)
    assert answer(NEW, form(ACK), OLD) == Heard(opens=False, sealed_by=None)


@pytest.mark.parametrize(
    "header", [b"\x0a\xff\xff\xff\xff", b"\x0a\0\0\0\0", b"\x06\0\0\0\x40", struct.pack(">BI", 10, MAX_ANSWER + 1)]
)
def test_an_answer_has_a_bound(header: bytes) -> None:
    """Nothing else is read."""
    with pytest.raises(GossipError):
        length(header)


@pytest.mark.parametrize(
    "message", [b"\x09", b"\x09\x82\xa4Algo\0\xa3Buf", compressed(b"")[:12], b"\x09\xa3Buf" + b"\0" * 9]
)
def test_nonsense_is_no_answer(message: bytes) -> None:
    """Sealed by whoever has the key: the message is bounded and the code is read, nothing else."""
    try:
        assert answer(OLD, message, OLD).opens is False
    except GossipError:
        return
    assert answer(OLD, b"", OLD).opens is False


def test_what_is_sealed_opens() -> None:
    """With its header, which is authenticated too."""
    text = seal(OLD, ping("api-0"), SEALED)
    plain = AESGCM(base64.b64decode(OLD.reveal())).decrypt(SEALED, text[HEADER + 1 + NONCE :], text[:HEADER])
    assert plain == ping("api-0")


def test_a_query_is_for_one_agent() -> None:
    """It is not to be passed on: who has the old key would read the new one."""
    text = query(Change.INSTALL, NEW, name="api-0", time=7, number=3)
    assert b"\xa5Flags\xcf" + struct.pack(">Q", 2) in text
    assert b"_serf_install-key" in text
    assert base64.b64decode(NEW.reveal()) in text
    assert packed({"UserMsgLen": 1}).startswith(text[1:12])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"a": True, "b": False}, b"\x82\xa1a\xc3\xa1b\xc2"),
        ({"n": 1}, b"\x81\xa1n\xcf" + b"\0" * 7 + b"\1"),
        ({"t": "x" * 31}, b"\x81\xa1t\xbf" + b"x" * 31),
        ({"t": b"x" * 32}, b"\x81\xa1t\xda\0\x20" + b"x" * 32),
    ],
)
def test_a_struct_is_packed(fields: dict[str, int | str | bool | bytes], text: bytes) -> None:
    """Text of 32 bytes and more has its length in two."""
    assert packed(fields) == text
