"""Boundaries to what proves who somebody is: quotes, event logs, collateral, certificates, bundles, leases."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
from urllib.parse import quote, unquote

import dcap_qvl

from coordinator import leases
from coordinator.authority import load_p256
from coordinator.leases import LeaseError
from evidence import bundle, collateral, eventlog, outside, ratls
from evidence import quote as quotes
from evidence.bundle import BundleError
from evidence.collateral import FixedCollateral
from evidence.errors import EvidenceError
from evidence.outside import UnprovenError
from evidence.verify import Verifier
from lab.tee import DevTee
from sidecar.certificate_reading import CertificateError, Expected, agent_end, parse
from tests.evidence.bundles import NONCE, Coordinator
from tests.evidence.world import NOW, Submission, boot, submission
from tests.fuzz.harness import Harness, driven, part, text
from tests.sidecar.world import DIGEST, granted

LEASE_KEY = b"k" * 32
PARTS = ("tcb", "qe", "crl", "root_crl", "crl_chain", "tcb_chain", "qe_chain")
"""What a PCCS answers with; the first byte of an input says which one is the fuzzer's."""
LEAF_KEY = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7L"
    "tkBoN79R9Q=="
)
"""The generator of P-256 as a public key (SubjectPublicKeyInfo, DER, base64): the harness is the same in each run."""


@functools.cache
def tee() -> DevTee:
    """The platform of all inputs."""
    return DevTee(b"fuzzing")


@functools.cache
def evidence() -> Submission:
    """Evidence that holds."""
    return submission(tee(), boot(tee()))


@functools.cache
def pccs() -> dict[str, bytes]:
    """What a PCCS answers when all is well."""
    good = tee().collateral(NOW)

    def signed(member: str, name: str) -> bytes:
        return f'{{"{member}":{good[name]},"signature":"{good[f"{name}_signature"]}"}}'.encode()

    return {
        "tcb": signed("tcbInfo", "tcb_info"),
        "qe": signed("enclaveIdentity", "qe_identity"),
        "crl": bytes.fromhex(good["pck_crl"]),
        "root_crl": bytes.fromhex(good["root_ca_crl"]),
        "crl_chain": quote(good["pck_crl_issuer_chain"]).encode(),
        "tcb_chain": quote(good["tcb_info_issuer_chain"]).encode(),
        "qe_chain": quote(good["qe_identity_issuer_chain"]).encode(),
    }


def _verify(source: collateral.CollateralSource, raw: bytes, log: str, config: str) -> None:
    good = evidence()
    checker = Verifier(collateral=source, root_ca_der=tee().root_der)
    driven(checker.verify(quote=raw, event_log=log, vm_config=config, report_data=good.report_data, now=NOW))


@functools.cache
def _fixed() -> FixedCollateral:
    return FixedCollateral(tee().collateral_json(NOW))


def _quote(data: bytes) -> None:
    quotes.parse(data)
    _verify(_fixed(), data, evidence().event_log, evidence().vm_config)


def _quote_library(data: bytes) -> None:
    """What finds the platform of a quote, and judges it, is a library: whatever it is given, it ends in its own error
    (ValueError, which `evidence` turns into a refusal). Our parser would keep most of it away.
    """
    dcap_qvl.parse_quote(data)
    dcap_qvl.verify_with_root_ca(data, driven(_fixed().collateral(data, NOW)), tee().root_der, int(NOW))


def _event_log(data: bytes) -> None:
    which, rest = part(data, ("log", "vm_config"))
    if which == "vm_config":
        _verify(_fixed(), evidence().quote, evidence().event_log, text(rest))
        return
    found = eventlog.parse(text(rest))
    found.replay()
    for late in (True, False):
        found.identity(allow_application_events=late)


