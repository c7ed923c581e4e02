"""A simulated CVM with its evidence, ready to be bent: what the evidence tests share. Also finds the real vectors."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from evidence.collateral import FixedCollateral
from evidence.eventlog import Event
from evidence.policy import Expected, ImageRule, ReferenceRule
from evidence.verify import Evidence, EvidenceError, Verifier
from lab.agent_tls import event_items
from lab.tee import CvmIdentity, DevTee, Measurements, make_cvm
from tests.support import ROOT
from topology.references import OsImage

NOW = 1_800_000_000.0
SAID = b"what the quote is asked to say"
COMPOSE = '{"manifest_version":2,"name":"api","runner":"docker-compose","docker_compose_file":"services: {}"}'


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Evidence as a CVM hands it over."""

    quote: bytes
    event_log: str
    vm_config: str
    report_data: bytes = SAID


def boot(tee: DevTee, **changes: Any) -> CvmIdentity:
    """A CVM of the one test app."""
    settings: dict[str, Any] = {
        "app_compose": COMPOSE, "app_id": None, "instance_seed": b"first", "os_version": "0.6.0", **changes,
    }  # fmt: skip
    return make_cvm(tee, **settings)


def submission(tee: DevTee, cvm: CvmIdentity, measurements: Measurements | None = None) -> Submission:
    """Honest evidence of `cvm`, or of a TD that measured otherwise."""
    return Submission(
        quote=tee.quote(measurements or cvm.measurements, SAID),
        event_log=json.dumps(items(cvm.boot_events)),
        vm_config=cvm.vm_config,
    )


def items(events: Sequence[Event]) -> list[dict[str, Any]]:
    """A log as the guest agent gives it."""
    return list(event_items(events, stripped=True))


def relogged(sent: Submission, change: Any) -> Submission:
    """`sent` after `change` was applied to the list of its events."""
    log = json.loads(sent.event_log)
    change(log)
    return replace(sent, event_log=json.dumps(log))


def verifier(tee: DevTee, *, trust: DevTee | None = None, late: bool = False) -> Verifier:
    """A verifier that trusts the root of `trust` (by default of `tee`) and has the collateral of `tee`."""
    return Verifier(
        collateral=FixedCollateral(tee.collateral_json(NOW)),
        root_ca_der=(trust or tee).root_der,
        allow_application_events=late,
    )


def verify(checker: Verifier, sent: Submission, now: float = NOW) -> Evidence:
    """What `checker` makes of `sent`."""
    return asyncio.run(
        checker.verify(
            quote=sent.quote, event_log=sent.event_log, vm_config=sent.vm_config, report_data=sent.report_data, now=now
        )
    )


def refusal(checker: Verifier, sent: Submission, now: float = NOW) -> EvidenceError:
    """The error with which `checker` refuses `sent`."""
    with pytest.raises(EvidenceError) as caught:
        verify(checker, sent, now)
    return caught.value


def rule(image: OsImage) -> ImageRule:
    """The manifest's entry as policy takes it."""
    return ImageRule(
        os_image_hash=image.os_image_hash,
        mrtd=image.mrtd,
        rtmr0=image.rtmr0,
        rtmr1=image.rtmr1,
        rtmr2=image.rtmr2,
        development=image.development,
    )


def reference(tee: DevTee, cvm: CvmIdentity, **changes: Any) -> ReferenceRule:
    """The reference that `cvm` fits."""
    base = ReferenceRule(
        name="measured",
        key_provider_name=tee.key_provider.name,
        key_provider_id=tee.key_provider.id,
        os_images=(rule(cvm.os_image),),
    )
    return replace(base, **changes)


def expected(tee: DevTee, cvm: CvmIdentity, **changes: Any) -> Expected:
    """The policy that `cvm` fits. A change is one of its reference, unless `Expected` has that field."""
    own = {name: changes.pop(name) for name in ("app_id", "compose_hashes", "revoked", "references") if name in changes}
    base = Expected(app_id=cvm.app_id, compose_hashes=(cvm.compose_hash,), references=(reference(tee, cvm, **changes),))
    return replace(base, **own)


def real(name: str) -> Path:
    """A file of the real evidence; skips with a reason where the folder is absent."""
    folder = Path(os.environ.get("MESH_REAL_EVIDENCE") or ROOT.parent / "shared" / "data" / "real-evidence")
    if not folder.is_dir():
        pytest.skip(f"no real evidence at {folder}: set MESH_REAL_EVIDENCE to its folder")
    return folder / name
