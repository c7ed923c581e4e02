"""`lab.agent`: HTTP as the real agent speaks it, and the unmodified SDK against both OS versions."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from dstack_sdk import AsyncDstackClient

from evidence import ratls
from evidence.collateral import FixedCollateral
from evidence.verify import EvidenceError, Verifier
from lab.agent import MAX_BODY, GuestAgentServer
from lab.agent_wire import encode_protobuf
from tests.lab.agent_world import NOW, TEE, Agent, boot, running

VERIFIER = Verifier(collateral=FixedCollateral(TEE.collateral_json(NOW)), root_ca_der=TEE.root_der)


@pytest.fixture(params=["0.5.7", "0.6.0"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent of each OS version."""
    async with running(tmp_path, request.param) as found:
        yield found


@pytest.fixture
async def new_agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent of the newer version."""
    async with running(tmp_path, "0.6.0") as found:
        yield found


async def test_the_unmodified_sdk_works(agent: Agent) -> None:
    """Every call of dstack-sdk 0.5.4 that the real agent answers is answered, and the evidence verifies."""
    async with AsyncDstackClient(str(agent.path)) as client:
        assert await client.is_reachable()
        assert (await client.version()).version == agent.cvm.os_version
        info = await client.info()
        assert (info.app_id, info.instance_id) == (agent.cvm.app_id, agent.cvm.instance_id)
        assert info.tcb_info.app_compose == agent.cvm.app_compose
        quote = await client.get_quote(b"hello")
        facts = await VERIFIER.verify(
            quote=quote.decode_quote(),
            event_log=quote.event_log,
            vm_config=quote.vm_config,
            report_data=b"hello",
            now=NOW,
        )
        assert facts.compose_hash == info.compose_hash == agent.cvm.compose_hash
        keys = [await client.get_key("a/b", "c", name) for name in ("secp256k1", "k256", "ed25519")]
        assert len({key.key for key in keys}) == 1
        assert (await client.attest(b"x")).decode_attestation()[:1] == b"\0"
        for algorithm, data in (("ed25519", b"x"), ("secp256k1", b"x"), ("secp256k1_prehashed", bytes(32))):
            signed = await client.sign(algorithm, data)
            assert len(signed.signature_chain) == 3
            good = await client.verify(algorithm, data, signed.decode_signature(), signed.decode_public_key())
            assert good.valid
            other = await client.verify(
                algorithm, bytes(32)[1:] + b"y", signed.decode_signature(), signed.decode_public_key()
            )
            assert not other.valid
        with pytest.raises(httpx.HTTPStatusError):
            await client.get_key("a", "b", "rsa")


async def test_the_sdks_replay_fits_the_full_log(agent: Agent) -> None:
    """Info's log keeps its digests, so all four registers replay from it."""
    async with AsyncDstackClient(str(agent.path)) as client:
        info = await client.info()
    from dstack_sdk.dstack_client import replay_rtmr

    log = info.tcb_info.event_log
    replayed = [replay_rtmr([event.digest for event in log if event.imr == register]) for register in range(4)]
    tcb = info.tcb_info
    assert replayed == [tcb.rtmr0, tcb.rtmr1, tcb.rtmr2, tcb.rtmr3]


async def test_ra_tls_certificates_verify(agent: Agent) -> None:
    """GetTlsKey's leaf carries evidence for its own key, in the extensions of its OS version."""
    async with AsyncDstackClient(str(agent.path)) as client:
        answer = await client.get_tls_key("api", ["api.mesh"], usage_ra_tls=True, not_after=int(NOW) + 60)
    leaf = x509.load_pem_x509_certificate(answer.certificate_chain[0].encode())
    facts = await ratls.verify_certificate(VERIFIER, leaf.public_bytes(Encoding.DER), NOW)
    assert facts.instance_id == agent.cvm.instance_id
    numbers = {
        item.oid.dotted_string.rpartition(".")[2] for item in leaf.extensions if "62397" in item.oid.dotted_string
    }
    assert numbers == ({"1", "2", "4"} if agent.cvm.os_version == "0.5.7" else {"4", "8"})
    assert leaf.not_valid_after_utc.timestamp() == NOW + 60