def _collateral(data: bytes) -> None:
    """As `HttpCollateral` takes answers: whatever is wrong with one, only the PCCS has failed."""
    name, rest = part(data, PARTS)
    answers = pccs() | {name: rest}
    try:
        crl, root_crl = (collateral._der(answers[each]) for each in ("crl", "root_crl"))
        chains = [unquote(answers[f"{each}_chain"].decode("latin-1")) for each in ("crl", "tcb", "qe")]
        found, expires = collateral._assemble(
            crl, chains[0], answers["tcb"], chains[1], answers["qe"], chains[2], root_crl
        )
        assert expires > 0
    except Exception as error:
        raise EvidenceError("VERIFIER_FAILED", f"{error!s:.300}") from error
    _verify(_Given(found), evidence().quote, evidence().event_log, evidence().vm_config)


class _Given:
    """Collateral that there is."""

    def __init__(self, found: dcap_qvl.QuoteCollateralV3) -> None:
        self._found = found

    async def collateral(self, *_: object) -> dcap_qvl.QuoteCollateralV3:
        """See `CollateralSource`."""
        return self._found


@functools.cache
def coordinator() -> Coordinator:
    """One that anybody may ask."""
    return Coordinator()


def _bundle(data: bytes) -> None:
    found = bundle.decode(data)
    bundle.lacks(found)
    who = coordinator()
    driven(outside.verify(found, who.trusted, nonce=NONCE, seen=None, now=who.now))


def _ratls(data: bytes) -> None:
    found = ratls.extract(data)
    eventlog.parse(found.event_log)


def _scale(data: bytes) -> None:
    """An attestation without the certificate around it, which the fuzzer would break first."""
    _, log, _ = ratls._attestation(data)
    eventlog.parse(log)


def _certificates(data: bytes) -> None:
    name, rest = part(data, ("leaf", "authorities", "public", "agent"))
    key = base64.b64decode(LEAF_KEY)
    if name == "agent":
        agent_end(text(rest), key, NOW)
        return
    answer = _granted()
    expected = Expected(cluster="demo", group="api", peer_id="api-0", leaf_key=key, public_key=key)
    parse(
        digest=DIGEST,
        leaf_pem=text(rest) if name == "leaf" else answer["leaf_pem"],
        authorities_pem=text(rest) if name == "authorities" else answer["authorities_pem"],
        public_pems={"api": text(rest)} if name == "public" else {},
        expected=expected,
        now=NOW,
    )


@functools.cache
def _granted() -> dict[str, str]:
    return granted(LEAF_KEY)


def _certificate(data: bytes) -> None:
    """The bytes of a certificate, in the one form that PEM gives them."""
    which = data[:1] or b"\0"
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(data[1:]).decode()}-----END CERTIFICATE-----\n"
    _certificates(which + pem.encode())


def _lease(data: bytes) -> None:
    which, rest = part(data, ("as it is", "sealed"))
    if which == "sealed":
        mac = hmac.new(LEASE_KEY, b"cvm-mesh lease\0" + rest, hashlib.sha256).digest()
        word = ".".join(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in (rest, mac))
    else:
        word = text(rest)
    found = leases.unseal(word, LEASE_KEY)
    assert leases.seal(found, LEASE_KEY).reveal() == word


def _public_key(data: bytes) -> None:
    load_p256(data)


HARNESSES: dict[str, Harness] = {
    "quote": Harness(read=_quote, foreseen=(EvidenceError,), most=8192),
    "quote_library": Harness(read=_quote_library, foreseen=(ValueError,), most=8192),
    "event_log": Harness(read=_event_log, foreseen=(EvidenceError,), most=8192),
    "collateral": Harness(read=_collateral, foreseen=(EvidenceError,), most=8192),
    "bundle": Harness(read=_bundle, foreseen=(BundleError, UnprovenError), most=65536),
    "ratls": Harness(read=_ratls, foreseen=(EvidenceError,), most=8192),
    "scale": Harness(read=_scale, foreseen=(EvidenceError,), most=8192),
    "certificates": Harness(read=_certificates, foreseen=(CertificateError,), most=4096),
    "certificate": Harness(read=_certificate, foreseen=(CertificateError,), most=2048),
    "public_key": Harness(read=_public_key, foreseen=(ValueError,), most=256),
    "lease": Harness(read=_lease, foreseen=(LeaseError,), most=1024),
}
