"""`evidence.intel`: what Intel's verifier refuses is refused, where dcap_qvl decides and where it lets it pass.

Each case is signed by the simulated Intel, so that nothing but the one thing is wrong with it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evidence import intel
from evidence.collateral import FixedCollateral
from evidence.verify import EvidenceError, Verifier
from lab import tee_pki
from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import NOW, real, refusal, submission, verifier, verify

Tree = dict[str, Any]
MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
DATE = "2024-01-01T00:00:00Z"


def signed(tee: DevTee, entry: str, change: Callable[[Tree], object], key: str = "tcb-signing") -> dict[str, str]:
    """The TEE's collateral with `entry` changed, and signed by the key called `key`."""
    whole = dict(tee.collateral(NOW))
    tree = json.loads(whole[entry])
    change(tree)
    whole[entry] = json.dumps(tree, separators=(",", ":"))
    whole[f"{entry}_signature"] = tee_pki.sign(tee_pki.Keys(tee.seed).derive(key), whole[entry].encode()).hex()
    return whole


def with_collateral(tee: DevTee, whole: dict[str, str]) -> Verifier:
    """A verifier with this collateral."""
    return Verifier(collateral=FixedCollateral(json.dumps(whole)), root_ca_der=tee.root_der)


def measured(cvm: CvmIdentity, **changes: Any) -> Any:
    """What the CVM measured, changed."""
    return dataclasses.replace(cvm.measurements, **changes)


def svn(*numbers: int) -> bytes:
    """A TEE_TCB_SVN that begins so."""
    return bytes(numbers).ljust(16, b"\0")


def two_levels(tree: Tree) -> None:
    """The module's version 5 and later is up to date, what is older is not."""
    old = tree["tcbLevels"][0]
    new = json.loads(json.dumps(old))
    new["tcb"]["tdxtcbcomponents"][0]["svn"] = 5
    old |= {"tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-00001"]}
    tree["tcbLevels"] = [new, old]


def module_levels(tree: Tree) -> None:
    """The same by the identity of the TDX 1.5 module: 5 is up to date, 2 is not, 1 was revoked."""
    rows = ((5, "UpToDate", []), (2, "OutOfDate", ["intel-sa-00007 "]), (1, "Revoked", []))
    levels = [
        {"tcb": {"isvsvn": number}, "tcbDate": DATE, "tcbStatus": status, "advisoryIDs": advisories}
        for number, status, advisories in rows
    ]
    tree["tdxModuleIdentities"] = [{**MODULE, "id": "TDX_01", "tcbLevels": levels}]


