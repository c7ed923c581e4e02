"""This CVM's certificate in the mesh and whom it trusts, through a change of the manifest. Pure.

Each manifest has a certificate authority of its own, its *mesh CA*. When the manifest changes, every CVM trusts the
new CA as soon as it hears of it, and shows its new certificate (the *leaf*) only once the others can be expected to
trust it: else who is a moment ahead is refused by who is a moment behind, and unchanged workloads lose requests.

When that is, the coordinators know: each CVM tells them when its Envoy trusts the new CA, and each is told once all
that live have said so. That takes as long as the slowest takes and no longer. Who lives and does not say so (its Envoy
does not start, say) delays the others by PRESENT_SECONDS at most. Where manifests follow each other faster than that,
each leaf waits for its own time and is shown in its turn: were the next one's time waited for each time, a CVM would
go on showing the first leaf until nobody takes it any more.

A CA that was the newest stays trusted for the manifest's `overlap_seconds` from when this CVM heard of its successor,
by this CVM's own clock: then whoever still shows a certificate of it has not been there for that long, or is evicted.
So who could not ask for so long shows its new leaf at once: nobody takes the old one any more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from admission.protocol import MAX_AUTHORITIES

if TYPE_CHECKING:
    from cryptography.x509 import Certificate as Parsed

PRESENT_SECONDS = 25.0
"""A new leaf is shown after so long, whoever has not said that it trusts its CA. A lease (15 s) and two renewals (5 s
each): by then who lives has renewed, and who does not has lost its lease. Shorter than the shortest window
(`topology.manifest.OVERLAP_SECONDS`)."""
POLL_SECONDS = 0.2
"""Between two questions whether all trust the new CA: what the change takes longer on average is half of it."""
RETIRED = MAX_AUTHORITIES
"""Manifests that are remembered as retired: coordinators name no more before theirs."""
MAX_FORMER = MAX_AUTHORITIES
"""Former CAs that are kept, and leaves that wait."""


class CertificateError(ValueError):
    """What a coordinator gave is no certificate for this CVM. The message says what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a leaf has to be for this CVM."""

    cluster: str
    group: str
    peer_id: str
    leaf_key: bytes
    """SubjectPublicKeyInfo, DER."""
    public_key: bytes = b""
    """Likewise of what its public listeners show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A mesh CA."""

    digest: str
    """Of its manifest, hex."""
    pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate of this CVM."""

    digest: str
    """Of the manifest whose mesh CA gave it, hex."""
    pem: str
    """The leaf alone. Peers trust its mesh CA itself; and TLS 1.3 puts what a client shows into each of its session
    tickets, so the CA's certificate would cost 650 bytes in each ticket, twice a connection, and in each resumption."""
    expires_at: int
    """Unix seconds."""
    begins_at: int = 0
    """Likewise."""
    public: Mapping[str, str] = field(default_factory=dict)
    """By backend: the certificate of its public listener, PEM with its mesh CA as the root certified it, for who pins
    the root. It came with the leaf and ends with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a coordinator's answer says, checked."""

    authorities: tuple[Authority, ...]
    """That of the manifest which it enforces, then those of the ones before whose window is open, the last first."""
    leaf: Leaf | None = None
    """None: what this CVM holds is good."""
    all_trust: bool = False
    """Every CVM that lives trusts the first of `authorities`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A CA that was the newest before."""

    authority: Authority
    until: float
    """Monotonic seconds until which it is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A leaf that is held, and not shown yet."""

    leaf: Leaf
    shown_at: float
    """Monotonic seconds at which it is shown at the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What this CVM shows and trusts."""

    leaf: Leaf
    """The one that it shows."""
    waiting: tuple[Waiting, ...] = ()
    """Those that come after it, the next one first."""
    authorities: tuple[Authority, ...]
    """As the coordinators named them last."""
    former: tuple[Former, ...] = ()
    """The last one first."""
    retired: tuple[str, ...] = ()
    """Digests of the last RETIRED manifests whose CA is trusted here no more, also where a coordinator whose clock is
    behind still names it."""

    @property
    def digest(self) -> str:
        """Of the newest manifest whose CA it trusts."""
        return self.authorities[0].digest

    @property
    def following(self) -> Leaf | None:
        """The last one that is held, and not shown yet."""
        return self.waiting[-1].leaf if self.waiting else None

    @property
    def trusted(self) -> tuple[Authority, ...]:
        """All CAs that count, the newest first."""
        former = tuple(each.authority for each in self.former if each.authority not in self.authorities)
        return (*self.authorities, *former)

    @property
    def trusted_pem(self) -> str:
        """Likewise, one after the other."""
        return "".join(each.pem for each in self.trusted)

    @property
    def newest(self) -> Leaf:
        """The leaf that was given last. What it has for public listeners is shown at once: clients outside pin the
        root, or the one CA that they mean, and no CVM judges it.
        """
        return self.following or self.leaf

    @property
    def due(self) -> float | None:
        """Monotonic seconds at which `aged` does something; None: never."""
        moments = (*(each.shown_at for each in self.waiting), *(each.until for each in self.former))
        return min(moments, default=None)


