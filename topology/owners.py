"""Who may sign manifests: the owners' public keys as text and in the manifest, and what their signatures say. Pure.

Ed25519 is the default. P-256 is there for keys in hardware security modules and cloud key services, many of which have
no Ed25519.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ED25519, P256 = "ed25519", "p256"
OWNERS_VARIABLE = "MESH_OWNERS"
"""The variable of the sidecar that says whose signatures count: a literal of the compose file, because only that is
measured."""
OWNER_KEY_PLACEHOLDER = "REPLACE_WITH_YOUR_OWNER_KEY"
"""What the committed compose files have for the owners."""
MAX_OWNERS = 16
"""Keys in one set: each signature is tried with each key, and who sends an envelope may be a stranger."""
MAX_STRAYS = 4
"""Signatures by others than the owners that count, before enough of theirs are found. Each is tried with every key, and
each trial with Ed25519 hashes the whole manifest again. The owners that a manifest names sign it, too, and are none."""
MAX_SIGNATURE = 72
"""Bytes: P-256 has as many at most (DER), Ed25519 has 64."""
MAX_TEXT = 2048
"""Characters of a set's text: 16 keys of 49 characters fit."""
_BYTES = {ED25519: 32, P256: 33}
"""Length of a public key: raw (RFC 8032, 5.1.5), and a compressed point (SEC 1, 2.3.3)."""
_SIGN = 1 << 255
"""The bit above an Ed25519 key's y: the sign of x (RFC 8032, 5.1.2)."""
_FIELD = (1 << 255) - 19
"""Number of elements of the field of Ed25519; y is below it (RFC 8032, 5.1.3)."""
_FORGEABLE = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)
"""y of the eight points of order 1, 2, 4 and 8 of Ed25519. For one of them as key anybody makes a signature that holds
for every message, or for one in a few."""
_SET = re.compile(r"\s*(?:(?P<threshold>[0-9]{1,2})\s+of\s+)?(?P<keys>\S.*)", re.DOTALL)

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


class OwnerError(ValueError):
    """A key or a set of keys is not what it must be. The message is the end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerKey:
    """One owner's public key."""

    alg: str
    """`ed25519` or `p256`."""
    key: str
    """Ed25519: 32 bytes; P-256: the compressed point, 33 bytes. Base64url without padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """Whose signatures a manifest needs: `threshold` of `keys`."""

    keys: tuple[OwnerKey, ...]
    threshold: int = 1


def parse(text: str) -> Owners:
    """The set that `text` names: `KEY`, or `2 of KEY, KEY, KEY`. A key is base64url, after `p256:` or `ed25519:`;
    without either it is Ed25519. OwnerError says what is wrong.
    """
    found = _SET.fullmatch(text[:MAX_TEXT])
    if found is None or len(text) > MAX_TEXT:
        raise OwnerError(f"is {text[:60]!r}, expected KEY, or '2 of KEY, KEY, KEY'")
    keys = tuple(_key(word.strip()) for word in found["keys"].split(","))
    owners = Owners(keys=keys, threshold=int(found["threshold"] or 1))
    check(owners)
    return owners


def name_of(key: OwnerKey) -> str:
    """One key as `parse` reads it."""
    return key.key if key.alg == ED25519 else f"{key.alg}:{key.key}"


def text_of(owners: Owners) -> str:
    """The text that `parse` reads, in its shortest form."""
    keys = ",".join(map(name_of, owners.keys))
    return keys if len(owners.keys) == 1 else f"{owners.threshold} of {keys}"


def check(owners: Owners) -> None:
    """OwnerError when `owners` is no set that can sign."""
    if not 1 <= len(owners.keys) <= MAX_OWNERS:
        raise OwnerError(f"has {len(owners.keys)} keys, expected 1 to {MAX_OWNERS}")
    if not 1 <= owners.threshold <= len(owners.keys):
        raise OwnerError(f"needs {owners.threshold} of {len(owners.keys)} keys, expected 1 to {len(owners.keys)}")
    for key in owners.keys:
        _public(key)
    if len(set(owners.keys)) != len(owners.keys):
        # One person with two votes.
        raise OwnerError("has a key twice, expected each once")


def signers(owners: Owners, message: bytes, signatures: Iterable[bytes]) -> tuple[OwnerKey, ...]:
    """The keys of `owners` that made one of `signatures` over `message`, each once, in the set's order."""
    made, digest = tuple(signatures)[:MAX_OWNERS], hashlib.sha256(message).digest()
    return tuple(key for key in owners.keys if any(_verifies(key, message, digest, one) for one in made))


