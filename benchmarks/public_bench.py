"""The public listener beside a plain Envoy that shows the same certificate and leads to the same local server.

    python benchmarks/public_bench.py [--quick]     # JSON {measure: {"ours": [samples], "plain": [samples]}}

Both are Envoys of this machine, asked in turns by the same client. A rate is by Envoy's own CPU time, so neither the
client's cost nor another program's shows in it. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.xds_bench import _SINK as SINK  # noqa: E402
from tests.support import spawn, tool  # noqa: E402 (a script: the project's root is put on the path first)
from tests.xds.mesh import PORT, PUBLIC_PORT, Pair, loopback  # noqa: E402
from xds.bootstrap import argv  # noqa: E402

TURNS, CONNECTIONS = 8, 500
"""Turns of each of both, and new connections in one turn."""
TRANSFERS, MEBIBYTES = 6, 256
"""Uploads of each of both, and what one takes along."""
LISTEN_SECONDS = 20.0
"""For an Envoy to listen."""
CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two."""

    name: str
    place: tuple[str, int]
    pid: int
    """Of its Envoy."""

    def cpu(self) -> float:
        """Seconds of CPU that its threads have used, from the scheduler, which counts in nanoseconds."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def config_of_plain(place: tuple[str, int], backend: tuple[str, int], chain: str, key: str) -> str:
    """A plain Envoy's bootstrap: one TLS listener, one TCP proxy. Pure."""
    kind = "type.googleapis.com/envoy.extensions"
    tls = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
    tcp = {"@type": f"{kind}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "plain", "cluster": "local"}
    context = {
        "@type": f"{kind}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [tls], "alpn_protocols": ["http/1.1"]},
    }
    listener = {
        "name": "plain",
        "address": _socket_address(*place),
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": context},
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp}],
            }
        ],
    }
    endpoint = {"endpoint": {"address": _socket_address(*backend)}}
    cluster = {
        "name": "local",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "local", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


def _socket_address(address: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": address, "port_value": port}}


@contextlib.asynccontextmanager
async def sides(folder: Path) -> AsyncIterator[tuple[tuple[Side, Side], ssl.SSLContext]]:
    """Both, which lead to one server, and a client's context."""
    both = Pair(folder, public=True)
    own = both.ingress()
    plain_place = (loopback(), PUBLIC_PORT)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # its certificate is for a URI
    client.load_verify_locations(cadata=both.authority.pem)
    leaf = next(leaf for leaf in own.leaves if leaf.name == "outside")
    config = folder / "plain.json"
    config.write_text(
        config_of_plain(plain_place, (both.backend, PORT), leaf.chain_pem, leaf.key_pem.reveal()), encoding="utf-8"
    )
    with sink((both.backend, PORT)):
        plain = await spawn(*argv(tool("envoy"), str(config)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await both.callee.start()
            await both.callee.apply(own)
            assert both.callee.process is not None
            places = {"ours": ((both.address, PUBLIC_PORT), both.callee.process), "plain": (plain_place, plain)}
            found = [Side(name=name, place=place, pid=process.pid) for name, (place, process) in places.items()]
            for side in found:
                await listening(side.place)
            yield (found[0], found[1]), client
        finally:
            if plain.returncode is None:
                plain.kill()
            await plain.wait()
            await both.callee.close()


@contextlib.contextmanager
def sink(place: tuple[str, int]) -> Iterator[None]:
    """The local server: echoes what follows an `e`, and takes everything else."""
    line = [sys.executable, "-c", SINK, place[0], str(place[1])]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


async def listening(place: tuple[str, int]) -> None:
    """Returns once somebody listens there. TimeoutError."""
    async with asyncio.timeout(LISTEN_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection(*place)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


def connect(place: tuple[str, int], client: ssl.SSLContext) -> float:
    """Seconds of a new connection until its first byte has come back."""
    began = time.perf_counter()
    with socket.create_connection(place, CALL_SECONDS) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client.wrap_socket(plain, server_hostname="callee.example") as secure:
            secure.sendall(b"e")
            assert secure.recv(1) == b"e"
            return time.perf_counter() - began


def upload(place: tuple[str, int], client: ssl.SSLContext, size: int) -> float:
    """Seconds of one stream of `size` bytes until the server has them all."""
    block = bytes(1 << 20)
    with socket.create_connection(place, CALL_SECONDS) as plain, client.wrap_socket(plain) as secure:
        began = time.perf_counter()
        secure.sendall(b"u")
        for _ in range(size // len(block)):
            secure.sendall(block)
        # The server answers at the end of what it is sent, which close_notify says.
        with contextlib.suppress(OSError):
            secure.unwrap()
        return time.perf_counter() - began


def measure(both: tuple[Side, Side], client: ssl.SSLContext, *, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Samples by measure and side: connections a CPU second, milliseconds of each, Gbit/s, gigabytes a CPU second."""
    found: dict[str, dict[str, list[float]]] = {}

    def add(what: str, side: Side, *values: float) -> None:
        found.setdefault(what, {}).setdefault(side.name, []).extend(values)

    number, turns = (50, 2) if quick else (CONNECTIONS, TURNS)
    for side in both:
        for _ in range(number // 5):
            connect(side.place, client)
    for turn in range(turns):
        # Whoever is first in a turn is last in the next.
        for side in both if turn % 2 == 0 else both[::-1]:
            before = side.cpu()
            samples = [1000 * connect(side.place, client) for _ in range(number)]
            add("connections per CPU second", side, number / (side.cpu() - before))
            add("connection, ms", side, *samples)
    size = (16 if quick else MEBIBYTES) << 20
    for turn in range(2 if quick else TRANSFERS):
        for side in both if turn % 2 == 0 else both[::-1]:
            before = side.cpu()
            seconds = upload(side.place, client, size)
            add("Gbit/s", side, 8 * size / seconds / 1e9)
            add("gigabytes per CPU second", side, size / 1e9 / (side.cpu() - before))
    return found


async def main(*, quick: bool) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory(prefix="public-bench-") as folder:
        async with sides(Path(folder)) as (both, client):
            take: Callable[[], dict[str, dict[str, list[float]]]] = lambda: measure(both, client, quick=quick)  # noqa: E731
            print(json.dumps(await asyncio.to_thread(take)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    asyncio.run(main(quick=parser.parse_args().quick))