def begun(given: Given, now: float, overlap_seconds: float) -> Certificate:
    """What the first admission gives at `now` (monotonic seconds). CertificateError when there is no leaf in it."""
    if given.leaf is None:
        raise CertificateError("the admission has no certificate")
    return Certificate(
        leaf=given.leaf,
        authorities=given.authorities,
        former=tuple(Former(authority=each, until=now + overlap_seconds) for each in given.authorities[1:]),
    )


def heard(held: Certificate, given: Given, now: float, overlap_seconds: float, last: float) -> Certificate:
    """What is shown and trusted after an answer of a coordinator at `now`, when the one before came at `last` (both
    monotonic seconds).
    """
    first, *others = given.authorities
    named = (first, *(each for each in others if each.digest not in held.retired))
    held = replace(held, authorities=named, former=_former(held, given, now + overlap_seconds))
    if given.leaf is not None:
        held = replace(held, waiting=_queued(held.waiting, given.leaf, now))
    following = held.following
    if following is None:
        return held
    all_trust = given.all_trust and following.digest == held.digest
    renewed = following.digest == held.leaf.digest
    # What is shown now is taken until `last + overlap_seconds` at least: others heard of its successor no sooner.
    counts = held.leaf.digest in {each.digest for each in held.authorities}
    worthless = not counts and now + PRESENT_SECONDS > last + overlap_seconds
    return replace(held, leaf=following, waiting=()) if all_trust or renewed or worthless else held


def _queued(waiting: tuple[Waiting, ...], leaf: Leaf, now: float) -> tuple[Waiting, ...]:
    """`waiting` and after it `leaf`, which was given at `now`. One more of the same manifest takes the other's turn; of
    more than MAX_FORMER the last ones are left out, for the first are due.
    """
    if waiting and waiting[-1].leaf.digest == leaf.digest:
        return (*waiting[:-1], replace(waiting[-1], leaf=leaf))
    return (*waiting[: MAX_FORMER - 1], Waiting(leaf=leaf, shown_at=now + PRESENT_SECONDS))


def _former(held: Certificate, given: Given, until: float) -> tuple[Former, ...]:
    """Those of before, and the one that was the newest until this answer."""
    newest, before = given.authorities[0], held.authorities[0]
    if newest == before:
        return held.former
    kept = (each for each in held.former if each.authority not in (newest, before))
    return (Former(authority=before, until=until), *kept)[:MAX_FORMER]


def aged(held: Certificate, now: float) -> Certificate:
    """What is shown and trusted at `now` (monotonic seconds), with no answer."""
    due = [each.leaf for each in held.waiting if now >= each.shown_at]
    if due:
        held = replace(held, leaf=due[-1], waiting=held.waiting[len(due) :])
    ended = {each.authority for each in held.former if now >= each.until}
    if not ended:
        return held
    return replace(
        held,
        former=tuple(each for each in held.former if each.authority not in ended),
        # The coordinators' own window ends at about the same time; where none can be asked, it ends here.
        authorities=tuple(each for each in held.authorities if each not in ended or each == held.authorities[0]),
        retired=(*held.retired, *sorted(each.digest for each in ended - {held.authorities[0]}))[-RETIRED:],
    )


def wrong_time(held: Certificate, leaf_hours: int, now: float) -> str:
    """What is wrong with the time of the newest leaf at `now` (Unix seconds), of which `leaf_hours` are a life; empty
    while all is well. A leaf is renewed at half of its life; after half of the rest that has failed for long. A clock
    before its begin was set back.
    """
    early = held.newest.begins_at - now
    if early > 0:
        return f"the certificate is good from {early / 3600:.1f} h from now by this CVM's clock, so calls fail: set it"
    left = held.newest.expires_at - now
    if left <= 0:
        return f"the certificate ended {-left / 3600:.1f} h ago, and no coordinator has renewed it: calls fail"
    if left < leaf_hours * 3600 / 4:
        return f"the certificate ends in {left / 3600:.1f} h, and no coordinator has renewed it: calls fail then"
    return ""


def parse(
    *,
    digest: str,
    leaf_pem: str | None,
    authorities_pem: str,
    public_pems: Mapping[str, str] = {},
    all_trust: bool = False,
    expected: Expected,
    now: float,
) -> Given:
    """A coordinator's words as values. CertificateError unless they are MAX_AUTHORITIES at most, the first of which is
    the mesh CA of manifest `digest` and certified the leaf, and the leaf is for our key, says our names and no more,
    and is good at `now` (Unix seconds); and unless what is for public listeners is likewise, for that key, and nobody's
    name in the mesh.
    """
    try:
        found = _parse(digest, leaf_pem, authorities_pem, all_trust, expected, now)
        if found.leaf is None or not public_pems:
            return found
        authority = _load(authorities_pem, "authorities")[0]
        public = {name: _public(name, pem, authority, expected, now) for name, pem in public_pems.items()}
        return replace(found, leaf=replace(found.leaf, public=public))
    except CertificateError:
        raise
    except Exception as error:  # the library has an error of its own for each oddity of a certificate
        raise CertificateError(f"a certificate cannot be read: {error!r:.200}") from error