def count(
    owners: Owners,
    message: bytes,
    signatures: Iterable[bytes],
    named: Callable[[], tuple[OwnerKey, ...]] = tuple,
) -> int:
    """How many of `owners` made one of `signatures` over `message`, up to their threshold: for what anybody may bring.

    It ends as soon as it is sure, also because of more than MAX_STRAYS that none of them made. `named` gives the keys
    whose signatures are no strays either; it is asked where there would be too many.
    """
    made, digest = tuple(dict.fromkeys(signatures))[:MAX_OWNERS], hashlib.sha256(message).digest()
    left, found = list(owners.keys), 0
    others: list[OwnerKey] | None = None
    strays: list[bytes] = []

    def taken(keys: list[OwnerKey], one: bytes) -> bool:
        key = next((key for key in keys if _verifies(key, message, digest, one)), None)
        if key is not None:
            keys.remove(key)
        return key is not None

    for one in made:
        if found >= owners.threshold:
            break
        if taken(left, one):
            found += 1
            continue
        if others is None:
            strays.append(one)
            if len(strays) > MAX_STRAYS:
                others = [key for key in named()[:MAX_OWNERS] if key not in owners.keys]
                strays = [each for each in strays if not taken(others, each)]
        elif not taken(others, one):
            strays.append(one)
        if len(strays) > MAX_STRAYS:
            break
    return found


def key_of(private: PrivateKey) -> OwnerKey:
    """The public half of `private`. OwnerError for a curve other than P-256."""
    if isinstance(private, Ed25519PrivateKey):
        return OwnerKey(alg=ED25519, key=_b64(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))
    if not isinstance(private.curve, SECP256R1):
        raise OwnerError(f"is on the curve {private.curve.name}, expected P-256")
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return OwnerKey(alg=P256, key=_b64(point))


def sign(private: PrivateKey, message: bytes) -> bytes:
    """A signature over `message`: 64 bytes with Ed25519, DER (ECDSA with SHA-256) with P-256."""
    if isinstance(private, Ed25519PrivateKey):
        return private.sign(message)
    return private.sign(message, ECDSA(hashes.SHA256()))


def _key(word: str) -> OwnerKey:
    alg, colon, rest = word.partition(":")
    key = OwnerKey(alg=alg, key=rest) if colon else OwnerKey(alg=ED25519, key=word)
    _public(key)
    return key


def _public(key: OwnerKey) -> Ed25519PublicKey | EllipticCurvePublicKey:
    length = _BYTES.get(key.alg)
    if length is None:
        raise OwnerError(f"has a key of algorithm {key.alg[:20]!r}, expected {ED25519!r} or {P256!r}")
    wanted = f"expected {length} bytes in base64url ({-(-length * 4 // 3)} characters)"
    try:
        raw = base64.urlsafe_b64decode(key.key + "=" * (-len(key.key) % 4))
        # One key has one text: of those that decode to the same bytes, only the one that encoding gives.
        if len(raw) != length or _b64(raw) != key.key:
            raise OwnerError(f"has the {key.alg} key {key.key[:60]!r}, {wanted}")
        if key.alg == P256:
            return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), raw)
        y = int.from_bytes(raw, "little") % _SIGN
        if y in _FORGEABLE or y >= _FIELD:
            raise OwnerError(
                f"has the {key.alg} key {key.key[:60]!r}, which anybody can sign for, or which is another spelling of "
                "one; expected what ./mesh keygen or openssl made"
            )
        return Ed25519PublicKey.from_public_bytes(raw)
    except OwnerError:
        raise
    except (binascii.Error, ValueError) as error:
        raise OwnerError(f"has the {key.alg} key {key.key[:60]!r}, {wanted}") from error


def _verifies(key: OwnerKey, message: bytes, digest: bytes, signature: bytes) -> bool:
    """`digest` is the SHA-256 of `message`, which is long."""
    public = _public(key)
    try:
        if isinstance(public, Ed25519PublicKey):
            public.verify(signature, message)
        else:
            public.verify(signature, digest, ECDSA(Prehashed(hashes.SHA256())))
    except (InvalidSignature, ValueError):
        return False
    return True


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
