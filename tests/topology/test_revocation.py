"""What the owners revoke, and of whom."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.topology.test_render import deployment, starter
from topology import render
from topology.manifest import decode, encode
from topology.revocation import Revocation, why_revoked
from topology.trees import ManifestError

MANIFEST = render.manifest(starter(), deployment())
INSTANCE, HASH, DEVICE = "ab" * 20, "cd" * 32, "ef" * 16


def with_entries(*entries: Any) -> bytes:
    """The manifest with these in `revoked`."""
    return json.dumps(json.loads(encode(MANIFEST)) | {"revoked": list(entries)}).encode()


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"peer_id": "api-0"}, "peer_id api-0"),
        ({"instance_id": INSTANCE}, f"instance_id {INSTANCE}"),
        ({"compose_hash": HASH}, f"compose_hash {HASH}"),
        ({"device": DEVICE, "peer_id": None}, f"device {DEVICE}"),
    ],
)
def test_an_entry_names_one_thing(entry: dict[str, Any], text: str) -> None:
    """And says it."""
    assert [it.text for it in decode(with_entries(entry)).revoked] == [text]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "revoked[0] names nothing, expected exactly one of"),
        ({"peer_id": "api-0", "device": DEVICE}, "names ['peer_id', 'device'], expected exactly one of"),
        ({"instance_id": INSTANCE[2:]}, "revoked[0].instance_id is"),
        ({"instance_id": INSTANCE.upper()}, "expected 40 hex digits in lower case"),
        ({"compose_hash": DEVICE}, "expected 64 hex digits in lower case"),
        ({"device": HASH}, "expected 32 hex digits in lower case"),
        ({"peer_id": ""}, "expected a peer ID"),
        ({"peer_id": 7}, "must be str"),
        ({"serial": "1"}, "unknown entries ['serial']"),
    ],
)
def test_an_entry_that_would_revoke_nobody_is_refused(entry: dict[str, Any], words: str) -> None:
    """Who signs it means somebody."""
    with pytest.raises(ManifestError) as caught:
        decode(with_entries(entry))
    assert words in str(caught.value)


def test_each_fact_is_held_against_each_entry() -> None:
    """A CVM is refused for any of its facts, whatever case they are in; what is not known of it is not judged."""
    facts = {"peer_id": "api-0", "instance_id": INSTANCE, "compose_hash": HASH, "device": DEVICE}
    for name, value in facts.items():
        entry = Revocation(**{name: value})
        assert why_revoked((entry,), **facts) == f"the manifest revokes {name} {value}"
        assert why_revoked((entry,), **{**facts, name: ""}) is None
        assert why_revoked((entry,), **{other: value for other in facts if other != name}) is None
    assert why_revoked((Revocation(instance_id=INSTANCE),), instance_id=INSTANCE.upper()) is not None
    assert why_revoked((), **facts) is None
