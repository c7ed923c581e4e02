"""The words of the control API."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer import control
from peer.spec import LinkError

KEY = base64.b64encode(b"k" * 32).decode()


def test_tables_survive_the_trip() -> None:
    """What a rendezvous writes, a CVM reads."""
    table = control.Table(index=7, mappings={KEY: "198.18.1.1:51820"}, relays={KEY: 52000})
    assert control.decode_table(control.encode_table(table)) == table


def test_relay_words() -> None:
    """Request and answer."""
    assert control.decode_relay_request(control.encode_relay_request(KEY)) == KEY
    assert control.decode_relay_answer(b'{"port": 52000}') == 52000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"index": true, "mappings": {}, "relays": {}}',
        b'{"index": 1, "mappings": [], "relays": {}}',
        b'{"index": 1, "mappings": {"x": "1.2.3.4:5"}, "relays": {}}',
        b'{"index": 1, "mappings": {"%s": "name:5"}, "relays": {}}' % KEY.encode(),
        b'{"index": 1, "mappings": {"%s": 5}, "relays": {}}' % KEY.encode(),
        b'{"index": 1, "mappings": {}, "relays": {"%s": 70000}}' % KEY.encode(),
    ],
)
def test_bad_tables(body: bytes) -> None:
    """A rendezvous is not trusted to send what it should."""
    with pytest.raises(LinkError):
        control.decode_table(body)


@given(st.binary(max_size=200))
def test_garbage_is_a_link_error(body: bytes) -> None:
    """Nothing else leaves the decoders."""
    for decode in (control.decode_table, control.decode_relay_request, control.decode_relay_answer):
        with pytest.raises(LinkError):
            decode(body)
