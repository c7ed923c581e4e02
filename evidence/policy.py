"""Whom we expect: app, compose hashes and references, held against verified `Evidence`. Pure; time is an argument.

The coordinator checks workloads with it and a sidecar its coordinator, so both sides refuse by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import EvidenceCode, EvidenceError
from .verify import Evidence

_UPDATED: Mapping[str, str] = {
    "OutOfDate": "UpToDate",
    "OutOfDateConfigurationNeeded": "ConfigurationNeeded",
    "TDRelaunchAdvised": "UpToDate",
    "TDRelaunchAdvisedConfigurationNeeded": "ConfigurationNeeded",
}
"""Statuses of a platform that is out of date, or was when the TD was launched, and what it is once its host has updated
it and the CVM has booted anew. Intel has no others, and `dcap_qvl` says them in these words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """One allowed OS image by what it measures, lower-case hex."""

    os_image_hash: str
    mrtd: str
    rtmr0: str
    """Varies with the CVM's shape (CPUs, memory, devices)."""
    rtmr1: str
    rtmr2: str
    development: bool = False
    """An image with a root login: what it runs is not what it measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbRules:
    """Which states of the platform's trusted computing base are good enough."""

    allowed_statuses: tuple[str, ...] = ("UpToDate",)
    """Intel's names, for example `UpToDate`, `SWHardeningNeeded`."""
    rejected_advisories: tuple[str, ...] = ()
    """For example `INTEL-SA-00615`."""
    min_evaluation_data_number: int = 0
    """Oldest issue of Intel's TCB data to judge by; 0 takes any."""
    grace_until: int = 0
    """Unix seconds until which a platform that is out of date counts as what it is once it was updated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRule:
    """What a CVM may be: all of it holds, or none of it counts."""

    name: str
    key_provider_name: str
    key_provider_id: str
    os_images: tuple[ImageRule, ...]
    allow_development_images: bool = False
    tcb: TcbRules = TcbRules()
    devices: tuple[str, ...] = ()
    """Machines by their PPID; empty means any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The one app that a caller wants to be talking to."""

    app_id: str
    """40 hex digits."""
    compose_hashes: tuple[str, ...]
    """64 hex digits each; any of them will do."""
    references: tuple[ReferenceRule, ...]
    """Any of them will do."""
    revoked: frozenset[str] = frozenset()
    """What is refused though all of the above holds: `instance_id`, `compose_hash` or `device`, a space, the value."""


def check(evidence: Evidence, expected: Expected, now: float) -> None:
    """Returns when `evidence` is of `expected` at Unix time `now`. EvidenceError names the difference: REVOKED,
    ADMISSION_REJECTED, KMS_POLICY_MISMATCH for keys from elsewhere, VERIFIER_FAILED where the TCB data is too old.
    """
    facts = ("instance_id", "compose_hash", "device")
    revoked = expected.revoked & {f"{name} {getattr(evidence, name)}" for name in facts}
    if revoked:
        raise EvidenceError("REVOKED", f"the manifest revokes {', '.join(sorted(revoked))}")
    faults: list[EvidenceError] = []
    for reference in expected.references:
        try:
            _check_reference(evidence, reference, now)
        except EvidenceError as fault:
            faults.append(fault)
        else:
            break
    else:
        raise _none_holds(expected.references, faults)
    if evidence.app_id != expected.app_id.lower():
        raise _refused(f"the app is {evidence.app_id!r}, expected {expected.app_id!r}")
    if evidence.compose_hash not in {item.lower() for item in expected.compose_hashes}:
        raise _refused(f"compose hash {evidence.compose_hash!r} is none of the {len(expected.compose_hashes)} allowed")


def _none_holds(references: tuple[ReferenceRule, ...], faults: list[EvidenceError]) -> EvidenceError:
    """What is wrong by each reference."""
    if len(faults) == 1:
        return faults[0]
    # Data that is too old is what is found last: all else of that reference holds, and the CVM may try again. That its
    # keys come from elsewhere is so only where it is so by all.
    codes: tuple[EvidenceCode, ...] = ("VERIFIER_FAILED", "ADMISSION_REJECTED", "KMS_POLICY_MISMATCH")
    found = {fault.code for fault in faults}
    code: EvidenceCode = next((it for it in codes if it in found), "ADMISSION_REJECTED")
    told = "; ".join(f"{rule.name}: {fault.reason}" for rule, fault in zip(references, faults, strict=True))
    return EvidenceError(code, f"none of the manifest's {len(references)} references holds: {told}")


def _check_reference(evidence: Evidence, reference: ReferenceRule, now: float) -> None:
    """EvidenceError with the first thing that does not hold."""
    provider = (evidence.key_provider_name, evidence.key_provider_id)
    wanted = (reference.key_provider_name, reference.key_provider_id.lower())
    if provider != wanted:
        raise EvidenceError("KMS_POLICY_MISMATCH", f"the key provider is {_brief(provider)}, expected {_brief(wanted)}")
    _check_image(evidence, reference)
    if reference.devices and evidence.device not in reference.devices:
        raise _refused(f"the machine is {evidence.device}, which is none of the {len(reference.devices)} allowed")
    _check_tcb(evidence, reference.tcb, now)


def _check_image(evidence: Evidence, reference: ReferenceRule) -> None:
    measured = (evidence.mrtd, evidence.rtmr0, evidence.rtmr1, evidence.rtmr2)
    # The registers decide: they pin the image even where the OS did not log its hash. A logged hash must agree all the
    # same.
    rules = [
        rule
        for rule in reference.os_images
        if tuple(item.lower() for item in (rule.mrtd, rule.rtmr0, rule.rtmr1, rule.rtmr2)) == measured
        and evidence.os_image_hash in (None, rule.os_image_hash.lower())
    ]
    if not rules:
        image = evidence.os_image_hash or "(hash not logged)"
        raise _refused(
            f"OS image {image} (MRTD {evidence.mrtd:.16}…, RTMR0 {evidence.rtmr0:.16}…) is not one of those allowed"
        )
    if any(rule.development for rule in rules) and not reference.allow_development_images:
        raise _refused(f"OS image {rules[0].os_image_hash} is a development image, and those are not allowed")


def _check_tcb(evidence: Evidence, rules: TcbRules, now: float) -> None:
    status, allowed = evidence.tcb_status, rules.allowed_statuses
    updated = _UPDATED.get(status, status)
    if status not in allowed and (updated not in allowed or now >= rules.grace_until):
        over = ""
        if rules.grace_until and updated in allowed:
            over = f"; the grace for it ended at {datetime.fromtimestamp(rules.grace_until, UTC):%Y-%m-%d %H:%M:%S} UTC"
        raise _refused(
            f"the platform's TCB status is {status!r} {list(evidence.advisory_ids)}, allowed are: "
            f"{', '.join(allowed)}{over}"
        )
    rejected = sorted(set(evidence.advisory_ids) & {advisory.strip().upper() for advisory in rules.rejected_advisories})
    if rejected:
        raise _refused(f"advisories {rejected} apply to the platform, and policy rejects them")
    wanted = rules.min_evaluation_data_number
    if evidence.evaluation_data_number < wanted:
        raise EvidenceError(
            "VERIFIER_FAILED",
            f"TCB data number {evidence.evaluation_data_number} is too old, policy wants {wanted} or newer",
        )


def _brief(provider: tuple[str, str]) -> str:
    # A KMS id is a 91-byte public key in hex: the end differs, the beginning is the same for every P-256 key.
    return f"{provider[0]!r} with id …{provider[1][-16:]!r}"


def _refused(reason: str) -> EvidenceError:
    return EvidenceError("ADMISSION_REJECTED", reason)
