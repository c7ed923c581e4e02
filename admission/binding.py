"""The statement that a quote covers, made by whoever asks to be admitted; `coordinator.policy` compares it. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict

from admission.protocol import Binding, BootKeys
from runtime.guest import GuestInfo

BINDING_VERSION = 2


def make(
    *, cluster: str, peer_id: str, identities: tuple[str, ...], info: GuestInfo, boot: BootKeys, now: float
) -> bytes:
    """The JSON that is sent and quoted: of the CVM that `info` describes, which asks for `peer_id` at `now` (Unix
    seconds).
    """
    binding = Binding(
        version=BINDING_VERSION,
        cluster=cluster,
        peer_id=peer_id,
        identities=identities,
        app_id=info.app_id,
        instance_id=info.instance_id,
        compose_hash=info.compose_hash,
        boot=boot,
        issued_at=int(now),
    )
    return json.dumps(asdict(binding), sort_keys=True, separators=(",", ":")).encode()
