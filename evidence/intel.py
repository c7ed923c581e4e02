"""What Intel's own verifier demands of collateral and platform, and `dcap_qvl` (0.7.0) does not. Pure.

Intel's rules: "Intel SGX and TDX DCAP Quote Verification Library", TcbInfoVerifier, EnclaveIdentityVerifier,
CertificateChain and PckCrlVerifier. The library says that a signature holds; this says whose it has to
be, and for what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from .errors import EvidenceError

INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""Of Intel's SGX root CA certificate in DER, which `dcap_qvl` has built in."""
SIGNER = "TCB Signing"
"""Part of the common name of who signs TCB info and QE identity: "Intel SGX TCB Signing", also for TDX. The development
Intel's has the part, too."""
TD_ATTRIBUTES = bytes.fromhex("0000001000000000")
"""SEPT_VE_DISABLE (bit 28) alone: dstack gives QEMU's `tdx-guest` no attributes (`configure_tdx_guest` in
vmm/src/app/qemu.rs of Dstack-TEE/dstack at 312dc605), and QEMU sets this one unasked. Other bits let the host or a
service TD in (DEBUG, MIGRATABLE), add what the host may learn from (PERFMON), or have no meaning yet. Names: Intel, TDX
Module ABI, ATTRIBUTES."""
XFAM_NEEDED = 0x3
"""x87 and SSE: Intel's modules set these for every TD (XFAM fixed 1)."""
XFAM_KNOWN = 0x602E7
"""x87, SSE, AVX, AVX-512 (5 to 7), PKRU (9), AMX (17, 18): what `-cpu host`, as dstack starts QEMU (`base_command`
there), gives on machines with TDX, and what real quotes of dstack CVMs say. The rest is state that none was seen with:
tracing (PT 8, LBR 15), CET, UINTR, HDC, HWP, and bits without meaning. Names: Intel SDM, XCR0 and IA32_XSS."""
_SEVERITY = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
"""Statuses from good to bad: of two levels the worse one is the platform's."""


def check_collateral(collateral: dcap_qvl.QuoteCollateralV3, root: bytes | None, seconds: int) -> None:
    """EvidenceError VERIFIER_FAILED when the collateral is not signed by whom Intel has for it, or a revocation list is
    of a time that is still to come. `root` is the trusted root in DER, None for Intel's.
    """
    wanted = INTEL_ROOT_SHA256 if root is None else hashlib.sha256(root).hexdigest()
    _check_signer("TCB info", collateral.tcb_info_issuer_chain, wanted)
    _check_signer("QE identity", collateral.qe_identity_issuer_chain, wanted)
    _check_list("the PCK revocation list", collateral.pck_crl, seconds)
    _check_list("the root's revocation list", collateral.root_ca_crl, seconds)


def _check_signer(what: str, chain: str, root_sha256: str) -> None:
    """The chain is the signer for TCB data and the root that issued it, and nobody between them."""
    try:
        found = x509.load_pem_x509_certificates(chain.encode())
        if len(found) != 2:
            raise ValueError(f"{len(found)} certificates, expected 2, its signer's and the root's")
        signer, root = found
        names = signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        common = str(names[0].value) if names else ""
        if len(names) != 1 or SIGNER not in common:
            raise ValueError(f"the signer is {common!r:.80}, expected Intel's for it ({SIGNER!r})")
        if hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest() != root_sha256:
            raise ValueError("it does not end in the trusted root")
        signer.verify_directly_issued_by(root)
        if _is_authority(signer):
            raise ValueError(f"the signer {common!r:.80} is an authority")
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        reason = str(error) or type(error).__name__
        raise _unusable(f"the certificate chain of the {what} cannot be used: {reason}") from error


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _check_list(what: str, der: bytes, seconds: int) -> None:
    try:
        begins = x509.load_der_x509_crl(der).last_update_utc
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(f"{what} cannot be read: {error}") from error
    if seconds < begins.timestamp():
        raise _unusable(f"{what} is of {begins:%Y-%m-%d %H:%M:%S} UTC, which is still to come: {_moment(seconds)} UTC")


def check_platform(claims: Mapping[str, Any], tcb_info: str) -> None:
    """EvidenceError QUOTE_INVALID when the TCB info is for another provisioning certification enclave (PCE) than the
    machine's certificate says. `claims` is what the library read; the signature of `tcb_info` holds.
    """
    stated = json.loads(tcb_info).get("pceId")
    machine = bytes(claims["platform"]["pck"]["pce_id"]).hex()
    if not isinstance(stated, str) or stated.lower() != machine:
        raise _invalid(f"the TCB info is for PCE ID {stated!r:.20}, the machine's certificate says {machine}")


def check_td(td_attributes: bytes, xfam: bytes) -> None:
    """EvidenceError QUOTE_INVALID for a TD that was started otherwise than dstack does it (8 bytes each, as quoted)."""
    if td_attributes != TD_ATTRIBUTES:
        raise _invalid(
            f"the TD's attributes are {td_attributes.hex()}, expected {TD_ATTRIBUTES.hex()}, which dstack sets"
        )
    features = int.from_bytes(xfam, "little")
    if features & ~XFAM_KNOWN or features & XFAM_NEEDED != XFAM_NEEDED:
        raise _invalid(
            f"the TD's XFAM is {features:#x}, expected {XFAM_NEEDED:#x} and beyond that only what is in {XFAM_KNOWN:#x}"
        )


def judgement(claims: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Status and advisories (upper case, sorted) of the platform: those of the level that the TD was launched at, which
    `dcap_qvl` has merged with the quoting enclave's and the TDX module's, and of the level that it runs at now, which a
    quote of TD 1.5 says, too. The worse status counts.
    """
    status, advisories = str(claims["tcb"]["status"]), list(claims["tcb"]["advisory_ids"])
    now = claims["platform"]["current_tcb_level"]
    if now is not None:
        status = max(status, str(now["tcbStatus"]), key=_severity)
        advisories += now["advisoryIDs"]
    if status == "Revoked":
        raise _invalid("the TDX module that runs the TD now is of a TCB level that Intel revoked")
    return status, tuple(sorted({str(advisory).strip().upper() for advisory in advisories}))


def _severity(status: str) -> int:
    """A word that is not known is worse than all: no policy can allow it."""
    return _SEVERITY.index(status) if status in _SEVERITY else len(_SEVERITY)


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _unusable(reason: str) -> EvidenceError:
    return EvidenceError("VERIFIER_FAILED", reason)


def _invalid(reason: str) -> EvidenceError:
    return EvidenceError("QUOTE_INVALID", reason)
