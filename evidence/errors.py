"""`EvidenceError`: the one error that leaves this package when evidence is not good, with the admission API's code."""

from __future__ import annotations

from typing import Literal

EvidenceCode = Literal[
    "QUOTE_INVALID", "REPORT_DATA_MISMATCH", "KMS_POLICY_MISMATCH", "ADMISSION_REJECTED", "REVOKED", "VERIFIER_FAILED"
]


class EvidenceError(Exception):
    """Evidence was refused, or (`VERIFIER_FAILED`) could not be judged.

    QUOTE_INVALID: it is malformed, not genuine, or does not hold together. REPORT_DATA_MISMATCH: genuine, but says
    something else. KMS_POLICY_MISMATCH and ADMISSION_REJECTED: genuine, but not what policy allows. REVOKED: the
    owners have revoked it. VERIFIER_FAILED: our side lacks what judging needs.
    """

    def __init__(self, code: EvidenceCode, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code: EvidenceCode = code
        self.reason = reason
