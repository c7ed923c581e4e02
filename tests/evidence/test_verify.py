"""`evidence.verify`: real evidence passes against Intel's root; each way of cheating is refused with its own code."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evidence.collateral import FixedCollateral
from evidence.keccak import keccak256
from evidence.verify import EvidenceError, Verifier
from lab.tee import CvmIdentity, DevTee, TcbState, runtime_event
from tests.evidence.world import (
    NOW,
    SAID,
    Submission,
    boot,
    real,
    refusal,
    relogged,
    submission,
    verifier,
    verify,
)

REAL_NOW = 1771412331


def real_submission() -> Submission:
    """What a production CVM sent."""
    report = json.loads(real("dstack_quote_report.json").read_text())
    return Submission(
        quote=bytes.fromhex(report["quote"]),
        event_log=report["event_log"],
        vm_config=report["vm_config"],
        report_data=bytes.fromhex(report["report_data"]),
    )


def real_verifier(*, late: bool = True, root: bytes | None = None) -> Verifier:
    """A verifier with the collateral of that CVM's platform; Intel's root unless told otherwise."""
    collateral = FixedCollateral(real("dstack_quote_report.collateral.json").read_text())
    return Verifier(collateral=collateral, root_ca_der=root, allow_application_events=late)


def test_real_evidence_verifies_against_intels_root() -> None:
    """A production CVM's quote, log and configuration hold together, at both ends of its collateral's life."""
    for now in (REAL_NOW, 1774003274):
        facts = verify(real_verifier(), real_submission(), now)
        assert facts.app_id == "3763bc34552cf3a27ff71ad5f7a90471562a1a2d"
        assert (facts.key_provider_name, facts.tcb_status, facts.evaluation_data_number) == (
            "local-sgx",
            "UpToDate",
            18,
        )
        assert facts.development_root is False
        assert facts.os_image_hash is None


@pytest.mark.parametrize("now", [REAL_NOW - 1, 1774003275])
def test_collateral_out_of_its_time_is_our_failure(now: float) -> None:
    """A verifier with stale collateral must not blame the CVM."""
    error = refusal(real_verifier(), real_submission(), now)
    assert error.code == "VERIFIER_FAILED"


def test_the_real_application_event_is_refused_for_admission() -> None:
    """That CVM extended RTMR3 after `system-ready`: good to look at, not to admit."""
    error = refusal(real_verifier(late=False), real_submission(), REAL_NOW)
    assert (error.code, "system-ready" in error.reason) == ("ADMISSION_REJECTED", True)


def test_the_other_real_quote_verifies_as_far_as_it_goes() -> None:
    """The second real quote is genuine; it comes without a log, and nothing is believed without one."""
    collateral = FixedCollateral(real("tdx_quote.collateral.json").read_text())
    checker = Verifier(collateral=collateral)
    raw = real("tdx_quote.bin").read_bytes()
    said = raw[568:632]
    sent = Submission(quote=raw, event_log="[]", vm_config="", report_data=said)
    for now in (1750329147, 1752919234):
        # RTMR3 is zero, as the empty log replays, so the refusal is about identity: the quote itself passed.
        error = refusal(checker, sent, now)
        assert (error.code, "no 'system-ready'" in error.reason) == ("ADMISSION_REJECTED", True)


def test_real_evidence_fails_under_the_development_root(tee: DevTee) -> None:
    """A verifier that trusts the development root trusts nothing else."""
    error = refusal(real_verifier(root=tee.root_der), real_submission(), REAL_NOW)
    assert error.code == "QUOTE_INVALID"


def test_honest_evidence_gives_the_facts(tee: DevTee, cvm: CvmIdentity) -> None:
    """What the simulated CVM measured is what comes out, marked as development."""
    facts = verify(verifier(tee), submission(tee, cvm))
    assert (facts.app_id, facts.instance_id, facts.compose_hash) == (cvm.app_id, cvm.instance_id, cvm.compose_hash)
    assert facts.os_image_hash == cvm.os_image.os_image_hash
    assert (facts.mrtd, facts.rtmr0) == (cvm.os_image.mrtd, cvm.os_image.rtmr0)
    assert facts.rtmr3 == cvm.measurements.rtmr3.hex()
    assert facts.report_data == SAID.ljust(64, b"\0")
    assert facts.development_root is True


def test_development_evidence_fails_against_intels_root(tee: DevTee, cvm: CvmIdentity) -> None:
    """The default verifier never accepts the simulated TEE."""
    checker = Verifier(collateral=FixedCollateral(tee.collateral_json(NOW)))
    assert refusal(checker, submission(tee, cvm)).code == "QUOTE_INVALID"


def test_another_root_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """A quote of another development PKI does not verify, with either one's collateral."""
    other = DevTee(b"another seed")
    assert refusal(verifier(other, trust=tee), submission(other, cvm)).code == "QUOTE_INVALID"
    assert refusal(verifier(tee), submission(other, cvm)).code == "QUOTE_INVALID"


