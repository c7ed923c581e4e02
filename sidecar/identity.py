"""Who this CVM is: what the guest agent says, and the keys that this boot made.

The keys are made inside the CVM, live on tmpfs with mode 0600 and end with the boot. A sidecar that restarts within the
boot finds them again, so the coordinator knows it as the same holder of its slot. The keys of its certificates are in
no file: they end with the process, and the next one attests others.
"""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from admission.protocol import BootKeys
from runtime.consul import write_private
from runtime.secret import Secret

KEYS_FILE = "boot-keys.json"
SLOT_FILE = "slot.json"
"""Beside the keys: the slot that the boot holds, for a sidecar that restarts to claim it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The boot's key pairs."""

    wireguard_private: Secret
    """Base64."""
    tls_private_pem: Secret
    """PKCS#8 PEM, P-256: of the Consul agent's RPC."""
    recovery_token: Secret
    """UUID. Opens the Consul agent's own API, on this CVM only, while no server can judge a token."""
    leaf_private_pem: Secret
    """PKCS#8 PEM, P-256: of this CVM's certificate in the mesh."""
    public_private_pem: Secret
    """Likewise of the certificates that its public listeners show: another key, for whoever gets hold of what clients
    outside are shown must not be anybody in the mesh."""
    public: BootKeys


def load_or_make(state_dir: Path) -> Keys:
    """The boot's keys: those in `state_dir` if they are there and whole, else new ones, written there."""
    path = state_dir / KEYS_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return _keys(Secret(tree["wireguard"]), Secret(tree["tls"]), Secret(str(uuid.UUID(tree["recovery"]))))
    except (OSError, ValueError, KeyError, TypeError):
        # Not there, or cut off by a crash: then no coordinator knows these keys yet, or it will let the slot lapse.
        pass
    keys = make()
    tree = {"wireguard": keys.wireguard_private, "tls": keys.tls_private_pem, "recovery": keys.recovery_token}
    write_private(path, json.dumps({name: secret.reveal() for name, secret in tree.items()}))
    return keys


def held_slot(state_dir: Path, keys: Keys) -> str | None:
    """The peer ID that the boot with `keys` was admitted as last; None when there is none that can be read."""
    try:
        tree = json.loads((state_dir / SLOT_FILE).read_text(encoding="utf-8"))
        peer_id, key = tree["peer_id"], tree["wireguard"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Of other keys: of another boot, which held the slot, while this one does not.
    return peer_id if isinstance(peer_id, str) and peer_id and key == keys.public.wireguard else None


def keep_slot(state_dir: Path, keys: Keys, peer_id: str) -> None:
    """Notes that the boot with `keys` is admitted as `peer_id`. OSError when the file cannot be written."""
    write_private(
        state_dir / SLOT_FILE, json.dumps({"peer_id": peer_id, "wireguard": keys.public.wireguard}, sort_keys=True)
    )


def make() -> Keys:
    """New keys."""
    from peer.wireguard import generate_key

    private, _ = generate_key()
    return _keys(private, _p256(), Secret(str(uuid.uuid4())))


def _p256() -> Secret:
    """A new P-256 key, PKCS#8 PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def _keys(wireguard: Secret, tls: Secret, recovery: Secret) -> Keys:
    from peer.wireguard import public_key

    leaf, outside = _p256(), _p256()
    public = BootKeys(wireguard=public_key(wireguard), tls=_public(tls), leaf=_public(leaf), public=_public(outside))
    return Keys(
        wireguard_private=wireguard,
        tls_private_pem=tls,
        recovery_token=recovery,
        leaf_private_pem=leaf,
        public_private_pem=outside,
        public=public,
    )


def _public(private_pem: Secret) -> str:
    """SubjectPublicKeyInfo, DER in base64."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    key = load_pem_private_key(private_pem.reveal().encode(), None).public_key()
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
