"""`lab.agent_methods`: what the answers say, by OS version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from eth_keys.datatypes import Signature

from evidence.keccak import keccak256
from lab.tee_keys import k256_public
from tests.lab.agent_world import TEE, Agent, running


@pytest.fixture(params=["0.5.7", "0.6.0"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent of each OS version."""
    async with running(tmp_path, request.param) as found:
        yield found


def recovered(signature: str, message: bytes) -> bytes:
    """The compressed key that made this signature."""
    return (
        Signature(bytes.fromhex(signature)).recover_public_key_from_msg_hash(keccak256(message)).to_compressed_bytes()
    )


async def test_info_in_full(agent: Agent) -> None:
    """Keys in the recorded order; both versions know the image hash, as they do in production."""
    info = await agent.ask("/Info", {})
    assert list(info) == [
        "app_id", "instance_id", "app_cert", "tcb_info", "app_name", "device_id", "mr_aggregated", "os_image_hash",
        "key_provider_info", "compose_hash", "vm_config", "cloud_vendor", "cloud_product",
    ]  # fmt: skip
    tcb = json.loads(info["tcb_info"])
    assert info["tcb_info"] == json.dumps(tcb, indent=2, ensure_ascii=False)
    assert list(tcb) == [
        "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_aggregated", "os_image_hash", "compose_hash", "device_id",
        "event_log", "app_compose",
    ]  # fmt: skip
    assert info["os_image_hash"] == tcb["os_image_hash"] == agent.cvm.os_image.os_image_hash
    assert info["device_id"] == hashlib.sha256(b"").hexdigest()
    assert json.loads(info["key_provider_info"]) == {"name": "kms", "id": TEE.key_provider.id}
    assert info["app_cert"].count("BEGIN CERTIFICATE") == 2


async def test_the_log_of_a_quote_is_stripped(agent: Agent) -> None:
    """Runtime events lose their digest, firmware events their payload; 0.6.0 keeps the payload of ACPI events."""
    log = json.loads((await agent.ask("/GetQuote", {}))["event_log"])
    runtime = [event for event in log if event["imr"] == 3]
    assert [event["event"] for event in runtime] == [
        "system-preparing", "app-id", "compose-hash", "instance-id", "boot-mr-done", "os-image-hash", "key-provider",
        "storage-fs", "system-ready",
    ]  # fmt: skip
    assert all(event["digest"] == "" for event in runtime)
    firmware = [event for event in log if event["imr"] != 3]
    assert all(len(event["digest"]) == 96 for event in firmware)
    kept = sum(event["event_payload"] != "" for event in firmware)
    assert kept == (0 if agent.cvm.os_version == "0.5.7" else 3)


async def test_the_signature_chain_of_a_key(agent: Agent) -> None:
    """The app key vouches for the derived key and its purpose, the KMS for the app key."""
    answer = await agent.ask("/GetKey", {"path": "a", "purpose": "p"})
    app_public = k256_public(bytes.fromhex(agent.cvm.app_key.reveal()))
    derived = k256_public(bytes.fromhex(answer["key"]))
    assert recovered(answer["signature_chain"][0], f"p:{derived.hex()}".encode()) == app_public
    issued = b"dstack-kms-issued:" + bytes.fromhex(agent.cvm.app_id) + app_public
    assert recovered(answer["signature_chain"][1], issued) == k256_public(TEE.kms_root)


async def test_purpose_changes_the_signature_and_not_the_key(agent: Agent) -> None:
    """As dstack derives: only the path enters the key."""
    one, two = [await agent.ask("/GetKey", {"path": "a", "purpose": purpose}) for purpose in ("p", "q")]
    assert one["key"] == two["key"]
    assert one["signature_chain"][0] != two["signature_chain"][0]


@pytest.mark.parametrize(
    ("target", "tree", "error"),
    [
        ("/GetKey", {"algorithm": "rsa"}, "Unsupported algorithm"),
        ("/Sign", {"algorithm": "rsa"}, "Unsupported algorithm"),
        (
            "/Sign",
            {"algorithm": "secp256k1_prehashed", "data": "00"},
            "Pre-hashed signing requires a 32-byte digest, but received 1 bytes",
        ),
    ],
)
async def test_unsupported_requests(agent: Agent, target: str, tree: dict[str, str], error: str) -> None:
    """The recorded texts."""
    answer = await agent.post(target, tree)
    assert (answer.status, answer.error) == (400, error)


async def test_a_malformed_public_key_is_an_error(agent: Agent) -> None:
    """Verify says 400 to what is no key, and false to what is no signature."""
    for algorithm in ("ed25519", "secp256k1"):
        answer = await agent.post("/Verify", {"algorithm": algorithm, "public_key": "00", "signature": "00" * 64})
        assert answer.status == 400


async def test_not_before_after_not_after(agent: Agent) -> None:
    """0.6.0 refuses it, 0.5.7 answers."""
    answer = await agent.post("/GetTlsKey", {"not_before": 200, "not_after": 100})
    if agent.cvm.os_version == "0.5.7":
        assert answer.status == 200
    else:
        assert (answer.status, answer.error) == (400, "not_before must be earlier than not_after")
