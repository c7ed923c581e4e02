"""Whom we expect: app, compose hashes, key provider and OS images, held against verified `Evidence`. Pure.

The coordinator checks workloads with it and a sidecar its coordinator, so both sides refuse by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import EvidenceError
from .verify import Evidence


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
class Expected:
    """The one app that a caller wants to be talking to."""

    app_id: str
    """40 hex digits."""
    compose_hashes: tuple[str, ...]
    """64 hex digits each; any of them will do."""
    key_provider_name: str
    key_provider_id: str
    os_images: tuple[ImageRule, ...]
    allow_development_images: bool = False
    revoked: frozenset[str] = frozenset()
    """What is refused though all of the above holds: `instance_id`, `compose_hash` or `device`, a space, the value."""


def check(evidence: Evidence, expected: Expected) -> None:
    """Returns when `evidence` is of `expected`; EvidenceError KMS_POLICY_MISMATCH or ADMISSION_REJECTED names the
    difference, REVOKED what is revoked of it.
    """
    facts = ("instance_id", "compose_hash", "device")
    revoked = expected.revoked & {f"{name} {getattr(evidence, name)}" for name in facts}
    if revoked:
        raise EvidenceError("REVOKED", f"the manifest revokes {', '.join(sorted(revoked))}")
    provider = (evidence.key_provider_name, evidence.key_provider_id)
    wanted = (expected.key_provider_name, expected.key_provider_id.lower())
    if provider != wanted:
        raise EvidenceError("KMS_POLICY_MISMATCH", f"the key provider is {_brief(provider)}, expected {_brief(wanted)}")
    if evidence.app_id != expected.app_id.lower():
        raise _refused(f"the app is {evidence.app_id!r}, expected {expected.app_id!r}")
    if evidence.compose_hash not in {item.lower() for item in expected.compose_hashes}:
        raise _refused(f"compose hash {evidence.compose_hash!r} is none of the {len(expected.compose_hashes)} allowed")
    _check_image(evidence, expected)


def _check_image(evidence: Evidence, expected: Expected) -> None:
    measured = (evidence.mrtd, evidence.rtmr0, evidence.rtmr1, evidence.rtmr2)
    # The registers decide: they pin the image even where the OS did not log its hash. A logged hash must agree all the
    # same.
    rules = [
        rule
        for rule in expected.os_images
        if tuple(item.lower() for item in (rule.mrtd, rule.rtmr0, rule.rtmr1, rule.rtmr2)) == measured
        and evidence.os_image_hash in (None, rule.os_image_hash.lower())
    ]
    if not rules:
        image = evidence.os_image_hash or "(hash not logged)"
        raise _refused(
            f"OS image {image} (MRTD {evidence.mrtd:.16}…, RTMR0 {evidence.rtmr0:.16}…) is not one of those allowed"
        )
    if any(rule.development for rule in rules) and not expected.allow_development_images:
        raise _refused(f"OS image {rules[0].os_image_hash} is a development image, and those are not allowed")


def _brief(provider: tuple[str, str]) -> str:
    # A KMS id is a 91-byte public key in hex: the end differs, the beginning is the same for every P-256 key.
    return f"{provider[0]!r} with id …{provider[1][-16:]!r}"


def _refused(reason: str) -> EvidenceError:
    return EvidenceError("ADMISSION_REJECTED", reason)