def test_other_report_data_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """The quote must say exactly what was asked."""
    error = refusal(verifier(tee), replace(submission(tee, cvm), report_data=b"something else"))
    assert error.code == "REPORT_DATA_MISMATCH"


def test_report_data_that_is_too_long_never_matches(tee: DevTee, cvm: CvmIdentity) -> None:
    """Nothing is cut off to make it fit."""
    error = refusal(verifier(tee), replace(submission(tee, cvm), report_data=SAID.ljust(64, b"\0") + b"\0"))
    assert error.code == "REPORT_DATA_MISMATCH"


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("td_attributes", bytes.fromhex("0100001000000000"), "debug"),
        ("td_attributes", bytes.fromhex("0000003000000000"), "migratable"),
        ("mr_signer_seam", b"\1" + bytes(47), "TDX module"),
    ],
)
def test_a_td_that_its_host_can_open_is_refused(
    tee: DevTee, cvm: CvmIdentity, field: str, value: bytes, word: str
) -> None:
    """Debug TDs, migratable ones and foreign TDX modules are refused although their quotes are genuine."""
    measured = dataclasses.replace(cvm.measurements, **{field: value})
    error = refusal(verifier(tee), submission(tee, cvm, measured))
    assert (error.code, word in error.reason) == ("QUOTE_INVALID", True)


def test_a_quote_with_trailing_bytes_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """The platform's verifier lets them pass."""
    sent = submission(tee, cvm)
    assert refusal(verifier(tee), replace(sent, quote=sent.quote + b"\0")).code == "QUOTE_INVALID"


def drop_payload(log: list[dict[str, Any]]) -> None:
    """Empties the compose hash."""
    next(item for item in log if item["event"] == "compose-hash")["event_payload"] = ""


def change_payload(log: list[dict[str, Any]]) -> None:
    """Claims another compose hash."""
    next(item for item in log if item["event"] == "compose-hash")["event_payload"] = "ab" * 32


def wrong_digest(log: list[dict[str, Any]]) -> None:
    """States a digest that is not the event's."""
    next(item for item in log if item["event"] == "app-id")["digest"] = "ab" * 48


def other_register(log: list[dict[str, Any]]) -> None:
    """Files a runtime event under RTMR2."""
    next(item for item in log if item["event"] == "app-id").update(imr=2, digest="ab" * 48)


def reorder(log: list[dict[str, Any]]) -> None:
    """Swaps two runtime events."""
    log[-3], log[-4] = log[-4], log[-3]


def append(log: list[dict[str, Any]]) -> None:
    """Adds an event that was never extended."""
    log.append({**log[-1], "event": "made-up"})


def remove(log: list[dict[str, Any]]) -> None:
    """Hides the last event."""
    del log[-1]


@pytest.mark.parametrize(
    "change", [drop_payload, change_payload, wrong_digest, other_register, reorder, append, remove]
)
def test_a_log_that_was_touched_is_refused(tee: DevTee, cvm: CvmIdentity, change: Any) -> None:
    """No edit of the runtime events survives the replay."""
    assert refusal(verifier(tee), relogged(submission(tee, cvm), change)).code == "QUOTE_INVALID"


def test_events_after_system_ready_are_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """Even when they were really extended and replay."""
    late = cvm.with_events(runtime_event("mine", b"x"))
    assert refusal(verifier(tee), submission(tee, late)).code == "ADMISSION_REJECTED"
    assert verify(verifier(tee, late=True), submission(tee, late)).app_id == cvm.app_id


@pytest.mark.parametrize("name", ["app-id", "compose-hash", "key-provider", "system-ready"])
def test_a_second_identity_is_refused(tee: DevTee, cvm: CvmIdentity, name: str) -> None:
    """A trusted name twice, as EmitEvent of OS 0.5 allows, is refused in every mode."""
    twice = cvm.with_events(runtime_event(name, bytes(20)))
    for late in (False, True):
        assert refusal(verifier(tee, late=late), submission(tee, twice)).code == "ADMISSION_REJECTED"


@pytest.mark.parametrize(
    ("config_id", "good"),
    [
        (bytes(48), True),
        (b"\1" + b"\xab" * 32 + bytes(15), False),
        (b"\2" + b"\xab" * 32 + bytes(15), False),
        (b"\3" + b"\xab" * 32 + bytes(15), True),
        (b"\4" + b"\xab" * 32 + bytes(15), False),
        (b"\0" + b"\xab" * 47, False),
        (b"\3" + b"\xab" * 47, False),
    ],
)
def test_mr_config_id_must_agree_where_it_is_set(tee: DevTee, cvm: CvmIdentity, config_id: bytes, good: bool) -> None:
    """What the host promised at launch is held against the log; unknown forms are refused, absence is not."""
    sent = submission(tee, cvm, dataclasses.replace(cvm.measurements, mr_config_id=config_id))
    if good:
        assert verify(verifier(tee), sent).compose_hash == cvm.compose_hash
    else:
        assert "mr_config_id" in refusal(verifier(tee), sent).reason


