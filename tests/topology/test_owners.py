"""Owner keys: their text, and whose signatures count."""

from __future__ import annotations

import base64
import contextlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from topology import owners
from topology.owners import MAX_STRAYS, OwnerError, OwnerKey, Owners, key_of

ED = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
ED_2 = Ed25519PrivateKey.from_private_bytes(b"\2" * 32)
EC = derive_private_key(3, SECP256R1())
SET = Owners(keys=(key_of(ED), key_of(EC), key_of(ED_2)), threshold=2)


@pytest.mark.parametrize("found", [SET, Owners(keys=(key_of(ED),)), Owners(keys=(key_of(EC),))])
def test_a_set_is_read_as_it_was_written(found: Owners) -> None:
    """One key, several keys, both algorithms."""
    assert owners.parse(owners.text_of(found)) == found


def test_the_algorithm_and_spaces_may_be_written_or_left_out() -> None:
    """What a person writes by hand."""
    one, two = key_of(ED), key_of(EC)
    assert owners.parse(f"ed25519:{one.key}") == owners.parse(one.key) == Owners(keys=(one,))
    assert owners.parse(f" 2 of\n {one.key},\n p256:{two.key} ") == Owners(keys=(one, two), threshold=2)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "expected KEY"),
        ("x" * 5000, "expected KEY"),
        ("A" * 42, "32 bytes"),
        ("A" * 43 + "=", "32 bytes"),
        ("B" * 43, "32 bytes"),
        ("p256:" + "A" * 44, "33 bytes"),
        ("rsa:AAAA", "algorithm 'rsa'"),
        (f"0 of {key_of(ED).key}", "needs 0 of 1"),
        (f"2 of {key_of(ED).key}", "needs 2 of 1"),
        (f"{key_of(ED).key},{key_of(ED).key}", "twice"),
        (f"{key_of(ED).key},", "32 bytes"),
        (",".join([key_of(ED).key] * 17), "1 to 16"),
    ],
)
def test_what_is_no_set_is_refused(text: str, word: str) -> None:
    """The message says what was expected. Two texts of one key's bytes are two keys to nobody."""
    with pytest.raises(OwnerError, match=word):
        owners.parse(text)


@given(st.text(max_size=120))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Any text is a set or an OwnerError."""
    with contextlib.suppress(OwnerError):
        owners.check(owners.parse(text))


def test_signers_are_counted_once() -> None:
    """Two signatures of one key are one owner; a foreign or broken signature is nobody's."""
    message = b"what is signed"
    both = [owners.sign(ED, message), owners.sign(EC, message), owners.sign(EC, message), b"", b"\0" * 64]
    assert owners.signers(SET, message, both) == (key_of(ED), key_of(EC))
    assert owners.signers(SET, message + b"!", both) == ()
    stranger = Ed25519PrivateKey.from_private_bytes(b"\7" * 32)
    assert owners.signers(SET, message, [owners.sign(stranger, message)]) == ()


