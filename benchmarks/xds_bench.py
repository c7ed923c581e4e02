"""The xDS control plane: building and pushing snapshots, and a route beside a plain connection.

    python benchmarks/xds_bench.py            # JSON rows {name, ours, anchor, ratio}

`ours` is a connection through two real Envoys on loopback, `anchor` the same without them, measured in turns in the
same run. Takes about a minute.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.secret import Secret  # noqa: E402 (a script: the project's root is put on the path first)
from tests.xds.mesh import INGRESS_PORT, PORT, Pair  # noqa: E402
from xds.snapshot import CLUSTER, LISTENER, build  # noqa: E402
from xds.spec import EgressRoute, Endpoint, Leaf, Spec  # noqa: E402
from xds.stream import Request, Stream  # noqa: E402
from xds.wire import write_response  # noqa: E402

ROUTES, ENDPOINTS = 1000, 10
PUSHES = 200
CONNECTS = 400
MEBIBYTES = 256
ROUNDS = 3
_PEM = "-----BEGIN CERTIFICATE-----"
_SINK = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=512)
def serve(conn):
    with conn:
        first = conn.recv(1)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if first == b"e":
            conn.sendall(first)
            while data := conn.recv(65536):
                conn.sendall(data)
        else:
            while conn.recv(1 << 20):
                pass
            conn.sendall(b".")
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. `ratio` is ours through the anchor's; None without an anchor."""

    name: str
    ours: float
    anchor: float | None = None
    ratio: float | None = None


def row(name: str, ours: float, anchor: float | None = None) -> Row:
    """A row with its ratio, rounded."""
    if anchor is None:
        return Row(name=name, ours=round(ours, 3))
    return Row(name=name, ours=round(ours, 3), anchor=round(anchor, 3), ratio=round(ours / anchor, 3))


def big_spec(changed_port: int) -> Spec:
    """1,000 routes with 10 endpoints; one endpoint of one route listens on `changed_port`."""
    routes = []
    for n in range(ROUTES):
        port = changed_port if n == 500 else 19090
        ends = tuple(Endpoint(address=f"100.96.{e}.{n % 250 + 1}", port=port) for e in range(ENDPOINTS))
        vip = f"127.10.{n // 250}.{n % 250 + 1}"
        identity = f"spiffe://mesh/r{n}"
        routes.append(
            EgressRoute(name=f"r{n}", vip=vip, port=9090, endpoints=ends, identity="me", peer_sans=(identity,))
        )
    leaf = Leaf(name="me", uri="spiffe://mesh/me", chain_pem=_PEM, key_pem=Secret("-----BEGIN PRIVATE KEY-----"))
    return Spec(egress=tuple(routes), ingress=(), leaves=(leaf,), roots_pem=_PEM)


def build_rows() -> list[Row]:
    """First build, rebuild after one change, and the bytes that the change costs on the wire."""
    start = time.perf_counter()
    snapshot = build(big_spec(19090))
    rows = [row("build_1000x10_ms", 1000 * (time.perf_counter() - start))]
    stream = Stream({})
    stream.publish(snapshot)
    for type_url in (CLUSTER, LISTENER):
        stream.handle(Request(type_url=type_url))
    whole = _drain(stream)
    stream.handle(Request(type_url=_endpoint_type(), subscribe=tuple(snapshot.resources[CLUSTER])))
    whole += _drain(stream)
    times, cpu, sizes = [], [], []
    for n in range(20):
        wanted = big_spec(20000 + n)
        start, used = time.perf_counter(), time.process_time()
        snapshot = build(wanted, snapshot)
        times.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - used))
        stream.publish(snapshot)
        sizes.append(_drain(stream))
    rows.append(row("rebuild_after_one_change_1000x10_ms_p50", statistics.median(times)))
    rows.append(row("rebuild_after_one_change_1000x10_ms_max", max(times)))
    rows.append(row("rebuild_after_one_change_1000x10_cpu_ms_p50", statistics.median(cpu)))
    rows.append(row("bytes_sent_for_everything", whole))
    rows.append(row("bytes_sent_for_one_changed_route", statistics.median(sizes)))
    return rows


def _endpoint_type() -> str:
    from xds.snapshot import ENDPOINT

    return ENDPOINT


def _drain(stream: Stream) -> int:
    """Takes and acknowledges everything; bytes that it was."""
    size = 0
    while (response := stream.poll()) is not None:
        size += len(write_response(response))
        stream.handle(Request(type_url=response.type_url, nonce=response.nonce))
    return size


