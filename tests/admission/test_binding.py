"""The statement that a quote covers."""

from __future__ import annotations

import json

from admission.binding import make
from admission.protocol import Binding, BootKeys
from coordinator.broker import _strict
from runtime.guest import GuestInfo


def test_it_is_read_as_it_was_made() -> None:
    """By the coordinator's own strict reader; its bytes are canonical, since the quote is over them."""
    boot = BootKeys(wireguard="w", tls="t", leaf="l")
    info = GuestInfo(app_id="11" * 20, instance_id="aa" * 20, compose_hash="22" * 32)
    raw = make(cluster="demo", peer_id="api-0", identities=("spiffe://demo/node",), info=info, boot=boot, now=5.9)
    assert _strict(Binding, raw, "binding") == Binding(
        version=2,
        cluster="demo",
        peer_id="api-0",
        identities=("spiffe://demo/node",),
        app_id="11" * 20,
        instance_id="aa" * 20,
        compose_hash="22" * 32,
        boot=boot,
        issued_at=5,
    )
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()
