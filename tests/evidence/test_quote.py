"""`evidence.quote`: every byte is accounted for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import quote
from evidence.errors import EvidenceError
from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import SAID, boot, real

_TEE = DevTee(b"quote tests")
_RAW = _TEE.quote(boot(_TEE).measurements, SAID)


def refused(raw: bytes) -> str:
    """The reason why `raw` is refused."""
    with pytest.raises(EvidenceError) as caught:
        quote.parse(raw)
    assert caught.value.code == "QUOTE_INVALID"
    return caught.value.reason


def test_a_quote_gives_back_what_was_measured(tee: DevTee, cvm: CvmIdentity) -> None:
    """All registers and the report data come out as they went in."""
    parsed = quote.parse(tee.quote(cvm.measurements, SAID))
    assert parsed.report_data == SAID.ljust(64, b"\0")
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "td_attributes", "mr_signer_seam"):
        assert getattr(parsed, name) == getattr(cvm.measurements, name)
    assert (parsed.version, parsed.body_end, parsed.debug) == (4, 632, False)


@pytest.mark.parametrize("name", ["tdx_quote.bin", "dstack_quote_report.json"])
def test_real_quotes_parse_with_their_padding(name: str) -> None:
    """Both real quotes end in the quoting library's 70 zero bytes and are taken."""
    data = real(name).read_bytes()
    raw = bytes.fromhex(json.loads(data)["quote"]) if name.endswith(".json") else data
    assert raw[-quote.PADDING :] == bytes(quote.PADDING)
    assert quote.parse(raw).version == 4


@pytest.mark.parametrize("count", [1, 69, 71, 140])
def test_other_amounts_of_zeros_after_a_quote_are_refused(count: int) -> None:
    """Only the exact padding of the quoting library is known to be nobody's message."""
    assert "after the quote" in refused(_RAW + bytes(count))


@pytest.mark.parametrize("trailing", [b"x", b"\0" * 69 + b"x", b"x" * 70])
def test_other_bytes_after_a_quote_are_refused(trailing: bytes) -> None:
    """Bytes that no signature covers may not travel with a quote."""
    assert "after the quote" in refused(_RAW + trailing)


@pytest.mark.parametrize(
    ("offset", "value", "word"),
    [
        (0, b"\3\0", "version 3"),
        (0, b"\6\0", "version 6"),
        (2, b"\3\0", "attestation key type"),
        (4, b"\0\0\0\0", "TEE type"),
        (12, bytes(16), "vendor"),
        (632, b"\0\0\0\0", "certification"),
        (764, b"\5\0", "certification type"),
        (766, b"\0\0\0\0", "certification size"),
        (1218, b"\0\0", "authentication size"),
        (1252, b"\3\0", "certificate data type"),
        (1254, b"\1\0\0\0", "certificate data size"),
    ],
)
def test_wrong_fields_are_named(offset: int, value: bytes, word: str) -> None:
    """Sizes and types that no signature covers must be exactly right."""
    assert word in refused(_RAW[:offset] + value + _RAW[offset + len(value) :])


def test_version_5_body_descriptors() -> None:
    """A version 5 quote says what its body is; both TDX 1.0 and 1.5 bodies are found, others refused."""
    for kind, size in ((2, 584), (3, 648)):
        body = _RAW[48:632] + bytes(size - 584)
        descriptor = kind.to_bytes(2, "little") + size.to_bytes(4, "little")
        parsed = quote.parse(b"\5\0" + _RAW[2:48] + descriptor + body + _RAW[632:])
        assert (parsed.version, parsed.body_end) == (5, 54 + size)
        assert parsed.report_data == SAID.ljust(64, b"\0")
    assert "body type" in refused(b"\5\0" + _RAW[2:48] + b"\4\0" + (584).to_bytes(4, "little") + _RAW[48:])


@given(st.integers(0, len(_RAW) - 1))
def test_a_cut_quote_is_refused(length: int) -> None:
    """No prefix of a quote is a quote."""
    refused(_RAW[:length])


@given(st.binary(max_size=700) | st.binary(max_size=700).map(lambda tail: _RAW[:48] + tail))
def test_garbage_only_gives_typed_errors(data: bytes) -> None:
    """Whatever comes in, EvidenceError is the only way out."""
    refused(data)


def test_a_giant_is_refused_unread() -> None:
    """Size is checked first."""
    assert "more than" in refused(bytes(quote.MAX_QUOTE + 1))


def test_a_quote_comes_apart_into_what_is_signed_and_what_is_the_machines(tee: DevTee, cvm: CvmIdentity) -> None:
    """Signature and key are where Intel has them, and nothing but what a CVM says of itself is left out of the rest."""
    raw = tee.quote(cvm.measurements, SAID)
    parsed = quote.parse(raw)
    message, signed, key = quote.signature(raw, parsed)
    assert raw.startswith(message + len(raw[parsed.body_end + 4 :]).to_bytes(4, "little") + signed + key)
    assert (len(message), len(signed), len(key)) == (632, 64, 64)
    rest = quote.machine(raw, parsed)
    assert len(raw) - len(rest) == 48 + 48 + 64 + 64
    said = (parsed.mr_config_id, parsed.rtmr3, parsed.report_data, signed)
    assert [each in rest for each in said] == [False] * 4
    kept = (parsed.mrtd, parsed.rtmr0, parsed.rtmr1, parsed.rtmr2, parsed.td_attributes, key)
    assert [each in rest for each in kept] == [True] * 6
    chain = quote.certificates(raw)
    assert chain.startswith(b"-----BEGIN CERTIFICATE-----")
    assert raw.endswith(chain)


def test_certificates_of_what_is_no_whole_quote_are_refused() -> None:
    """Whoever asks for collateral may not have parsed it."""
    for length in (0, 40, 60, 700, 1200, len(_RAW) - 1):
        with pytest.raises(EvidenceError) as caught:
            quote.certificates(_RAW[:length])
        assert caught.value.code == "QUOTE_INVALID"