@contextmanager
def backend(address: str):  # type: ignore[no-untyped-def]
    """The echo and sink server, in a process of its own."""
    command = [sys.executable, "-c", _SINK, address, str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


async def mesh(stack: AsyncExitStack) -> Pair:
    """Two Envoys and a backend."""
    both = Pair(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xds"))))
    stack.enter_context(backend(both.backend))
    for node in (both.callee, both.caller):
        stack.push_async_callback(node.close)
        await node.start()
    await both.callee.apply(both.ingress())
    await both.caller.apply(both.egress())
    return both


def connect_us(address: str) -> float:
    """Microseconds from connect to the first byte echoed."""
    start = time.perf_counter()
    with socket.create_connection((address, PORT)) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.sendall(b"e")
        conn.recv(1)
        return 1e6 * (time.perf_counter() - start)


def round_trips_us(address: str, count: int) -> list[float]:
    """Microseconds of one byte there and back on an open connection."""
    times = []
    with socket.create_connection((address, PORT)) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.sendall(b"e")
        conn.recv(1)
        for _ in range(count):
            start = time.perf_counter()
            conn.sendall(b"x")
            conn.recv(1)
            times.append(1e6 * (time.perf_counter() - start))
    return times


def gigabits(address: str) -> float:
    """Gbit/s of one connection, one way, until the far end has it all."""
    block = bytes(1 << 20)
    start = time.perf_counter()
    with socket.create_connection((address, PORT)) as conn:
        conn.sendall(b"s")
        for _ in range(MEBIBYTES):
            conn.sendall(block)
        conn.shutdown(socket.SHUT_WR)
        conn.recv(1)
    return MEBIBYTES * 8 * 1.048576 / 1000 / (time.perf_counter() - start)


def in_turns(measure: Callable[[str], list[float]], places: dict[str, str]) -> dict[str, list[float]]:
    """All samples of each place, the places taking turns."""
    found: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(ROUNDS):
        for name, address in places.items():
            found[name] += measure(address)
    return found


async def transport_rows(stack: AsyncExitStack) -> list[Row]:
    """Connect + first byte, round trip and throughput, through a route and without a mesh."""
    both = await mesh(stack)
    places = {"route": both.vip, "plain": both.backend}
    each = CONNECTS // ROUNDS
    connects = await asyncio.to_thread(in_turns, lambda place: [connect_us(place) for _ in range(each)], places)
    trips = await asyncio.to_thread(in_turns, lambda place: round_trips_us(place, 1000), places)
    speeds = await asyncio.to_thread(in_turns, lambda place: [gigabits(place)], places)
    rows = []
    for name, samples in (("connect_first_byte_us", connects), ("round_trip_us", trips)):
        for point in (50, 99):
            cut = {place: statistics.quantiles(values, n=100)[point - 1] for place, values in samples.items()}
            rows.append(row(f"{name}_p{point}", cut["route"], cut["plain"]))
    medians = {place: statistics.median(values) for place, values in speeds.items()}
    return [*rows, row("throughput_gbit_s", medians["route"], medians["plain"])]


async def push_rows(stack: AsyncExitStack) -> list[Row]:
    """Push → ACK of an endpoint change, and what a leader change does to a held connection."""
    both = await mesh(stack)
    here = Endpoint(address=both.address, port=INGRESS_PORT)
    acks, closes, again = [], [], []
    for n in range(PUSHES):
        extra = here._replace(port=1 + n % 2)
        start = time.perf_counter()
        await both.caller.apply(both.egress(both.route(endpoints=(here, extra))))
        acks.append(1000 * (time.perf_counter() - start))
    await both.caller.apply(both.egress())
    for n in range(PUSHES // 2):
        reader, writer = await both.dial()
        writer.write(b"e")
        await reader.readexactly(1)
        start = time.perf_counter()
        both.caller.publish(both.egress(both.route(generation=str(n))))
        await reader.read()
        closes.append(1000 * (time.perf_counter() - start))
        writer.close()
        await both.ask(b"e")
        again.append(1000 * (time.perf_counter() - start))
    rows = []
    for name, values in (("eds_push_to_ack_ms", acks), ("held_closed_ms", closes), ("reconnected_ms", again)):
        cuts = statistics.quantiles(values, n=100)
        rows += [row(f"{name}_p50", cuts[49]), row(f"{name}_p99", cuts[98])]
    return rows


async def main() -> None:
    """Prints the rows."""
    rows = build_rows()
    async with AsyncExitStack() as stack:
        rows += await push_rows(stack)
        rows += await transport_rows(stack)
    print(json.dumps([asdict(one) for one in rows], indent=1))


if __name__ == "__main__":
    asyncio.run(main())