def agent_end(pem: str, key: bytes, now: float) -> int:
    """Unix seconds at which the RPC certificate in `pem` ends. CertificateError unless that is one certificate, for
    `key` (SubjectPublicKeyInfo, DER), and good at `now` (Unix seconds). Who issued it is for Consul to judge.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    what = "certificate of the Consul agent"
    try:
        found = _load(pem, what)
        if len(found) != 1:
            raise CertificateError(f"there are {len(found)} certificates for the Consul agent, expected one")
        if found[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != key:
            raise CertificateError(f"the {what} is for another key than the one that was attested")
        return int(_end(found[0], now, what))
    except CertificateError:
        raise
    except Exception as error:  # as in `parse`
        raise CertificateError(f"the {what} cannot be read: {error!r:.200}") from error


def _parse(
    digest: str, leaf_pem: str | None, authorities_pem: str, all_trust: bool, expected: Expected, now: float
) -> Given:
    found = _load(authorities_pem, "authorities")
    if not 1 <= len(found) <= MAX_AUTHORITIES:
        raise CertificateError(f"there are {len(found)} authorities, expected 1 to {MAX_AUTHORITIES}")
    authorities = tuple(_authority(each, expected.cluster) for each in found)
    if authorities[0].digest != digest:
        raise CertificateError(
            f"the first authority is of manifest {authorities[0].digest:.80}, expected {digest!r:.80}"
        )
    return Given(
        authorities=authorities,
        leaf=None if leaf_pem is None else _leaf(leaf_pem, found[0], digest, expected, now),
        all_trust=all_trust,
    )


def _authority(certificate: Parsed, cluster: str) -> Authority:
    from cryptography import x509

    uris = _names(certificate, x509.UniformResourceIdentifier)
    found = re.fullmatch(rf"spiffe://{re.escape(cluster)}/manifest/\d+/([0-9a-f]{{64}})", "".join(uris))
    if found is None:
        raise CertificateError(f"an authority has the URIs {uris!r:.200}, expected a manifest of cluster {cluster}")
    return Authority(digest=found[1], pem=_pem(certificate))


def _leaf(pem: str, authority: Parsed, digest: str, expected: Expected, now: float) -> Leaf:
    from cryptography import x509

    leaf = _issued(pem, authority, expected.leaf_key, "leaf")
    uris, names = _names(leaf, x509.UniformResourceIdentifier), _names(leaf, x509.DNSName)
    wanted = ([f"spiffe://{expected.cluster}/{expected.group}"], [f"{expected.peer_id}.peer.mesh"])
    if (uris, names) != wanted:
        raise CertificateError(f"the leaf names {(uris, names)!r:.300}, expected {wanted!r:.300}")
    return Leaf(
        digest=digest,
        pem=_pem(leaf),
        expires_at=int(_end(leaf, now, "leaf")),
        begins_at=int(leaf.not_valid_before_utc.timestamp()),
    )


def _public(name: str, pem: str, authority: Parsed, expected: Expected, now: float) -> str:
    """The certificate of the public listener of backend `name`, with its chain."""
    from cryptography import x509

    what = f"certificate of the public listener {name:.80}"
    found = _issued(pem, authority, expected.public_key, what)
    uris = _names(found, x509.UniformResourceIdentifier)
    if any(uri.lower().startswith("spiffe:") for uri in uris):
        raise CertificateError(f"the {what} names {uris!r:.300}, which is somebody in the mesh")
    _end(found, now, what)
    return pem


def _issued(pem: str, authority: Parsed, key: bytes, what: str) -> Parsed:
    """The first of a chain of two, which is for `key`, and which `authority` issued."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    chain = _load(pem, "chain")
    if len(chain) != 2:
        raise CertificateError(f"the chain has {len(chain)} certificates, expected the {what} and its mesh CA")
    leaf = chain[0]
    try:
        leaf.verify_directly_issued_by(authority)
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise CertificateError(f"the {what} is not of the mesh CA that comes with it: {error!r:.100}") from None
    if spki != key:
        raise CertificateError(f"the {what} is for another key than the one that was attested")
    return leaf


def _end(leaf: Parsed, now: float, what: str) -> float:
    """Unix seconds at which it ends. CertificateError where it is not good now."""
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if not begins <= now < ends:
        raise CertificateError(
            f"the {what} is good from {begins - now:+.0f} s to {ends - now:+.0f} s from now by this CVM's clock; set "
            "the clock of this CVM or of the coordinator"
        )
    return ends


def _load(pem: str, what: str) -> list[Parsed]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise CertificateError(f"the {what} cannot be read, expected PEM certificates") from None


def _pem(certificate: Parsed) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _names(certificate: Parsed, kind: type) -> list[str]:
    """The alternative names of that kind; none where the extension is missing or cannot be read."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return list(found.get_values_for_type(kind))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
