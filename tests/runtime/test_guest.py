"""The guest agent's client, against the simulated agent of both OS versions and against misbehaving ones."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from evidence.ratls import expected_report_data, extract
from lab.agent import GuestAgentServer
from lab.tee import CvmIdentity, DevTee, make_cvm
from runtime.guest import GuestAgent, GuestError, decode_info, decode_quote, decode_tls_key

TEE = DevTee(b"guest agent tests")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: socket paths are limited to 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="g-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["0.5.7", "0.6.0"])
def cvm(request: pytest.FixtureRequest) -> CvmIdentity:
    """A CVM of either OS version."""
    return make_cvm(TEE, app_compose='{"name":"app"}', app_id=None, instance_seed=b"s", os_version=request.param)


@pytest_asyncio.fixture
async def agent(cvm: CvmIdentity, folder: Path) -> AsyncIterator[GuestAgent]:
    """A client of that CVM's simulated agent."""
    server = GuestAgentServer(TEE, cvm)
    await server.start(folder / "dstack.sock")
    async with GuestAgent(folder / "dstack.sock") as client:
        yield client
    await server.stop()


async def test_info(agent: GuestAgent, cvm: CvmIdentity) -> None:
    """Identities, key provider and OS image hash come out typed, from either OS version."""
    info = await agent.info()
    assert (info.app_id, info.instance_id, info.compose_hash) == (cvm.app_id, cvm.instance_id, cvm.compose_hash)
    assert (info.key_provider, info.key_provider_id) == (TEE.key_provider.name, TEE.key_provider.id)
    assert info.os_image_hash == cvm.os_image.os_image_hash


@pytest.mark.parametrize("image", ["zz" * 32, "ab" * 20, 5])
def test_an_image_hash_that_is_none_is_refused(image: object) -> None:
    """An OS image hash is 32 bytes in hex, or empty where the agent knows none."""
    told = {"app_id": "a" * 40, "compose_hash": "c" * 64}
    assert decode_info({**told, "os_image_hash": "AB" * 32}).os_image_hash == "ab" * 32
    assert decode_info({**told, "os_image_hash": ""}).os_image_hash == decode_info(told).os_image_hash == ""
    with pytest.raises(GuestError, match="os_image_hash"):
        decode_info({**told, "os_image_hash": image})


async def test_version(agent: GuestAgent, cvm: CvmIdentity) -> None:
    """The agent's version is that of the OS."""
    assert await agent.version() == cvm.os_version


async def test_quote(agent: GuestAgent) -> None:
    """The quote says what was asked, and comes with the log."""
    answer = await agent.quote(b"said")
    assert b"said" in answer.quote
    assert "system-ready" in answer.event_log


async def test_key(agent: GuestAgent) -> None:
    """A key depends on its path and not on its purpose, and does not show."""
    one, again, other = await agent.key("a"), await agent.key("a", "purpose"), await agent.key("b")
    assert one == again
    assert one != other
    assert len(bytes.fromhex(one.reveal())) == 32
    assert one.reveal() not in repr(one)


async def test_tls_key(agent: GuestAgent) -> None:
    """An RA-TLS certificate's quote speaks for its key, in either version's form."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    found = await agent.tls_key("subject", ("name",), ra_tls=True, server=True, client=False)
    leaf = x509.load_pem_x509_certificates(found.chain_pem.encode())[0].public_bytes(Encoding.DER)
    evidence = extract(leaf)
    assert expected_report_data(evidence.spki) in evidence.quote
    assert "PRIVATE KEY" in found.key_pem.reveal()


@pytest.mark.parametrize("size", [0, 65])
async def test_report_data_is_checked_before_the_call(size: int, tmp_path: Path) -> None:
    """No or too much report data is refused without asking anyone."""
    async with GuestAgent(tmp_path / "nothing") as client:
        with pytest.raises(GuestError, match=f"{size} bytes, expected 1 to 64"):
            await client.quote(bytes(size))


async def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    """A missing socket is named, with what to look at."""
    async with GuestAgent(tmp_path / "none.sock") as client:
        with pytest.raises(GuestError, match=r"Info: .*none\.sock does not answer .*mounted"):
            await client.info()


async def test_the_agents_refusal_is_told(agent: GuestAgent) -> None:
    """The text of an error answer is part of the error."""
    with pytest.raises(GuestError, match="Service not found: Nope"):
        await agent._call("Nope", {})


async def _serve(folder: Path, answer: bytes, ended: asyncio.Event) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer:
            writer.write(answer)
            await writer.drain()
        else:
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended.set()

    return await asyncio.start_unix_server(handle, folder / "dstack.sock")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>", "404 with a body that is not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "expected a JSON object"),
        (b"not HTTP\r\n\r\n", "does not answer"),
        (b"", "no answer within 0.1 s"),
    ],
    ids=["page", "list", "noise", "silence"],
)
async def test_answers_that_are_none(folder: Path, answer: bytes, words: str) -> None:
    """HTML pages, other JSON, noise and silence become the one error."""
    ended = asyncio.Event()
    server = await _serve(folder, answer, ended)
    async with GuestAgent(folder / "dstack.sock", timeout=0.1) as client:
        with pytest.raises(GuestError, match=words):
            await client.info()
    await asyncio.wait_for(ended.wait(), 10)
    server.close()
    await server.wait_closed()


def test_missing_fields_are_named() -> None:
    """An answer without what we need says which field; without what we can do without is fine."""
    with pytest.raises(GuestError, match="app_id is None"):
        decode_info({})
    with pytest.raises(GuestError, match="app_id has 2 bytes, expected 20"):
        decode_info({"app_id": "1234"})
    with pytest.raises(GuestError, match="key_provider_info"):
        decode_info({"app_id": "11" * 20, "compose_hash": "22" * 32, "key_provider_info": "[]"})
    info = decode_info({"app_id": "0x" + "AB" * 20, "compose_hash": "22" * 32, "future_field": 1})
    assert (info.app_id, info.instance_id, info.key_provider) == ("ab" * 20, "", "")
    with pytest.raises(GuestError, match="quote is not hexadecimal"):
        decode_quote({"quote": "zz", "event_log": ""})
    with pytest.raises(GuestError, match="certificate_chain"):
        decode_tls_key({"key": "k", "certificate_chain": []})
