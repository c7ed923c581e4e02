"""`lab.agent_wire`: messages as JSON and protobuf, with serde's words for what does not fit."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.agent_wire import (
    MESSAGES,
    WireError,
    decode_json,
    decode_protobuf,
    decode_query,
    encode_json,
    encode_protobuf,
)

TLS = "GetTlsKeyArgs"
VALUES = st.fixed_dictionaries(
    {
        "subject": st.text(),
        "alt_names": st.lists(st.text()),
        "usage_ra_tls": st.booleans(),
        "usage_server_auth": st.booleans(),
        "usage_client_auth": st.booleans(),
        "not_before": st.none() | st.integers(0, 2**64 - 1),
        "not_after": st.none() | st.integers(0, 2**64 - 1),
        "with_app_info": st.booleans(),
    }
)


@given(VALUES)
def test_a_message_survives_both_encodings(values: dict[str, Any]) -> None:
    """What goes in comes out, through protobuf and through JSON."""
    assert decode_protobuf(TLS, encode_protobuf(TLS, values)) == values
    assert decode_json(TLS, encode_json(TLS, values).decode()) == values


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_wire_error(data: bytes) -> None:
    """Nothing else comes out of the protobuf reader."""
    for name in MESSAGES:
        with contextlib.suppress(WireError):
            assert set(decode_protobuf(name, data)) == {field for _, field, _ in MESSAGES[name]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["subject", "alt_names", "not_after"]), inner),
    max_leaves=8,
)


@given(st.text(max_size=60) | JSON.map(json.dumps))
def test_any_text_gives_a_message_or_a_wire_error(text: str) -> None:
    """Nothing else comes out of the JSON reader."""
    with contextlib.suppress(WireError):
        assert set(decode_json(TLS, text)) == {field for _, field, _ in MESSAGES[TLS]}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{bad", "key must be a string at line 1 column 2"),
        ('{"subject" "x"}', "expected `:` at line 1 column 12"),
        ('{"subject":"x" "y"}', "expected `,` or `}` at line 1 column 16"),
        ('{"subject":}', "expected value at line 1 column 12"),
        ("{} x", "trailing characters at line 1 column 4"),
        ('"x"', 'invalid type: string "x", expected struct GetTlsKeyArgs at line 1 column 3'),
        ('{"alt_names":"a"}', 'invalid type: string "a", expected a sequence at line 1 column 16'),
        ('{"usage_ra_tls":1}', "invalid type: integer `1`, expected a boolean at line 1 column 17"),
        ('{\n"subject":[]}', "invalid type: sequence, expected a string at line 2 column 12"),
        ('{"subject":{}}', "invalid type: map, expected a string at line 1 column 13"),
        ('{"subject":true}', "invalid type: boolean `true`, expected a string at line 1 column 15"),
        ('{"subject":1.5}', "invalid type: floating point `1.5`, expected a string at line 1 column 14"),
        ('{"not_after":-1}', "invalid type: integer `-1`, expected u64 at line 1 column 15"),
        ('{"subject":' + "[" * 100_000, "recursion limit exceeded at line 1 column 11"),
    ],
)
def test_errors_are_worded_like_serdes(text: str, error: str) -> None:
    """Kind, expectation and place."""
    with pytest.raises(WireError) as caught:
        decode_json(TLS, text)
    assert str(caught.value) == error


def test_a_list_goes_by_position() -> None:
    """serde reads a struct from a sequence too."""
    assert decode_json("GetKeyArgs", '["a","b"]') == {"path": "a", "purpose": "b", "algorithm": ""}


def test_a_query_is_text() -> None:
    """Numbers, flags and lists are read from text."""
    found = decode_query(TLS, {"usage_ra_tls": "true", "not_after": "7", "alt_names": "a", "json": ""})
    assert (found["usage_ra_tls"], found["not_after"], found["alt_names"]) == (True, 7, ["a"])
    with pytest.raises(WireError):
        decode_query(TLS, {"not_after": "x"})
