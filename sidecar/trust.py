"""Which coordinator to believe: its evidence against the manifest's coordinator entry.

Turns the manifest's words into `evidence`'s. The heavy imports happen on first use: a verifier is needed for an
admission, not for a process that only prints its configuration.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.attested import CoordinatorError, Verify
from topology.manifest import Manifest


def coordinator_check(
    manifest: Callable[[], Manifest], pccs_url: str, dev_root: bytes | None, clock: Callable[[], float]
) -> Verify:
    """The check of a coordinator's certificate by the manifest of the moment. `clock` gives Unix seconds.

    Collateral is kept between calls.
    """
    from evidence.collateral import HttpCollateral
    from evidence.errors import EvidenceError
    from evidence.manifest import COORDINATORS, expected, tcb_rules
    from evidence.policy import check
    from evidence.ratls import verify_certificate
    from evidence.verify import Verifier

    collateral = HttpCollateral(pccs_url)

    async def verify(certificate: bytes) -> None:
        now = manifest()
        verifier = Verifier(collateral=collateral, rules=tcb_rules(now), root_ca_der=dev_root)
        try:
            check(await verify_certificate(verifier, certificate, clock()), expected(now, COORDINATORS))
        except EvidenceError as error:
            raise CoordinatorError(f"the coordinator's evidence is refused: {error}") from error

    return verify
