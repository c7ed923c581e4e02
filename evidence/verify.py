"""Verifies a CVM's evidence: quote, collateral, event log and report data must hold together, or EvidenceError says
where not.

The cryptography is `dcap_qvl`'s; the rules around it are ours and stricter than the platform's verifier
(docs/attestation.md). What a manifest says does not count here: `evidence.policy` holds the facts against it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Protocol

import dcap_qvl

from runtime.jsons import once

from . import eventlog as event_logs
from . import intel
from . import quote as quotes
from .collateral import CollateralSource
from .errors import EvidenceCode, EvidenceError
from .keccak import keccak256
from .verdicts import Verdicts

__all__ = ["Evidence", "EvidenceCode", "EvidenceError", "Verifier"]

_PROVIDER_KINDS = {"none": 0, "local": 1, "local-sgx": 1, "kms": 2, "tpm": 3}
"""Key provider kinds in `mr_config_id` form 2 (dstack-types, mr_config.rs)."""
_STALE = (
    "TCBInfo expired",
    "TCBInfo issue date is in the future",
    "QE Identity expired",
    "QE Identity issue date",
    "CrlExpired",
)
"""dcap_qvl's words for collateral out of its time: our side's fault, not the peer's."""
_MAX_DETAIL = 1024
"""Characters of dcap_qvl's reason. The whole chain of its errors has some 200 where the input is not quoted."""
_MAX_VM_CONFIG = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Facts about a CVM, each one proven by a quote that was verified. Lower-case hex."""

    app_id: str
    instance_id: str
    compose_hash: str
    os_image_hash: str | None
    """As the OS logged it; None where it does not (the registers still pin the image)."""
    key_provider_name: str
    key_provider_id: str
    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    rtmr3: str
    report_data: bytes
    """64 bytes."""
    tcb_status: str
    """Of the platform, in Intel's words. Not judged here, as the next two: `evidence.policy` does."""
    advisory_ids: tuple[str, ...]
    """In upper case."""
    evaluation_data_number: int
    """Which issue of Intel's TCB data said so."""
    device: str
    """The platform ID (PPID) in Intel's certificate of the machine, 32 hex digits."""
    development_root: bool
    """True when the chain ends in a root other than Intel's: nothing is proven about any hardware."""


class EvidenceVerifier(Protocol):
    """What is asked of a `Verifier`, for those who are given one."""

    async def verify(self, *, quote: bytes, event_log: str, vm_config: str, report_data: bytes, now: float) -> Evidence:
        """The proven facts, or EvidenceError."""
        ...


