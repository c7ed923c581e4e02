"""Verifies a coordinator from outside: a bundle, held against a manifest that the reader has from the owner. Pure; time
is an argument.

`verify` returns what was proven, or raises `UnprovenError` whose cause says which of the checks failed. Nothing in the
bundle is believed for being there: the quote covers the statement and the asker's nonce, the statement covers
certificates, members and the manifest's digest, and that digest covers the manifests before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from evidence import documents
from evidence.bundle import Bundle, parse_nonce
from evidence.collateral import FixedCollateral
from evidence.errors import EvidenceError
from evidence.manifest import expected
from evidence.merkle import climb
from evidence.policy import check
from evidence.statement import Member, Statement, members_digest, report_data
from evidence.verify import Evidence, Verifier
from topology.allowed import Admitted, why_not_allowed
from topology.envelope import SHOWN_DIGITS, Signed, open_envelope
from topology.manifest import COORDINATORS, Manifest
from topology.owners import Owners
from topology.revocation import why_revoked
from topology.succession import Fault, SuccessionError, chain
from topology.trees import ManifestError

CLOCK_SKEW = 300.0
"""Seconds that the coordinator's clock and the reader's may differ; as much as at an admission."""
MAX_COLLATERAL = 4 << 20
"""Characters of all parts. Real ones have some 300,000."""


class Cause(Enum):
    """Which check failed."""

    NONCE = "nonce"
    """The answer is not about the reader's nonce, or the quote does not cover what the bundle states."""
    EVIDENCE = "evidence"
    """The quote is not genuine, or does not hold together with its event log."""
    FOREIGN = "foreign"
    """Genuine evidence, and not of a coordinator, or not on a platform, that the manifest allows."""
    CLOCK = "clock"
    """Stated or signed at another time than the reader's clock allows."""
    DIGEST = "digest"
    """Another manifest is enforced than the reader's."""
    OWNER = "owner"
    """A manifest is not signed by those who have to sign it."""
    CHAIN = "chain"
    """The history is cut off, has a gap or a fork, or ends elsewhere than at what is enforced."""
    AUTHORITY = "authority"
    """The certificates are not those of the statement, or do not hang together."""
    DOCUMENTS = "documents"
    """An app-compose text is not that of its compose hash, or the manifest names no such hash."""
    MEMBERS = "members"
    """The members are not those of the statement, or one is none that the manifest has."""
    ROLLBACK = "rollback"
    """This machine has seen a newer manifest, another one of this epoch, or another root CA."""


