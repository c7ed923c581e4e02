from __future__ import annotations

import base64
import stat
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_der_public_key

from sidecar.identity import KEYS_FILE, SLOT_FILE, Keys, held_slot, keep_slot, load_or_make, make


def kept(keys: Keys) -> tuple[str, str]:
    """What a boot keeps."""
    return keys.public.wireguard, keys.public.tls


def test_keys_are_kept_within_a_boot(tmp_path: Path) -> None:
    """A sidecar that restarts finds the same keys, in a private file."""
    first, second = load_or_make(tmp_path), load_or_make(tmp_path)
    assert kept(first) == kept(second)
    assert first.wireguard_private == second.wireguard_private
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600


def test_each_boot_makes_its_own_keys(tmp_path: Path) -> None:
    """Empty state means new keys."""
    assert load_or_make(tmp_path / "a").public != load_or_make(tmp_path / "b").public


def test_file_cut_off_by_a_crash_is_replaced(tmp_path: Path) -> None:
    """Half a file is no key: new ones are made and kept."""
    load_or_make(tmp_path)
    text = (tmp_path / KEYS_FILE).read_text()
    for broken in (
        "",
        text[: len(text) // 2],
        '{"wireguard": "AA=="}',
        '{"wireguard": "x", "tls": "y", "recovery": "z"}',
        "[]",
    ):
        (tmp_path / KEYS_FILE).write_text(broken)
        made = load_or_make(tmp_path)
        assert kept(load_or_make(tmp_path)) == kept(made)


def test_the_certificates_key_is_in_no_file(tmp_path: Path) -> None:
    """Each process makes its own and attests it."""
    first, second = load_or_make(tmp_path), load_or_make(tmp_path)
    assert first.leaf_private_pem != second.leaf_private_pem
    assert len({keys.public.leaf for keys in (first, second)} | {keys.public.public for keys in (first, second)}) == 4
    for key in (first.leaf_private_pem, first.public_private_pem):
        inner = "".join(key.reveal().splitlines()[1:-1])
        for path in tmp_path.rglob("*"):
            assert inner not in path.read_text().replace("\\n", "")


def test_public_halves_have_the_forms_of_the_protocol() -> None:
    """WireGuard: 32 bytes in base64; TLS: SubjectPublicKeyInfo in base64; private halves hide themselves."""
    keys = make()
    assert len(base64.b64decode(keys.public.wireguard)) == 32
    for text in (keys.public.tls, keys.public.leaf, keys.public.public):
        assert load_der_public_key(base64.b64decode(text)).key_size == 256  # type: ignore[union-attr]
    assert keys.tls_private_pem.reveal().startswith("-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in repr(keys)


def test_the_slot_is_kept_within_a_boot(tmp_path: Path) -> None:
    """A sidecar that restarts knows its slot; another boot, which made other keys, does not have it."""
    keys = load_or_make(tmp_path)
    assert held_slot(tmp_path, keys) is None
    keep_slot(tmp_path, keys, "api-1")
    keep_slot(tmp_path, keys, "api-0")
    assert held_slot(tmp_path, keys) == "api-0"
    assert held_slot(tmp_path, make()) is None
    assert stat.S_IMODE((tmp_path / SLOT_FILE).stat().st_mode) == 0o600


def test_a_slot_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """Cut off by a crash, or of another form: the coordinator proposes a slot then."""
    keys = load_or_make(tmp_path)
    for broken in (
        "",
        "{",
        "[]",
        "7",
        '{"peer_id": 7, "wireguard": "x"}',
        f'{{"wireguard": "{keys.public.wireguard}"}}',
    ):
        (tmp_path / SLOT_FILE).write_text(broken)
        assert held_slot(tmp_path, keys) is None