class Verifier:
    """Turns evidence into facts. One object serves many callers; it keeps what it found about machines."""

    def __init__(
        self,
        *,
        collateral: CollateralSource,
        root_ca_der: bytes | None = None,
        allow_application_events: bool = False,
    ) -> None:
        """`root_ca_der=None` trusts Intel's root; anything else marks its evidence as `development_root`.

        `allow_application_events` accepts events after `system-ready` (ignored, and never under a name of the OS): for
        evidence that is looked at, not for admission.
        """
        self._collateral = collateral
        self._root = root_ca_der
        self._allow_application_events = allow_application_events
        self._machines = Verdicts[_Tcb]()

    async def verify(self, *, quote: bytes, event_log: str, vm_config: str, report_data: bytes, now: float) -> Evidence:
        """The facts in this evidence at Unix time `now`, or EvidenceError.

        `report_data` is what the quote must say; shorter ones are padded with zeros to 64 bytes, as the guest agent
        does.
        """
        # What needs no network and no cryptography goes first: garbage is refused in microseconds.
        parsed = quotes.parse(quote)
        _check_attributes(parsed)
        log = event_logs.parse(event_log)
        tcb = self._verify_quote(quote, parsed, await self._collateral.collateral(quote, now), now)
        if parsed.report_data != report_data.ljust(64, b"\0"):
            raise EvidenceError(
                "REPORT_DATA_MISMATCH",
                f"the quote's report data is {parsed.report_data.hex()}, expected {report_data.hex()}",
            )
        replayed = log.replay()[3]
        if replayed != parsed.rtmr3:
            raise _invalid(
                f"the event log replays to RTMR3 {replayed.hex():.16}…, the quote says {parsed.rtmr3.hex():.16}…"
            )
        identity = log.identity(allow_application_events=self._allow_application_events)
        _check_config_id(parsed.mr_config_id, identity)
        _check_claimed_image(vm_config, identity.os_image_hash)
        return self._evidence(parsed, identity, tcb)

    def _verify_quote(
        self, raw: bytes, parsed: quotes.Quote, collateral: dcap_qvl.QuoteCollateralV3, now: float
    ) -> _Tcb:
        """What is known of the machine, where the quote's own signature holds; else of a quote verified as a whole."""
        found = self._machines.find(raw, parsed, collateral, now)
        if found is None:
            found, ends_at = self._verify_whole(raw, parsed, collateral, now)
            self._machines.keep(raw, parsed, collateral, found, now=now, ends_at=ends_at)
        return found

    def _verify_whole(
        self, raw: bytes, parsed: quotes.Quote, collateral: dcap_qvl.QuoteCollateralV3, now: float
    ) -> tuple[_Tcb, float]:
        """And until when (Unix seconds) all of what that rests on is good."""
        seconds = int(now)
        try:
            claims = dcap_qvl.QuoteVerifier(self._root).verify_with_policy(
                raw, collateral, seconds, dcap_qvl.QuotePolicy.claims_only(seconds)
            )
        except ValueError as error:
            raise self._failure(raw, collateral, seconds, error) from error
        tree = json.loads(claims.to_json())
        _check_same_reading(parsed, tree["report"])
        intel.check_collateral(collateral, self._root, seconds)
        intel.check_platform(tree, collateral.tcb_info)
        status, advisories = intel.judgement(tree)
        found = _Tcb(
            status=status,
            advisory_ids=advisories,
            evaluation_data_number=int(tree["tcb"]["eval_data_number"]),
            device=bytes(tree["platform"]["pck"]["ppid"]).hex(),
        )
        # Of certificates, revocation lists, TCB info and the quoting enclave's identity.
        return found, min(tree["earliest_expiration_date"], tree["qe_iden_earliest_expiration_date"])

    def _failure(
        self, raw: bytes, collateral: dcap_qvl.QuoteCollateralV3, seconds: int, error: ValueError
    ) -> EvidenceError:
        """The refusal with its cause: the policy call names only the outer error, the plain one the whole chain."""
        text = str(error)
        try:
            if self._root is None:
                dcap_qvl.verify(raw, collateral, seconds)
            else:
                dcap_qvl.verify_with_root_ca(raw, collateral, self._root, seconds)
        except ValueError as detail:
            text = str(detail)
        # It quotes what the collateral says.
        text = " ".join(text[:_MAX_DETAIL].split())
        if any(words in text for words in _STALE):
            return EvidenceError("VERIFIER_FAILED", f"the collateral cannot judge this quote now: {text}")
        return _invalid(f"the quote does not verify: {text}")

    def _evidence(self, quote: quotes.Quote, identity: event_logs.Identity, tcb: _Tcb) -> Evidence:
        return Evidence(
            **{field.name: getattr(identity, field.name) for field in fields(identity)},
            mrtd=quote.mrtd.hex(),
            rtmr0=quote.rtmr0.hex(),
            rtmr1=quote.rtmr1.hex(),
            rtmr2=quote.rtmr2.hex(),
            rtmr3=quote.rtmr3.hex(),
            report_data=quote.report_data,
            tcb_status=tcb.status,
            advisory_ids=tcb.advisory_ids,
            evaluation_data_number=tcb.evaluation_data_number,
            device=tcb.device,
            development_root=self._root is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tcb:
    status: str
    advisory_ids: tuple[str, ...]
    evaluation_data_number: int
    device: str


def _check_attributes(quote: quotes.Quote) -> None:
    if quote.debug:
        raise _invalid("the TD runs in debug mode: its host can read and change its memory")
    if quote.migratable:
        raise _invalid("the TD is migratable: a service TD that its host chose can take its memory elsewhere")
    if any(quote.mr_signer_seam):
        raise _invalid(f"the TDX module is signed by {quote.mr_signer_seam.hex():.16}…, expected Intel's own (zeros)")
    if any(quote.mr_service_td):
        raise _invalid("a service TD is bound to the TD, expected none")
    intel.check_td(quote.td_attributes, quote.xfam)


def _check_same_reading(quote: quotes.Quote, report: dict[str, dict[str, object]]) -> None:
    """Our parser and the verifier's must have read the same values: facts are taken from ours, the signature from
    theirs.
    """
    flat: dict[str, object] = {}
    for body in report.values():
        inner = body.get("base")
        flat |= inner if isinstance(inner, dict) else {}
        flat |= body
    names = {"mrtd": "mr_td", **{f"rtmr{n}": f"rt_mr{n}" for n in range(4)}}
    for ours in (
        "mrtd",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
        "report_data",
        "mr_config_id",
        "td_attributes",
        "xfam",
        "tee_tcb_svn",
        "mr_signer_seam",
    ):
        if flat.get(names.get(ours, ours)) != getattr(quote, ours).hex():
            raise _invalid(f"{ours} reads differently in the verified report")


def _check_config_id(config_id: bytes, identity: event_logs.Identity) -> None:
    """What the host promised at launch (`mr_config_id`) against what the OS measured. All zero: an older host that
    promises nothing.
    """
    if not any(config_id):
        return
    form, commitment, rest = config_id[0], config_id[1:33], config_id[33:]
    compose_hash = bytes.fromhex(identity.compose_hash)
    if form not in (1, 2, 3) or any(rest):
        raise _invalid(
            f"mr_config_id {config_id.hex()} has no known form, expected a first byte of 1, 2 or 3 and zeros at the end"
        )
    if form == 1 and commitment != compose_hash:
        raise _invalid(
            f"mr_config_id promises compose hash {commitment.hex()}, the OS measured {identity.compose_hash}"
        )
    if form == 2:
        kind = _PROVIDER_KINDS.get(identity.key_provider_name)
        if kind is None:
            raise _invalid(f"mr_config_id has form 2, which knows no key provider {identity.key_provider_name!r:.40}")
        provider_id = _hex_or_raw(identity.key_provider_id)
        promised = keccak256(compose_hash + bytes.fromhex(identity.app_id) + bytes([kind]) + provider_id)
        if commitment != promised:
            raise _invalid("mr_config_id promises another compose hash, app or key provider than the OS measured")
    # Form 3 commits to a document that evidence does not carry. The OS checked it before it wrote RTMR3, which we
    # replay.


def _hex_or_raw(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text.encode()


def _check_claimed_image(vm_config: str, measured: str | None) -> None:
    """`vm_config` is the host's word and proves nothing; but an image claimed there that differs from the measured one
    is a lie.
    """
    if len(vm_config) > _MAX_VM_CONFIG:
        raise _invalid(f"vm_config has {len(vm_config)} characters, more than {_MAX_VM_CONFIG}")
    if not vm_config:
        return
    try:
        tree = json.loads(vm_config, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"vm_config is not JSON: {error}") from error
    claimed = tree.get("os_image_hash", "") if isinstance(tree, dict) else None
    if not isinstance(claimed, str):
        raise _invalid("vm_config is not an object with the text os_image_hash")
    if claimed and measured is not None and claimed.lower() != measured:
        raise _invalid(f"vm_config claims OS image {claimed:.64}, the OS measured {measured}")


def _invalid(reason: str) -> EvidenceError:
    return EvidenceError("QUOTE_INVALID", reason)