async def test_emit_event_extends_the_register_of_old_systems(tmp_path: Path) -> None:
    """On 0.5.7 a program can extend RTMR3: log and quote still agree, and admission refuses the CVM from then on."""
    async with running(tmp_path, "0.5.7") as agent:
        async with AsyncDstackClient(str(agent.path)) as client:
            assert await client.emit_event("mine", b"payload") is None
            quote = await client.get_quote(b"x")
        answer = await agent.post("/EmitEvent", {})
        assert (answer.status, answer.body) == (200, b"null")
    with pytest.raises(EvidenceError, match="'mine' after 'system-ready'"):
        await VERIFIER.verify(
            quote=quote.decode_quote(), event_log=quote.event_log, vm_config="", report_data=b"x", now=NOW
        )


async def test_new_systems_have_no_emit_event(new_agent: Agent) -> None:
    """Removed in 0.6.0; GpuInfo came."""
    answer = await new_agent.post("/EmitEvent", {})
    assert (answer.status, answer.error) == (400, "Service not found: EmitEvent")
    assert await new_agent.ask("/GpuInfo", {}) == {"attestation": ""}


@pytest.mark.parametrize(
    ("method", "target"),
    [("POST", "/Nope"), ("GET", "/Nope"), ("POST", "/getquote"), ("GET", "/DstackGuest.Info")],
)
async def test_unknown_methods(agent: Agent, method: str, target: str) -> None:
    """400 with the name that was asked for."""
    answer = await agent.send(method, target)
    assert (answer.status, answer.error) == (400, f"Service not found: {target[1:]}")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/a/b", 404),
        ("POST", "/prpc/DstackGuest.Info", 404),
        ("PUT", "/Info", 404),
        ("DELETE", "/Info", 404),
        ("OPTIONS", "/Info", 404),
        ("GET", "/", 422),
        ("POST", "/", 422),
    ],
)
async def test_other_requests_get_a_page(agent: Agent, method: str, target: str, status: int) -> None:
    """What the framework answers by itself is HTML."""
    answer = await agent.send(method, target)
    assert answer.status == status
    assert ("content-type", "text/html; charset=utf-8") in answer.headers


async def test_headers_are_rockets(agent: Agent) -> None:
    """Lower case, with the framework's three, and no `connection`."""
    answer = await agent.send("GET", "/Version")
    names = [name for name, _ in answer.headers]
    assert sorted(names) == [
        "content-length", "content-type", "date", "permissions-policy", "server", "x-content-type-options",
        "x-frame-options",
    ]  # fmt: skip
    assert ("content-type", "application/json") in answer.headers


async def test_head_has_no_body(agent: Agent) -> None:
    """HEAD answers like GET, without the body."""
    answer = await agent.send("HEAD", "/Version")
    full = await agent.send("GET", "/Version")
    assert (answer.status, answer.body) == (200, b"")
    assert ("content-length", str(len(full.body))) in answer.headers


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
async def test_json_by_content_type(agent: Agent, content_type: str) -> None:
    """Parameters do not matter."""
    answer = await agent.send("POST", "/Version", b"{}", content_type)
    assert json.loads(answer.body)["version"] == agent.cvm.os_version


