"""Which coordinator to believe: its evidence against a manifest's coordinator entry.

Turns the manifest's words into `evidence`'s. The heavy imports happen on first use: a verifier is needed for an
admission, not for a process that only prints its configuration.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from admission.client import CoordinatorError, Greeting, NotAllowedError, Verify
from topology.envelope import Signed

if TYPE_CHECKING:
    from evidence.verify import EvidenceVerifier

Judge = Callable[[Greeting], Awaitable[Signed]]
"""By which manifest a coordinator is verified that shows this; CoordinatorError where there is none."""
Take = Callable[[Signed], Awaitable[None]]
"""Takes that manifest, once the coordinator's evidence holds by it."""
_NOT_ALLOWED = frozenset({"ADMISSION_REJECTED", "KMS_POLICY_MISMATCH", "REVOKED"})
"""How genuine evidence is refused (`evidence.errors`)."""


async def nothing(_: Signed) -> None:
    """Takes none: for those who have one and verify by it alone."""


def by(signed: Signed) -> Judge:
    """Judges every coordinator by `signed`, whatever it says."""

    async def judge(_: Greeting) -> Signed:
        return signed

    return judge


def coordinator_check(
    judge: Judge, take: Take, pccs_url: str, dev_root: bytes | None, clock: Callable[[], float]
) -> Verify:
    """The check of a coordinator's certificate by the manifest that `judge` chooses. `clock` gives Unix seconds.

    Collateral is kept between calls.
    """
    from evidence.collateral import HttpCollateral
    from evidence.verify import Verifier

    return check_with(Verifier(collateral=HttpCollateral(pccs_url), root_ca_der=dev_root), judge, take, clock)


def check_with(verifier: EvidenceVerifier, judge: Judge, take: Take, clock: Callable[[], float]) -> Verify:
    """As `coordinator_check`, with the verifier that there is."""
    from evidence.errors import EvidenceError
    from evidence.manifest import expected
    from evidence.policy import check
    from evidence.ratls import verify_certificate
    from topology.manifest import COORDINATORS

    async def verify(greeting: Greeting) -> str:
        signed = await judge(greeting)
        now = clock()
        try:
            evidence = await verify_certificate(verifier, greeting.certificate, now)
            check(evidence, expected(signed.manifest, COORDINATORS), now)
        except EvidenceError as error:
            kind = NotAllowedError if error.code in _NOT_ALLOWED else CoordinatorError
            raise kind(f"the coordinator's evidence is refused: {error}") from error
        await take(signed)
        return signed.envelope

    return verify
