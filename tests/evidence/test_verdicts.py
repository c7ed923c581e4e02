"""`evidence.verdicts`: what was found about a machine counts for its next quotes, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence import quote as quotes
from evidence import verdicts
from evidence.collateral import FixedCollateral
from evidence.verdicts import KEPT_SECONDS, Verdicts
from evidence.verify import EvidenceError, Verifier
from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import NOW, SAID, boot, real, refusal, submission, verify

_TEE = DevTee(b"verdict tests")
_CVM = boot(_TEE)
_RAW = _TEE.quote(_CVM.measurements, SAID)
_PARSED = quotes.parse(_RAW)
COLLATERAL = object()


def other(seed: bytes, said: bytes = SAID) -> bytes:
    """A quote of another CVM on that machine, of the same OS image."""
    return _TEE.quote(beside(seed).measurements, said)


def beside(seed: bytes) -> CvmIdentity:
    """Another CVM on that machine."""
    made = boot(_TEE, instance_seed=seed)
    return replace(made, measurements=replace(made.measurements, ppid=_CVM.measurements.ppid))


@pytest.fixture
def kept() -> Verdicts[str]:
    """Verdicts with that of `_RAW`."""
    found = Verdicts[str]()
    found.keep(_RAW, _PARSED, COLLATERAL, "good", now=NOW, ends_at=NOW + 1e9)
    return found


def test_the_next_quote_of_the_machine_is_found(kept: Verdicts[str]) -> None:
    """Another CVM, or another nonce: the machine is the same."""
    for raw in (_RAW, other(b"2"), other(b"3", b"y")):
        assert kept.find(raw, quotes.parse(raw), COLLATERAL, NOW + KEPT_SECONDS - 1) == "good"


def test_another_image_or_machine_is_not(kept: Verdicts[str]) -> None:
    """Everything that decides on the platform is compared."""
    for change in ({"mrtd": bytes(48)}, {"rtmr0": bytes(48)}, {"td_attributes": b"\1" + bytes(7)}):
        raw = _TEE.quote(replace(_CVM.measurements, **change), SAID)
        assert kept.find(raw, quotes.parse(raw), COLLATERAL, NOW) is None
    raw = _TEE.quote(boot(_TEE, instance_seed=b"elsewhere").measurements, SAID)
    assert kept.find(raw, quotes.parse(raw), COLLATERAL, NOW) is None
    raw = DevTee(b"another").quote(_CVM.measurements, SAID)
    assert kept.find(raw, quotes.parse(raw), COLLATERAL, NOW) is None


def test_a_verdict_ends() -> None:
    """With its collateral, with what it rests on, after a while, and where the clock went back."""
    for collateral, now in ((object(), NOW), (COLLATERAL, NOW + 50), (COLLATERAL, NOW - 1)):
        found = Verdicts[str]()
        found.keep(_RAW, _PARSED, COLLATERAL, "good", now=NOW, ends_at=NOW + 50)
        assert found.find(_RAW, _PARSED, COLLATERAL, NOW + 49) == "good"
        assert found.find(_RAW, _PARSED, collateral, now) is None
    found.keep(_RAW, _PARSED, COLLATERAL, "good", now=NOW, ends_at=NOW + 1e9)
    assert found.find(_RAW, _PARSED, COLLATERAL, NOW + KEPT_SECONDS) is None


@given(at=st.integers(0, len(_RAW) - 1), flip=st.integers(1, 255))
@settings(max_examples=300)
def test_no_byte_of_a_quote_can_be_changed(at: int, flip: int) -> None:
    """Whatever differs is another machine, or breaks the quote's own signature."""
    found = Verdicts[str]()
    found.keep(_RAW, _PARSED, COLLATERAL, "good", now=NOW, ends_at=NOW + 1e9)
    changed = bytearray(_RAW)
    changed[at] ^= flip
    raw = bytes(changed)
    try:
        parsed = quotes.parse(raw)
    except EvidenceError:
        return
    assert found.find(raw, parsed, COLLATERAL, NOW) is None


def test_few_are_kept(kept: Verdicts[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that nobody asked for longest goes."""
    monkeypatch.setattr(verdicts, "MAX_VERDICTS", 2)
    raws = [_TEE.quote(replace(_CVM.measurements, mrtd=bytes([n]) * 48), SAID) for n in (1, 2)]
    kept.keep(raws[0], quotes.parse(raws[0]), COLLATERAL, "1", now=NOW, ends_at=NOW + 1e9)
    assert kept.find(_RAW, _PARSED, COLLATERAL, NOW) == "good"
    kept.keep(raws[1], quotes.parse(raws[1]), COLLATERAL, "2", now=NOW, ends_at=NOW + 1e9)
    found = [kept.find(raw, quotes.parse(raw), COLLATERAL, NOW) for raw in (_RAW, *raws)]
    assert found == ["good", None, "2"]


def test_a_real_quotes_own_signature_is_read_right() -> None:
    """Else each quote would be verified as a whole, for ever."""
    raw = real("tdx_quote.bin").read_bytes()
    parsed, found = quotes.parse(raw), Verdicts[str]()
    found.keep(raw, parsed, COLLATERAL, "good", now=NOW, ends_at=NOW + 1e9)
    assert found.find(raw, parsed, COLLATERAL, NOW) == "good"


class Counting(Verifier):
    """Notes the quotes that are verified as a whole."""

    def __init__(self) -> None:
        super().__init__(collateral=FixedCollateral(_TEE.collateral_json(NOW)), root_ca_der=_TEE.root_der)
        self.whole: list[bytes] = []

    def _verify_whole(self, raw: bytes, *rest: Any) -> Any:
        self.whole.append(raw)
        return super()._verify_whole(raw, *rest)


def test_a_machine_is_looked_at_once() -> None:
    """And each quote's signature, log and report data every time, by the same verifier."""
    one = Counting()
    sent = [submission(_TEE, beside(seed)) for seed in (b"1", b"2")]
    facts = [verify(one, each) for each in (*sent, *sent)]
    assert [each.instance_id for each in facts[:2]] == [each.instance_id for each in facts[2:]]
    assert facts[0].instance_id != facts[1].instance_id
    assert len(one.whole) == 1
    foreign = replace(sent[0], quote=sent[1].quote)
    assert refusal(one, foreign).code == "QUOTE_INVALID"
    assert refusal(one, replace(sent[1], report_data=b"other")).code == "REPORT_DATA_MISMATCH"
    forged = bytearray(sent[1].quote)
    forged[quotes.parse(sent[1].quote).body_end + 10] ^= 1
    assert refusal(one, replace(sent[1], quote=bytes(forged))).code == "QUOTE_INVALID"
    assert len(one.whole) == 2, "the forged one was looked at as a whole, for the reason"