def test_mr_config_id_form_2_covers_app_and_key_provider(tee: DevTee, cvm: CvmIdentity) -> None:
    """The hash over compose hash, app, provider kind and provider id is recomputed."""
    provider = bytes.fromhex(cvm.key_provider.id)
    promised = keccak256(bytes.fromhex(cvm.compose_hash) + bytes.fromhex(cvm.app_id) + b"\2" + provider)
    measured = dataclasses.replace(cvm.measurements, mr_config_id=b"\2" + promised + bytes(15))
    assert verify(verifier(tee), submission(tee, cvm, measured)).app_id == cvm.app_id


@pytest.mark.parametrize(
    ("vm_config", "good"),
    [
        ("", True),
        ("{}", True),
        ('{"os_image_hash":"' + "AB" * 32 + '"}', False),
        ('{"os_image_hash":7}', False),
        ('{"os_image_hash":"","os_image_hash":""}', False),
        ("[]", False),
        ("{", False),
        ("[" * 100_000, False),
        (" " * 300_000, False),
    ],
)
def test_the_claimed_image_must_be_the_measured_one(tee: DevTee, cvm: CvmIdentity, vm_config: str, good: bool) -> None:
    """The host's word is not needed, but may not contradict the log."""
    sent = replace(submission(tee, cvm), vm_config=vm_config)
    if good:
        assert verify(verifier(tee), sent).os_image_hash == cvm.os_image.os_image_hash
    else:
        assert refusal(verifier(tee), sent).code == "QUOTE_INVALID"


def tee_in(cvm_seed: bytes = b"evidence tests", **state: Any) -> DevTee:
    """The same TEE while "Intel" says something else about its platform."""
    return DevTee(cvm_seed, TcbState(**state))


def test_a_revoked_platform_is_refused(cvm: CvmIdentity) -> None:
    """A PCK certificate on the revocation list ends it, whatever policy says."""
    tee = tee_in(pck_revoked=True)
    error = refusal(verifier(tee), submission(tee, cvm))
    assert error.code == "QUOTE_INVALID"
    assert "revoked" in error.reason.lower()


def test_a_revoked_tcb_level_is_refused(cvm: CvmIdentity) -> None:
    """So does a TCB level that Intel revoked."""
    tee = tee_in(status="Revoked")
    assert refusal(verifier(tee), submission(tee, cvm)).code == "QUOTE_INVALID"


@pytest.mark.parametrize(
    "status",
    [
        "UpToDate",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
    ],
)
def test_tcb_status_is_reported(cvm: CvmIdentity, status: str) -> None:
    """In Intel's words, with advisories and number, whichever it is: what is good enough is the manifest's affair."""
    tee = tee_in(status=status, advisory_ids=("INTEL-SA-00001",))
    facts = verify(verifier(tee), submission(tee, cvm))
    assert (facts.tcb_status, facts.advisory_ids) == (status, ("INTEL-SA-00001",))
    assert facts.evaluation_data_number == 20


def test_expired_collateral_is_our_failure(cvm: CvmIdentity) -> None:
    """Collateral past its time cannot judge anyone."""
    tee = tee_in(lifetime=timedelta(days=-1))
    assert refusal(verifier(tee), submission(tee, cvm)).code == "VERIFIER_FAILED"


_TEE = DevTee(b"malleability")
_CVM = boot(_TEE)
_SENT = submission(_TEE, _CVM)
_FACTS = verify(verifier(_TEE), _SENT)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
@given(st.integers(0, 763) | st.integers(0, len(_SENT.quote) - 1), st.integers(1, 255))
def test_no_flipped_byte_changes_a_fact(offset: int, mask: int) -> None:
    """A flipped byte is refused, or (in bytes that nobody signed, such as PEM line ends) changes no fact at all."""
    changed = bytearray(_SENT.quote)
    changed[offset] ^= mask
    try:
        facts = verify(verifier(_TEE), replace(_SENT, quote=bytes(changed)))
    except EvidenceError:
        return
    assert offset > 763, "a byte that the signatures cover was changed and nobody noticed"
    assert facts == _FACTS


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.binary(max_size=2000), st.text(max_size=200), st.text(max_size=200))
def test_garbage_only_gives_typed_errors(quote: bytes, event_log: str, vm_config: str) -> None:
    """Whatever comes in, EvidenceError is the only way out."""
    error = refusal(verifier(_TEE), Submission(quote=quote, event_log=event_log, vm_config=vm_config))
    assert error.code == "QUOTE_INVALID"


def test_a_wide_sweep_of_flipped_bytes() -> None:
    """Every eleventh byte of the quote in turn, with one bit flipped."""
    for offset in range(0, len(_SENT.quote), 11):
        changed = bytearray(_SENT.quote)
        changed[offset] ^= 1
        try:
            facts = verify(verifier(_TEE), replace(_SENT, quote=bytes(changed)))
        except EvidenceError:
            continue
        assert offset > 763
        assert facts == _FACTS