def test_what_strangers_bring_is_not_tried_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few signatures of others may come before those that count; each is tried with each key that is left. With
    enough of them it is done.
    """
    tried = 0
    verifies = owners._verifies

    def counting(key: OwnerKey, message: bytes, digest: bytes, signature: bytes) -> bool:
        nonlocal tried
        tried += 1
        return verifies(key, message, digest, signature)

    monkeypatch.setattr(owners, "_verifies", counting)
    private = [Ed25519PrivateKey.from_private_bytes(bytes([n + 1]) * 32) for n in range(16)]
    found = Owners(keys=tuple(map(key_of, private)), threshold=2)
    message = b"what is signed"
    good = [owners.sign(key, message) for key in private]
    bad = [owners.sign(key, b"else") for key in private]
    for made, counted, trials in (
        (bad, 0, 16 * (MAX_STRAYS + 1)),
        (bad[:1] * 16, 0, 16),
        (bad[:MAX_STRAYS] + good[:12], 2, 16 * MAX_STRAYS + 2),
        (bad[: MAX_STRAYS + 1] + good[:8], 0, 16 * (MAX_STRAYS + 1)),
        (good, 2, 2),
        (good[:1], 1, 1),
        (good[:1] * 2, 1, 1),
        ([], 0, 0),
    ):
        tried = 0
        assert (owners.count(found, message, made), tried) == (counted, trials)
    mixed = Owners(keys=(key_of(EC), key_of(ED)), threshold=2)
    assert owners.count(mixed, message, [owners.sign(ED, message), owners.sign(EC, message)]) == 2


def test_those_whom_a_manifest_names_are_no_strays() -> None:
    """They sign it beside the former owners, in whatever order; the rest is still bounded."""
    private = [Ed25519PrivateKey.from_private_bytes(bytes([n + 1]) * 32) for n in range(12)]
    former, new = private[:6], private[6:]
    found, named = Owners(keys=tuple(map(key_of, former)), threshold=6), tuple(map(key_of, new))
    message = b"what is signed"
    old, own = ([owners.sign(key, message) for key in keys] for keys in (former, new))
    bad = [owners.sign(key, b"else") for key in new]
    assert owners.count(found, message, own + old, lambda: named) == 6
    assert owners.count(found, message, own + old) == 0
    assert owners.count(found, message, bad[:4] + own + old, lambda: named) == 6
    assert owners.count(found, message, bad[:5] + own[:1] + old, lambda: named) == 0
    assert owners.count(found, message, own[:1] * 2 + old, lambda: named) == 6


def double(point: tuple[int, int]) -> tuple[int, int]:
    """That point of Ed25519 twice (RFC 8032, 5.1.4, in affine coordinates)."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    x, y = point
    t = d * x * x * y * y
    return 2 * x * y * pow(1 + t, -1, p) % p, (y * y + x * x) * pow(1 - t, -1, p) % p


def root(square: int) -> int | None:
    """A square root modulo 2^255 - 19."""
    p = 2**255 - 19
    for candidate in (pow(square, (p + 3) // 8, p), pow(square, (p + 3) // 8, p) * pow(2, (p - 1) // 4, p) % p):
        if candidate * candidate % p == square % p:
            return candidate
    return None


def test_keys_that_anybody_can_sign_for_are_none() -> None:
    """The eight points of small order, in each spelling; and of other points the spellings that are not canonical."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    assert len(owners._FORGEABLE) == 5
    for y in owners._FORGEABLE:
        x = root((y * y - 1) * pow(d * y * y + 1, -1, p) % p)
        assert x is not None
        assert double(double(double((x, y)))) == (0, 1), "its order divides 8"
    identity = (0, 1)
    assert double(identity) == identity
    spelled = {
        y + sign for each in owners._FORGEABLE for y in (each, each + p) for sign in (0, 1 << 255) if y < 1 << 255
    }
    spelled |= {p + n + sign for n in range(19) for sign in (0, 1 << 255)}
    for number in spelled:
        text = base64.urlsafe_b64encode(number.to_bytes(32, "little")).decode().rstrip("=")
        with pytest.raises(OwnerError, match="anybody can sign for"):
            owners.parse(text)


def test_another_curve_is_refused() -> None:
    """P-256 is the one that is promised."""
    with pytest.raises(OwnerError, match="secp384r1"):
        key_of(derive_private_key(3, SECP384R1()))
    with pytest.raises(OwnerError, match="algorithm"):
        owners.check(Owners(keys=(OwnerKey(alg="p384", key="AAAA"),)))


@pytest.mark.parametrize("private", [ED, EC], ids=["ed25519", "p256"])
def test_openssl_signs_for_us(private: owners.PrivateKey, tmp_path: Path) -> None:
    """What `openssl pkeyutl` makes of the message's bytes is a signature: keys may live in other programs."""
    key, message, out = tmp_path / "key.pem", tmp_path / "message", tmp_path / "signature"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    message.write_bytes(b"what is signed")
    digest = [] if private is ED else ["-digest", "sha256"]
    argv = ["openssl", "pkeyutl", "-sign", "-inkey", str(key), "-rawin", *digest, "-in", str(message), "-out", str(out)]
    subprocess.run(argv, check=True, capture_output=True)
    found = owners.signers(Owners(keys=(key_of(private),)), b"what is signed", [out.read_bytes()])
    assert found == (key_of(private),)