class UnprovenError(Exception):
    """The bundle does not prove what it has to."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """What the reader brings."""

    manifest: Manifest
    digest: str
    owners: Owners | None = None
    """Who has to have signed the first manifest. None: those whom that manifest names, which the reader's manifest pins
    by digest."""
    development_root: bytes | None = None
    """DER; None: Intel's root. With one nothing is proven about any hardware."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What this machine saw enforced last, when it verified it or set it."""

    epoch: int
    digest: str
    root_sha256: str
    """Empty where it was never shown: `./mesh set` does not ask for it."""

    def contradicts(self, other: Seen) -> bool:
        """Whether two were shown as in force at one time: another manifest of that epoch, or another root CA."""
        roots = {each for each in (self.root_sha256, other.root_sha256) if each}
        return self.epoch == other.epoch and (self.digest != other.digest or len(roots) > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was proven."""

    evidence: Evidence
    statement: Statement
    history: tuple[Signed, ...]
    """From the first manifest to the one that is enforced."""
    documents: Mapping[str, str]
    """App-compose texts by compose hash: as many as the owner handed over of those that the manifest names."""
    members: tuple[Member, ...]
    root_ca: bytes
    """DER, as the next."""
    mesh_ca: bytes

    @property
    def head(self) -> Signed:
        """The manifest that is enforced."""
        return self.history[-1]

    @property
    def seen(self) -> Seen:
        """What to remember."""
        head = self.statement.head
        return Seen(epoch=head.epoch, digest=head.digest, root_sha256=self.statement.root_sha256)


async def verify(bundle: Bundle, trusted: Trusted, *, nonce: bytes | None, seen: Seen | None, now: float) -> Verified:
    """What `bundle` proves at `now` (Unix seconds); UnprovenError. `nonce` is the one that the reader has just made;
    None: the bundle was made earlier, for its own nonce, and may be of any age. `seen`: None the first time.
    """
    evidence = await _verified_quote(bundle, trusted, nonce, now)
    stated = bundle.statement
    _check_subject(stated, evidence, trusted, now)
    _check_time(stated, now, fresh=nonce is not None)
    head = stated.head
    if (head.epoch, head.digest) != (trusted.manifest.epoch, trusted.digest):
        raise UnprovenError(
            Cause.DIGEST,
            f"the coordinator enforces epoch {head.epoch} ({_brief(head.digest)}), your manifest is epoch "
            f"{trusted.manifest.epoch} ({_brief(trusted.digest)})",
        )
    history = _history(bundle.history, trusted)
    root, mesh = authorities(bundle)
    try:
        documents.check(bundle.documents, documents.named(trusted.manifest))
    except documents.DocumentError as error:
        raise UnprovenError(Cause.DOCUMENTS, str(error)) from error
    _check_members(bundle, trusted.manifest)
    found = Verified(
        evidence=evidence,
        statement=stated,
        history=history,
        documents=bundle.documents,
        members=bundle.members,
        root_ca=root,
        mesh_ca=mesh,
    )
    if seen is not None:
        _check_seen(found, seen)
    return found


def _check_members(bundle: Bundle, manifest: Manifest) -> None:
    """Each is in a slot of its group, once, with a compose hash that the manifest allows there and does not revoke."""
    if members_digest(bundle.members) != bundle.statement.members_sha256:
        raise UnprovenError(Cause.MEMBERS, "the list of members is not the one that the quote covers")
    known: set[str] = set()
    for each in bundle.members:
        said = Admitted(
            peer_id=each.peer_id,
            group=each.group,
            address=None,
            app_id=None,
            compose_hash=each.compose_hash,
            image=None,
        )
        reason = "it is listed twice" if each.peer_id in known else why_not_allowed(manifest, said)
        if reason is not None:
            raise UnprovenError(Cause.MEMBERS, f"{each.peer_id!r:.80} is said to be admitted, and {reason:.300}")
        known.add(each.peer_id)


async def _verified_quote(bundle: Bundle, trusted: Trusted, nonce: bytes | None, now: float) -> Evidence:
    own = parse_nonce(bundle.nonce)
    if nonce is not None and own != nonce:
        raise UnprovenError(
            Cause.NONCE, f"the answer is about the nonce {own.hex():.16}…, asked was {nonce.hex():.16}…"
        )
    try:
        said = report_data(bundle.statement, climb(own, bundle.merkle_path))
    except ValueError as error:
        raise UnprovenError(Cause.NONCE, str(error)) from error
    verifier = Verifier(collateral=_collateral(bundle), root_ca_der=trusted.development_root)
    try:
        return await verifier.verify(
            quote=_quote(bundle), event_log=bundle.event_log, vm_config=bundle.vm_config, report_data=said, now=now
        )
    except EvidenceError as error:
        cause = {"REPORT_DATA_MISMATCH": Cause.NONCE, "VERIFIER_FAILED": Cause.CLOCK}.get(error.code, Cause.EVIDENCE)
        raise UnprovenError(cause, error.reason) from error


def _collateral(bundle: Bundle) -> FixedCollateral:
    if sum(map(len, bundle.collateral.values())) > MAX_COLLATERAL:
        raise UnprovenError(Cause.EVIDENCE, f"the collateral has more than {MAX_COLLATERAL} characters")
    try:
        return FixedCollateral(json.dumps(bundle.collateral))
    except Exception as error:  # the library has an error of its own for each oddity
        raise UnprovenError(Cause.EVIDENCE, f"the collateral cannot be read: {error!s:.200}") from error


def _quote(bundle: Bundle) -> bytes:
    try:
        return bytes.fromhex(bundle.quote)
    except ValueError as error:
        raise UnprovenError(Cause.EVIDENCE, "the quote is not hexadecimal") from error


def _check_subject(stated: Statement, evidence: Evidence, trusted: Trusted, now: float) -> None:
    try:
        check(evidence, expected(trusted.manifest, COORDINATORS), now)
    except EvidenceError as error:
        head = stated.head
        raise UnprovenError(
            Cause.CLOCK if error.code == "VERIFIER_FAILED" else Cause.FOREIGN,
            f"{error.reason}; by your manifest (it says that it enforces epoch {head.epoch}, {_brief(head.digest)})",
        ) from error
    own = trusted.manifest
    if (stated.cluster, stated.app_id) != (own.cluster, evidence.app_id):
        raise UnprovenError(
            Cause.FOREIGN,
            f"the statement is of cluster {stated.cluster!r:.80} and app {stated.app_id:.40}, expected {own.cluster!r} "
            f"and {evidence.app_id}",
        )
    if stated.peer_id not in {peer.peer_id for peer in own.coordinators.peers}:
        raise UnprovenError(Cause.FOREIGN, f"your manifest has no coordinator {stated.peer_id!r:.80}")
    # What its evidence shows was judged above; which slot it holds is its own word, which the quote covers.
    if (reason := why_revoked(own.revoked, peer_id=stated.peer_id)) is not None:
        raise UnprovenError(Cause.FOREIGN, f"{reason}, which is the coordinator that answers")


def _check_time(stated: Statement, now: float, *, fresh: bool) -> None:
    late = now - stated.issued_at
    if late < -CLOCK_SKEW or (fresh and late > CLOCK_SKEW):
        side = "behind" if late > 0 else "ahead of"
        raise UnprovenError(
            Cause.CLOCK,
            f"the coordinator's clock is {abs(late):.0f} s {side} this machine's, expected {CLOCK_SKEW:.0f} s at most",
        )


def _history(envelopes: tuple[str, ...], trusted: Trusted) -> tuple[Signed, ...]:
    """The manifests, each signed by the owners of the one before it, up to the reader's."""
    found = signed_history(_first_owners(envelopes, trusted), envelopes)
    if found[-1].digest != trusted.digest:
        raise UnprovenError(
            Cause.CHAIN, f"the history ends with {found[-1].name}, expected epoch {trusted.manifest.epoch}"
        )
    return found


def signed_history(owners: Owners, envelopes: tuple[str, ...]) -> tuple[Signed, ...]:
    """The manifests in `envelopes`: the cluster's first, signed by `owners`, and each that follows. UnprovenError for
    none, and for the first that is wrong.
    """
    if not envelopes:
        raise UnprovenError(Cause.CHAIN, "the history is empty, expected every manifest from the first on")
    try:
        return chain(owners, envelopes)
    except SuccessionError as error:
        cause = Cause.OWNER if error.fault is Fault.INVALID else Cause.CHAIN
        raise UnprovenError(cause, str(error)) from error


def _first_owners(envelopes: tuple[str, ...], trusted: Trusted) -> Owners:
    """Whose signatures the first manifest needs."""
    if trusted.owners is not None or not envelopes:
        return trusted.owners or trusted.manifest.owners
    try:
        # Not believed for it: the chain of digests from the reader's manifest has to lead here.
        return open_envelope(envelopes[0], None).manifest.owners
    except ManifestError as error:
        raise UnprovenError(Cause.OWNER, f"the first manifest of the history cannot be read: {error}") from error


def authorities(bundle: Bundle) -> tuple[bytes, bytes]:
    """Root CA and mesh CA (DER), which are those of the statement and hang together. UnprovenError."""
    stated = bundle.statement
    root, mesh = _certificate(bundle.root_ca, "root CA"), _certificate(bundle.mesh_ca, "mesh CA")
    cross = _certificate(bundle.mesh_ca_by_root, "mesh CA as the root certified it")
    der = {name: it.public_bytes(Encoding.DER) for name, it in (("root CA", root), ("mesh CA", mesh))}
    for name, wanted in (("root CA", stated.root_sha256), ("mesh CA", stated.mesh_ca_sha256)):
        if hashlib.sha256(der[name]).hexdigest() != wanted:
            raise UnprovenError(Cause.AUTHORITY, f"the {name} is not the one that the quote covers")
    for certificate, issuer, what in ((root, root, "root CA"), (mesh, mesh, "mesh CA"), (cross, root, "mesh CA")):
        _check_issuer(certificate, issuer, what)
    if (_spki(cross), cross.subject) != (_spki(mesh), mesh.subject):
        raise UnprovenError(Cause.AUTHORITY, "the root certified another key or name than the mesh CA's")
    uri = f"spiffe://{stated.cluster}/manifest/{stated.head.epoch}/{stated.head.digest}"
    if _uris(mesh) != [uri] or _uris(cross) != [uri]:
        raise UnprovenError(Cause.AUTHORITY, f"the mesh CA is of {_uris(mesh)!r:.200}, expected {uri}")
    return der["root CA"], der["mesh CA"]


def _certificate(pem: str, what: str) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        if len(found) != 1:
            raise ValueError(f"{len(found)} certificates, expected one")
        # All that is looked at later: the library reads a part when it is asked for.
        _spki(found[0]), found[0].subject, found[0].extensions
    except Exception as error:  # the library has an error of its own for each oddity of a certificate
        raise UnprovenError(Cause.AUTHORITY, f"the {what} cannot be read: {error!s:.200}") from error
    return found[0]


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_issuer(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("it is no certificate authority")
    except Exception as error:  # as above
        raise UnprovenError(Cause.AUTHORITY, f"the {what} does not hang together: {error!s:.200}") from error


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def _check_seen(found: Verified, seen: Seen) -> None:
    """The history has to go through what this machine has seen, under the same root CA."""
    head = found.head
    if head.manifest.epoch < seen.epoch:
        raise UnprovenError(
            Cause.ROLLBACK, f"{head.name} is enforced, and this machine has seen epoch {seen.epoch} enforced before"
        )
    before: Iterable[Signed] = (each for each in found.history if each.manifest.epoch == seen.epoch)
    if next((each.digest for each in before), None) != seen.digest:
        raise UnprovenError(
            Cause.ROLLBACK,
            f"the history has another manifest of epoch {seen.epoch} than this machine has seen enforced "
            f"({_brief(seen.digest)})",
        )
    if seen.root_sha256 not in ("", found.statement.root_sha256):
        raise UnprovenError(
            Cause.ROLLBACK, f"the root CA is another one than this machine has seen ({_brief(seen.root_sha256)}…)"
        )


def _brief(digest: str) -> str:
    return digest[:SHOWN_DIGITS]