@pytest.mark.parametrize("entry", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize("key", ["pck", "pck-ca"])
def test_data_that_another_leaf_signed_is_refused(tee: DevTee, cvm: CvmIdentity, entry: str, key: str) -> None:
    """TCB info and QE identity are the TCB signer's, though keys of machines and their authority are under the root."""
    whole = signed(tee, entry, lambda _: None, key)
    leaf, authority, root = tee._pki.pck_chain(bytes(16)).decode().split("-----BEGIN")[1:]
    chains = {"pck": (leaf, authority, root), "pck-ca": (authority, root)}
    whole[f"{entry}_issuer_chain"] = "".join(f"-----BEGIN{part}" for part in chains[key])
    error = refusal(with_collateral(tee, whole), submission(tee, cvm))
    # The authority signs certificates, which the library knows: it may not sign data.
    code = "VERIFIER_FAILED" if key == "pck" else "QUOTE_INVALID"
    assert (error.code, "certificate chain" in error.reason) == (code, True)


def test_a_chain_that_ends_elsewhere_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """The signer's chain is the signer and the trusted root: not another root, none, nor garbage."""
    whole = signed(tee, "tcb_info", lambda _: None)
    signer = whole["tcb_info_issuer_chain"].split("-----BEGIN")[1]
    other = DevTee(b"another").collateral(NOW)["tcb_info_issuer_chain"].split("-----BEGIN")[2]
    for chain in (f"-----BEGIN{signer}", f"-----BEGIN{signer}-----BEGIN{other}"):
        whole["tcb_info_issuer_chain"] = chain
        assert "chain of the TCB info" in refusal(with_collateral(tee, whole), submission(tee, cvm)).reason
    for chain in ("", "no certificate"):
        whole["tcb_info_issuer_chain"] = chain
        assert refusal(with_collateral(tee, whole), submission(tee, cvm)).code == "QUOTE_INVALID"


def test_the_real_signer_is_intels() -> None:
    """The chains of real collateral hold, under Intel's root and no other."""
    for name, seconds in (("dstack_quote_report", 1771412331), ("tdx_quote", 1750329147)):
        text = real(f"{name}.collateral.json").read_text()
        collateral = FixedCollateral(text)._collateral
        intel.check_collateral(collateral, None, seconds)
        with pytest.raises(EvidenceError, match="trusted root"):
            intel.check_collateral(collateral, b"another root", seconds)


@pytest.mark.parametrize("entry", ["pck_crl", "root_ca_crl"])
def test_a_revocation_list_of_tomorrow_is_refused(tee: DevTee, cvm: CvmIdentity, entry: str) -> None:
    """A list that does not count yet says nothing of today."""
    whole = dict(tee.collateral(NOW))
    issued = datetime.fromtimestamp(NOW, UTC) + timedelta(days=1)
    issuer, key = (tee._pki._ca, tee._pki._ca_key) if entry == "pck_crl" else (tee._pki._root, tee._pki._root_key)
    whole[entry] = tee_pki._crl(issuer, key, issued, issued + timedelta(days=9), []).hex()
    error = refusal(with_collateral(tee, whole), submission(tee, cvm))
    assert (error.code, "still to come" in error.reason) == ("VERIFIER_FAILED", True)


def test_tcb_info_of_another_pce_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """FMSPC and PCE ID together say which platforms a TCB info is for."""
    for stated in ("0001", None, 0):
        whole = signed(tee, "tcb_info", lambda tree, it=stated: tree.update(pceId=it))  # type: ignore[misc]
        error = refusal(with_collateral(tee, whole), submission(tee, cvm))
        assert error.code == "QUOTE_INVALID"


@pytest.mark.parametrize("bit", [0, 1, 16, 27, 29, 30, 31, 32, 62, 63])
def test_a_td_with_another_attribute_is_refused(tee: DevTee, cvm: CvmIdentity, bit: int) -> None:
    """SEPT_VE_DISABLE alone: each other bit of the attributes is named and refused, and so is none at all."""
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    error = refusal(verifier(tee), submission(tee, cvm, measured(cvm, td_attributes=attributes)))
    assert error.code == "QUOTE_INVALID"
    assert refusal(verifier(tee), submission(tee, cvm, measured(cvm, td_attributes=bytes(8)))).code == "QUOTE_INVALID"


@pytest.mark.parametrize(
    ("xfam", "good"),
    [(0x602E7, True), (0x3, True), (0x2E7, True), (0x602E4, False), (0, False), (2**64 - 1, False)]
    + [(0x602E7 | 1 << bit, False) for bit in (8, 10, 11, 13, 14, 15, 16, 19, 62, 63)],
)
def test_a_td_with_other_features_is_refused(tee: DevTee, cvm: CvmIdentity, xfam: int, good: bool) -> None:
    """XFAM has no bit that no dstack CVM has, and those that each TD has."""
    sent = submission(tee, cvm, measured(cvm, xfam=xfam.to_bytes(8, "little")))
    if good:
        assert verify(verifier(tee), sent).app_id == cvm.app_id
    else:
        error = refusal(verifier(tee), sent)
        assert (error.code, "XFAM" in error.reason) == ("QUOTE_INVALID", True)


def test_real_tds_were_started_as_expected() -> None:
    """Attributes and features of the real quotes, one of a dstack CVM in production, are those that are demanded."""
    raw = real("tdx_quote.bin").read_bytes()
    report = bytes.fromhex(json.loads(real("dstack_quote_report.json").read_text())["quote"])
    for quote in (raw, report):
        intel.check_td(quote[168:176], quote[176:184])


@pytest.mark.parametrize("change", [two_levels, module_levels])
@pytest.mark.parametrize(
    ("launched", "runs", "status"),
    [
        (5, 5, "UpToDate"),
        (2, 2, "OutOfDate"),
        (2, 5, "TDRelaunchAdvised"),
        (5, 2, "OutOfDate"),
    ],
)
def test_both_levels_of_td_1_5_count(
    tee: DevTee, cvm: CvmIdentity, change: Any, launched: int, runs: int, status: str
) -> None:
    """The worse of the levels at launch and now is the platform's, and advisories of both are named, in upper case."""
    # Version 1 of the module is TDX 1.5, which has an identity of its own; 0 is judged by the platform's levels alone.
    module = 1 if change is module_levels else 0
    bent = measured(cvm, tee_tcb_svn=svn(launched, module), tee_tcb_svn2=svn(runs, module))
    facts = verify(with_collateral(tee, signed(tee, "tcb_info", change)), submission(tee, cvm, bent))
    advisory = "INTEL-SA-00001" if change is two_levels else "INTEL-SA-00007"
    assert (facts.tcb_status, facts.advisory_ids) == (status, () if status == "UpToDate" else (advisory,))


@pytest.mark.parametrize(
    ("launched", "runs"),
    [((1, 1), (5, 1)), ((5, 1), (1, 1)), ((0, 1), (5, 1)), ((5, 1), (0, 1)), ((5, 2), (5, 1)), ((5, 1), (5, 2))],
)
def test_a_module_that_intel_does_not_stand_for_is_refused(
    tee: DevTee, cvm: CvmIdentity, launched: tuple[int, int], runs: tuple[int, int]
) -> None:
    """Revoked, older than any level, or of a version without identity, at launch or now."""
    bent = measured(cvm, tee_tcb_svn=svn(*launched), tee_tcb_svn2=svn(*runs))
    checker = with_collateral(tee, signed(tee, "tcb_info", module_levels))
    assert refusal(checker, submission(tee, cvm, bent)).code == "QUOTE_INVALID"


def test_a_module_of_another_signer_is_refused(tee: DevTee, cvm: CvmIdentity) -> None:
    """The module's signer and attributes are those of its identity in the TCB info: the library's decision."""
    for field, value in (("mrsigner", "01" * 48), ("attributes", "01" * 8)):

        def bend(tree: Tree, field: str = field, value: str = value) -> None:
            module_levels(tree)
            tree["tdxModuleIdentities"][0][field] = value

        bent = measured(cvm, tee_tcb_svn=svn(5, 1))
        assert refusal(with_collateral(tee, signed(tee, "tcb_info", bend)), submission(tee, cvm, bent)).code == (
            "QUOTE_INVALID"
        )


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        ("tcb_info", {"fmspc": "000000000000"}),
        ("tcb_info", {"id": "SGX"}),
        ("tcb_info", {"version": 2}),
        ("tcb_info", {"tcbLevels": []}),
        ("qe_identity", {"id": "QE"}),
        ("qe_identity", {"mrsigner": "01" * 32}),
        ("qe_identity", {"isvprodid": 1}),
        ("qe_identity", {"miscselect": "01000000"}),
        ("qe_identity", {"tcbLevels": [{"tcb": {"isvsvn": 9}, "tcbDate": DATE, "tcbStatus": "UpToDate"}]}),
        ("qe_identity", {"tcbLevels": [{"tcb": {"isvsvn": 1}, "tcbDate": DATE, "tcbStatus": "Revoked"}]}),
    ],
)
def test_data_for_something_else_is_refused(tee: DevTee, cvm: CvmIdentity, entry: str, changes: Tree) -> None:
    """Another platform's TCB info, SGX's, one without a fitting level; another quoting enclave: the library decides."""
    whole = signed(tee, entry, lambda tree: tree.update(changes))
    assert refusal(with_collateral(tee, whole), submission(tee, cvm)).code == "QUOTE_INVALID"


def test_the_quoting_enclaves_status_counts(tee: DevTee, cvm: CvmIdentity) -> None:
    """A quoting enclave that is out of date makes the platform so, with its advisories: the library's decision."""
    level = {"tcb": {"isvsvn": 1}, "tcbDate": DATE, "tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-00009"]}
    whole = signed(tee, "qe_identity", lambda tree: tree.update(tcbLevels=[level]))
    facts = verify(with_collateral(tee, whole), submission(tee, cvm))
    assert (facts.tcb_status, facts.advisory_ids) == ("OutOfDate", ("INTEL-SA-00009",))


def test_a_status_without_a_rank_is_never_good() -> None:
    """A word that Intel may add is not taken for a better one than those that are known."""
    level = {"tcbStatus": "SomethingNew", "advisoryIDs": []}
    claims = {"tcb": {"status": "UpToDate", "advisory_ids": []}, "platform": {"current_tcb_level": level}}
    assert intel.judgement(claims) == ("SomethingNew", ())
