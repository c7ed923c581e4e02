"""What strangers cost a coordinator, at full size: `python benchmarks/strangers_bench.py [--json] [--scale N]`.

A coordinator process with a real Consul server; a CVM that was admitted and renews its lease each second on its own
connection; and in the middle of each attack a newcomer. The attackers come from the address that the CVMs come from, as
behind one gateway. Attacks, one after the other, each held for HOLD_SECONDS:

- silent: 20,000 TCP connections that say nothing
- hellos: 1,000 with a part of a TLS ClientHello
- heads: 1,000 that went through the handshake and sent half a request head
- bodies: 1,000 that sent a body of 1 MiB but for its last byte
- greetings: whole requests that are refused, by 32 at once, as fast as they are answered

Memory is the coordinator process's resident set, every 0.1 s; `after` is REST_SECONDS later.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import resource
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp
import psutil

from admission.protocol import MAX_BODY
from runtime import heap, log, output
from tests.coordinator.world import API_COMPOSE, Applicant, cluster, cvm

ATTACKS = {"silent": 20_000, "hellos": 1_000, "heads": 1_000, "bodies": 1_000, "greetings": 32}
HOLD_SECONDS = 15.0
REST_SECONDS = 25.0
"""Longer than a head or a body may take (15 s)."""
HELLO = bytes.fromhex("16030102000100") + b"\x00" * 60
"""The begin of a TLS record of 512 bytes."""


async def serve() -> None:
    """The coordinator's process: says where it is, ends with its standard input. As `python -m coordinator` begins."""
    heap.give_back()
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        print(json.dumps({"url": lead.url, "manifest": None}), flush=True)
        output.begin()
        log.configure("info")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def unverified() -> ssl.SSLContext:
    """Whoever attacks verifies nothing."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


async def attack(kind: str, count: int, host: str, port: int) -> None:
    """The attackers' process: `count` connections of that kind at once, held until it is killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop, held = asyncio.get_running_loop(), []
    if kind in ("silent", "hellos"):
        for _ in range(count):
            made = socket.socket()
            made.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.sock_connect(made, (host, port))
                if kind == "hellos":
                    await loop.sock_sendall(made, HELLO)
            held.append(made)
    elif kind == "greetings":
        await asyncio.gather(*(greet(host, port) for _ in range(count)))
    else:
        for _ in range(count):
            with contextlib.suppress(OSError):
                held.append(await begin(kind, host, port))
    print("begun", flush=True)
    await asyncio.Event().wait()


async def begin(kind: str, host: str, port: int) -> Any:
    """A connection with a handshake, and a part of a request."""
    streams = await asyncio.open_connection(host, port, ssl=unverified())
    head = b"POST /v1/admission/attest HTTP/1.1\r\nHost: x\r\n"
    if kind == "heads":
        streams[1].write(head)
    else:
        streams[1].write(head + f"Content-Length: {MAX_BODY}\r\n\r\n".encode() + b"x" * (MAX_BODY - 1))
    with contextlib.suppress(ConnectionError):
        await streams[1].drain()
    return streams


async def greet(host: str, port: int) -> None:
    """Refused requests without an end; says that it has begun by the first."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        print("begun", flush=True)
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(f"https://{host}:{port}/v1/admission/challenge", data=b"[]") as response:
                    await response.read()


class Renewing:
    """A CVM that renews its lease each second, on its own connection."""

    def __init__(self, url: str, lease: str) -> None:
        self._url, self._lease = url, lease
        self.took: list[float] = []
        self.missed: list[str] = []
        self.reset()

    def reset(self) -> None:
        """Begins to count anew."""
        self.took, self.missed = [], []

    async def run(self) -> None:
        """Until cancelled."""
        limit = aiohttp.ClientTimeout(total=5.0)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False), timeout=limit) as session:
            while True:
                began = time.perf_counter()
                try:
                    async with session.post(f"{self._url}/v1/admission/renew", json={"lease": self._lease}) as response:
                        text = await response.text()
                        if response.status != 200:
                            self.missed.append(text[:200])
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.missed.append(repr(error))
                self.took.append(time.perf_counter() - began)
                await asyncio.sleep(max(0.0, 1.0 - self.took[-1]))


async def sampled(process: psutil.Process, peak: list[float]) -> None:
    """Keeps the greatest resident set, in MiB, in `peak`."""
    while True:
        peak[0] = max(peak[0], rss(process))
        await asyncio.sleep(0.1)


def rss(process: psutil.Process) -> float:
    """MiB."""
    return float(process.memory_info().rss) / 2**20


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """This script as another process, which is killed at the end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield child
    finally:
        if "--serve" in arguments:
            assert child.stdin is not None
            child.stdin.close()
        else:
            child.kill()
        await child.wait()


async def measure(scale: float, show: Callable[[dict[str, Any]], None]) -> None:
    """Shows one row for each attack, as soon as there is one."""
    async with program("--serve") as server, cluster() as mesh:
        assert server.stdout is not None
        url = json.loads(await server.stdout.readline())["url"]
        host, port = url.removeprefix("https://").split(":")
        process = psutil.Process(server.pid)
        first = await Applicant(url=url, manifest=mesh.manifest, who=cvm(API_COMPOSE, "cvm-0")).admitted()
        renewing = Renewing(url, first["lease"])
        task = asyncio.get_running_loop().create_task(renewing.run())
        for kind, full in ATTACKS.items():
            await asyncio.sleep(3.0)
            idle, peak = rss(process), [0.0]
            renewing.reset()
            watch = asyncio.get_running_loop().create_task(sampled(process, peak))
            count = max(1, int(full * scale))
            began = time.perf_counter()
            async with program("--attack", kind, "--count", str(count), "--at", host, port) as attackers:
                assert attackers.stdout is not None
                await attackers.stdout.readline()
                built = time.perf_counter() - began
                newcomer = await admission_seconds(url, mesh.manifest)
                await asyncio.sleep(HOLD_SECONDS)
            await asyncio.sleep(REST_SECONDS)
            watch.cancel()
            show({
                "attack": kind, "connections": count, "built_s": built, "idle_mib": idle,
                "peak_above_mib": peak[0] - idle, "after_above_mib": rss(process) - idle,
                "renewals": len(renewing.took), "missed": len(renewing.missed),
                "why": renewing.missed[:1], "slowest_renewal_s": max(renewing.took), "newcomer_s": newcomer,
            })  # fmt: skip
        task.cancel()


async def admission_seconds(url: str, manifest: Any) -> float | str:
    """How long a newcomer with good evidence takes, who tries again as a sidecar does; the reason after 30 s."""
    began, reason = time.perf_counter(), ""
    while time.perf_counter() - began < 30.0:
        try:
            status, answer = await Applicant(url=url, manifest=manifest, who=cvm(API_COMPOSE, "cvm-1")).attest()
            if status == 200:
                return time.perf_counter() - began
            reason = str(answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = repr(error)
        await asyncio.sleep(0.1)
    return reason


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of connections")
    for name in ("--serve", "--attack", "--count"):
        parser.add_argument(name, **({"action": "store_true"} if name == "--serve" else {}), help=argparse.SUPPRESS)
    parser.add_argument("--at", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.NOTSET if options.serve else logging.CRITICAL)
    if options.serve:
        asyncio.run(serve())
        return
    if options.attack:
        asyncio.run(attack(options.attack, int(options.count), options.at[0], int(options.at[1])))
        return
    asyncio.run(measure(options.scale, lambda row: print(json.dumps(row) if options.json else row, flush=True)))


if __name__ == "__main__":
    main()