@pytest.mark.parametrize("target", ["/Version?json", "/Version?json=true"])
async def test_json_by_query(agent: Agent, target: str) -> None:
    """The query asks for JSON whatever the type says."""
    answer = await agent.send("POST", target, b"{}", "text/plain")
    assert json.loads(answer.body)["version"] == agent.cvm.os_version


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
async def test_everything_else_is_protobuf(agent: Agent, content_type: str | None) -> None:
    """A JSON body without its type is an undecodable protobuf message, and the answer says so in protobuf."""
    answer = await agent.send("POST", "/GetQuote", b'{"report_data":"12"}', content_type)
    expected = encode_protobuf("Error", {"message": "failed to decode Protobuf message: buffer underflow"})
    assert (answer.status, answer.body) == (400, expected)
    assert answer.body.startswith(b"\x0a\x33failed to decode")
    assert ("content-type", "application/octet-stream") in answer.headers


async def test_protobuf_both_ways(agent: Agent) -> None:
    """A protobuf request gets the protobuf answer; an empty body is a message of defaults."""
    body = encode_protobuf("GetKeyArgs", {"path": "a", "purpose": "", "algorithm": ""})
    answer = await agent.send("POST", "/GetKey", body, None)
    found = await agent.ask("/GetKey", {"path": "a"})
    assert bytes.fromhex(found["key"]) in answer.body
    empty = await agent.send("POST", "/Version", b"", None)
    assert (empty.status, agent.cvm.os_version.encode() in empty.body) == (200, True)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{bad json", "key must be a string at line 1 column 2"),
        (b'{"report_data":null}', "invalid type: null, expected a string at line 1 column 19"),
        (b'{"report_data":12}', "invalid type: integer `12`, expected a string at line 1 column 17"),
        (b'{"report_data":"123"}', "Odd number of digits at line 1 column 21"),
        (b'{"report_data":"zz"}', "Invalid character 'z' at position 0 at line 1 column 20"),
        (b'{"report_data":"' + b"00" * 65 + b'"}', "Report data is too long"),
    ],
)
async def test_errors_in_a_request(agent: Agent, body: bytes, error: str) -> None:
    """The recorded texts, to the column."""
    answer = await agent.send("POST", "/GetQuote", body)
    assert (answer.status, answer.error) == (400, error)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"unknown":[1]}', b'{"report_data":""}'])
async def test_missing_fields_default(agent: Agent, body: bytes) -> None:
    """Nothing, an empty object and an empty list all ask for 64 zero bytes."""
    answer = await agent.send("POST", "/GetQuote", body)
    assert json.loads(answer.body)["report_data"] == "00" * 64


@pytest.mark.parametrize("sent", ["1234", "0x1234"])
async def test_report_data_is_padded_and_echoed(agent: Agent, sent: str) -> None:
    """With or without prefix, padded on the right."""
    answer = await agent.ask("/GetQuote", {"report_data": sent})
    assert answer["report_data"] == "1234" + "00" * 62
    assert list(answer) == ["quote", "event_log", "report_data", "vm_config"] + (
        ["attestation"] if agent.cvm.os_version == "0.6.0" else []
    )


async def test_a_get_takes_its_fields_from_the_query(agent: Agent) -> None:
    """Every method can be tried with a browser."""
    answer = await agent.send("GET", "/GetKey?path=a&algorithm=ed25519")
    assert json.loads(answer.body)["key"] == (await agent.ask("/GetKey", {"path": "a"}))["key"]


async def test_a_body_over_the_limit(agent: Agent) -> None:
    """10 MiB is the end; the error is protobuf even for a JSON request, JSON only when the query asks."""
    body = b" " * (MAX_BODY + 1)
    answer = await agent.send("POST", "/GetQuote", body)
    assert (answer.status, answer.body.startswith(b"\x0a")) == (400, True)
    answer = await agent.send("POST", "/GetQuote?json", body)
    assert answer.error == "failed to read data: payload too large"


async def test_every_user_may_connect_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """Mode 0777 while it runs, a stale socket replaced, no file afterwards."""
    path = tmp_path / "dstack.sock"
    for _ in range(2):
        server = GuestAgentServer(TEE, boot("0.6.0"))
        await server.start(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
        await server.stop()
        assert not path.exists()
    await server.stop()
