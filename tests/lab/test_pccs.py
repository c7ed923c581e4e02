"""`lab.pccs`: the development platform's collateral service, as dcap_qvl's own client expects it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from lab.pccs import PccsServer
from lab.tee import DevTee, make_cvm
from tests.support import ROOT, spawn

NOW = 1_800_000_000.0


@pytest.fixture
def tee() -> DevTee:
    """A simulated TEE."""
    return DevTee(b"pccs tests")


@pytest.fixture
async def url(tee: DevTee) -> AsyncIterator[str]:
    """Where a PCCS for it listens."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = PccsServer(tee, clock=lambda: NOW)
    await server.start(listening)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    await server.stop()
    listening.close()


async def get(url: str) -> tuple[int, str]:
    """Status and text of one GET."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text(errors="replace")


async def test_dcap_qvls_own_client_is_satisfied(tee: DevTee, url: str) -> None:
    """The unmodified client fetches, and the quote verifies. In a process of its own: that client can crash at exit."""
    cvm = make_cvm(tee, app_compose="{}", app_id=None, instance_seed=b"", os_version="0.6.0")
    program = f"""
import asyncio, os, sys, dcap_qvl
quote, root = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
async def fetch():
    return await dcap_qvl.get_collateral({url!r}, quote)
collateral = asyncio.run(fetch())
print(dcap_qvl.verify_with_root_ca(quote, collateral, root, {int(NOW)}).status, flush=True)
os._exit(0)
"""
    process = await spawn(
        sys.executable, "-c", program, tee.quote(cvm.measurements, b"").hex(), tee.root_der.hex(),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert out.decode().strip() == "UpToDate"


async def test_the_root_list_is_hex_text(tee: DevTee, url: str) -> None:
    """As a real PCCS gives it."""
    assert await get(f"{url}/sgx/certification/v4/rootcacrl") == (200, tee.collateral(NOW)["root_ca_crl"])


@pytest.mark.parametrize(
    "path",
    [
        "tdx/certification/v4/tcb?fmspc=00A06F000000",
        "sgx/certification/v4/pckcrl?ca=processor",
        "sgx/certification/v4/nowhere",
    ],
)
async def test_unknown_platforms_are_not_found(url: str, path: str) -> None:
    """The service knows one platform."""
    assert (await get(f"{url}/{path}"))[0] == 404


async def test_the_signed_member_is_sent_byte_for_byte(tee: DevTee, url: str) -> None:
    """Printing the JSON anew would break the signature."""
    _, text = await get(f"{url}/tdx/certification/v4/tcb?fmspc=C0FFEE000000")
    assert tee.collateral(NOW)["tcb_info"] in text
    assert json.loads(text)["signature"] == tee.collateral(NOW)["tcb_info_signature"]
