"""`lab.tee_pki`: the knobs of the development "Intel"."""

from __future__ import annotations

import json
from datetime import timedelta

import dcap_qvl
import pytest
from cryptography import x509

from lab.tee_pki import DevPki, TcbState

NOW = 1_800_000_000.0


def collateral(**state: object) -> dict[str, str]:
    """Collateral of the test seed in that state."""
    return DevPki(b"pki tests", TcbState(**state)).collateral(NOW)  # type: ignore[arg-type]


def test_collateral_is_in_dcap_qvls_form() -> None:
    """The verifier's own reader takes it."""
    assert dcap_qvl.QuoteCollateralV3.from_json(json.dumps(collateral()))


@pytest.mark.parametrize("revoked", [False, True])
def test_the_pck_can_be_revoked(revoked: bool) -> None:
    """The list names the PCK certificate, or nobody."""
    crl = x509.load_der_x509_crl(bytes.fromhex(collateral(pck_revoked=revoked)["pck_crl"]))
    assert len(crl) == int(revoked)


def test_status_and_advisories_are_what_was_set() -> None:
    """TCB info says what the test wants it to."""
    level = json.loads(collateral(status="OutOfDate", advisory_ids=("A",))["tcb_info"])["tcbLevels"][0]
    assert (level["tcbStatus"], level["advisoryIDs"]) == ("OutOfDate", ["A"])


def test_collateral_can_be_past_its_time() -> None:
    """A negative life ends before it is asked for, and still begins before it ends."""
    info = json.loads(collateral(lifetime=timedelta(days=-3))["tcb_info"])
    assert info["issueDate"] < info["nextUpdate"] < "2027-01-15"


def test_the_chain_in_a_quote_goes_leaf_first() -> None:
    """Leaf, Platform CA, root."""
    chain = x509.load_pem_x509_certificates(DevPki(b"pki tests", TcbState()).pck_chain(bytes(16)))
    assert [len(chain), chain[0].issuer, chain[1].issuer] == [3, chain[1].subject, chain[2].subject]
