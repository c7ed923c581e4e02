"""The signed envelope of a manifest: one word of text, the manifest's bytes and the owners' signatures. Pure.

`<payload>.<signature>[.<signature>…]`, each part in base64url. The payload is canonical JSON, so a manifest has one
form, and the digest of that form is the manifest's identity: two manifests of one epoch have different digests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass

from topology import owners as keys
from topology.manifest import Manifest, NewerError, decode_signed, encode
from topology.owners import MAX_OWNERS, MAX_SIGNATURE, OwnerKey, Owners, PrivateKey
from topology.trees import ManifestError, from_tree

MAX_ENVELOPE = 1 << 20
"""Characters. A manifest of 1,000 CVMs has some 200 KiB."""
_MAX_PART = -(-MAX_SIGNATURE * 4 // 3)
"""Characters of a signature's part, in base64url. An envelope that anybody brings is kept as it is."""
SHOWN_DIGITS = 12
"""Hex digits of a digest that people are shown: 48 bits, in which no two manifests agree by chance."""
_CONTEXT = b"cvm-mesh manifest v2\0"
"""Begins what is signed and what is digested, so that neither passes for anything else that an owner's key signs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """An opened envelope."""

    manifest: Manifest
    digest: str
    """SHA-256 of the manifest's canonical form, hex: its identity."""
    envelope: str
    unknown: tuple[str, ...] = ()
    """Entries of a newer format that were left out."""

    @property
    def name(self) -> str:
        """Epoch and the first digits of the digest, for people."""
        return f"epoch {self.manifest.epoch} ({self.digest[:SHOWN_DIGITS]})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about it."""
        return (f"left out of {self.name}, for a newer program: {', '.join(self.unknown)}",) if self.unknown else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What an envelope says of itself. Nobody has checked a signature or the form."""

    version: int
    epoch: int
    cluster: str
    app_id: str = ""
    """The coordinators'; empty where it names none at the place that this program knows. So with the next."""
    previous: str = ""
    """Digest of the one before, hex."""


class UnreadableError(ManifestError):
    """An envelope is well signed, and this program cannot read the manifest in it. The message is the end of a
    sentence.
    """

    newer = False
    """A newer program wrote it, as it says itself; else it is wrong."""


class _ForNewerError(UnreadableError):
    newer = True


def message(manifest: Manifest) -> bytes:
    """The bytes that owners sign."""
    return _CONTEXT + encode(manifest)


def digest(manifest: Manifest) -> str:
    """The identity of a manifest that this program wrote: SHA-256 of what owners sign, hex."""
    return hashlib.sha256(message(manifest)).hexdigest()


def seal(manifest: Manifest, *private: PrivateKey) -> str:
    """The envelope of `manifest` with a signature by each of the keys; without a key one for local use, which
    `open_envelope` takes only when it is told so.
    """
    signatures = [keys.sign(key, message(manifest)) for key in private]
    return ".".join([_b64(encode(manifest)), *map(_b64, signatures)]) + ("" if private else ".")


def attach(envelope: str, signature: bytes) -> str:
    """`envelope` with one signature more."""
    return f"{envelope.strip().rstrip('.')}.{_b64(signature)}"


def signatures(envelope: str) -> tuple[bytes, ...]:
    """Those in `envelope`, of which nobody has checked any. ManifestError; also for more than owners can make."""
    _, _, text = envelope.strip().partition(".")
    parts = [part for part in text.split(".", MAX_OWNERS) if part]
    if len(parts) > MAX_OWNERS or any(len(part) > _MAX_PART for part in parts):
        raise ManifestError(
            f"the manifest has signatures that nobody makes; expected {MAX_OWNERS} at most, of {_MAX_PART} "
            "characters at most"
        )
    return tuple(_unb64(part, "signature") for part in parts)


def digest_of(envelope: str) -> str:
    """The identity of the manifest in `envelope`, hex, which is not read for it: anyone may bring one. ManifestError
    where it is not base64url.
    """
    return hashlib.sha256(message_of(envelope)).hexdigest()


def message_of(envelope: str) -> bytes:
    """The bytes that the owners of `envelope` signed. ManifestError."""
    return _CONTEXT + _unb64(envelope.strip().partition(".")[0], "payload")


def open_envelope(envelope: str, owners: Owners | None) -> Signed:
    """The manifest in `envelope`, after the signatures of as many `owners` as have to sign were checked.

    `owners=None` skips the signatures: only for a configuration that says it is insecure. ManifestError; where the
    signatures are good and the manifest cannot be read, UnreadableError.
    """
    text = envelope.strip()
    _, dot, _ = text.partition(".")
    if not dot or len(text) > MAX_ENVELOPE:
        raise ManifestError(
            f"the manifest envelope is not '<payload>.<signature>' in base64url, of {MAX_ENVELOPE} characters at most"
        )
    made = signatures(text)
    signed = message_of(text)
    payload = signed[len(_CONTEXT) :]
    if owners is not None:
        found = keys.count(owners, signed, made, lambda: _named(payload))
        if found < owners.threshold:
            raise ManifestError(
                f"the manifest is signed by {found} of the owner keys that count, expected {owners.threshold} "
                f"(the first manifest is signed by those in the measured compose file, each other by those that the "
                f"manifest before it names)"
            )
    try:
        manifest, unknown = decode_signed(payload)
        _check_canonical(payload)
    except NewerError as error:
        raise _ForNewerError(f"needs a newer program: {error}") from error
    except ManifestError as error:
        raise UnreadableError(f"is well signed, and wrong: {error}") from error
    return Signed(manifest=manifest, digest=hashlib.sha256(signed).hexdigest(), envelope=text, unknown=unknown)


def _named(payload: bytes) -> tuple[OwnerKey, ...]:
    """The owners' keys in a manifest of which nobody has checked a signature; none where they are none."""
    try:
        named: Owners = from_tree(Owners, json.loads(payload)["owners"], "owners")
        keys.check(named)
    except (ManifestError, keys.OwnerError, ValueError, RecursionError, TypeError, KeyError):
        return ()
    return named.keys


def claims(envelope: str) -> Claims | None:
    """What the payload of `envelope` says of itself, whoever made it; None when it says nothing of the kind."""
    payload, dot, _ = envelope.strip().partition(".")
    if not dot or len(payload) > MAX_ENVELOPE:
        return None
    try:
        tree = json.loads(_unb64(payload, "payload"))
        said = {name: tree[name] for name in ("version", "epoch", "cluster")}
        coordinators = tree.get("coordinators")
        if isinstance(coordinators, dict) and isinstance(coordinators.get("app_id"), str):
            said["app_id"] = coordinators["app_id"]
        if isinstance(tree.get("previous"), str):
            said["previous"] = tree["previous"]
        found: Claims = from_tree(Claims, said, "manifest")
    except (ManifestError, ValueError, RecursionError, TypeError, KeyError):
        return None
    return found


def _check_canonical(payload: bytes) -> None:
    """Another form of the same manifest, or a key that is there twice, would give one manifest two digests."""
    again = json.dumps(json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Lone surrogates, which JSON can name, have no UTF-8.
    if again.encode("utf-8", "replace") != payload:
        raise ManifestError("the manifest is not canonical JSON (sorted keys, no spaces, each key once); sign it again")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(text: str, what: str) -> bytes:
    """Strictly: of two texts for one manifest the second would look like a newer one."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise ManifestError(f"the manifest's {what} is not base64url") from error
    if _b64(data) != text:
        raise ManifestError(
            f"the manifest's {what} is not base64url in its one form, without padding or other characters"
        )
    return data
