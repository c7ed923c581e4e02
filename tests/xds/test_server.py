"""The gRPC edge with a real Envoy, and with clients that misbehave."""

from __future__ import annotations

import asyncio
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from tests.support import eventually
from tests.xds.mesh import PORT, Pair, loopback, pair
from xds import wire
from xds.requests import DeltaDiscoveryRequest
from xds.server import XdsServer
from xds.snapshot import CLUSTER, LISTENER, TYPES, Resource, Snapshot, build
from xds.spec import Spec

EMPTY = build(Spec(egress=(), ingress=(), leaves=(), roots_pem=""))


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[XdsServer, Path]]:
    """A server without Envoy."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        path = Path(name) / "xds.sock"
        server = XdsServer(path)
        await server.start()
        try:
            yield server, path
        finally:
            await server.stop()


async def test_an_updated_cluster_does_not_stall() -> None:
    """Its endpoints come after it, so it is live in a moment and not after Envoy's 15 s; connections come through
    meanwhile."""
    async with pair() as both:
        for san in ("spiffe://test/callee", "spiffe://test/other", "spiffe://test/callee"):
            await both.caller.apply(both.egress(both.route(peer_sans=(san, "spiffe://test/second"))), seconds=5)
            assert await both.caller.stat("cluster_manager.warming_clusters") == 0
        await both.settles_on(b"ping")


async def test_a_restarted_server_finds_envoy_again_and_removes_what_is_not_wanted() -> None:
    """Held connections do not notice; the new stream brings differences and removals within the back-off's half
    second."""
    async with pair() as both:
        extra = both.route(name="extra", vip=loopback())
        await both.caller.apply(both.egress(both.route(), extra))
        reader, writer = await both.dial()
        await both.caller.server.stop()
        assert both.caller.server.status().connected is False
        assert await both.ask() == b"ping", "envoy goes on without its control plane"
        both.caller.server = XdsServer(both.caller.socket)
        await both.caller.server.start()
        await both.caller.apply(both.egress(), seconds=5)
        assert "egress/extra" not in await both.caller.get("/clusters")
        assert extra.vip not in await both.caller.get("/listeners")
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        writer.transport.abort()


async def test_a_rejection_is_shown_the_rest_is_applied_and_a_retry_heals_it() -> None:
    """A VIP whose port is taken costs that route only; once the port is free a retry brings it up."""
    async with pair() as both:
        taken = both.route(name="taken", vip=loopback())
        good = both.route(name="good", vip=loopback())
        with socket.create_server((taken.vip, PORT)):
            both.caller.publish(both.egress(both.route(), taken, good))
            await eventually(lambda: bool(both.caller.server.status().nacks), "the rejection is shown")
            (nack,) = both.caller.server.status().nacks
            assert nack.type_url == LISTENER
            assert nack.names == (f"egress/{taken.vip}:{PORT}",)
            assert await both.ask() == b"ping"
            _, writer = await asyncio.open_connection(good.vip, PORT)
            writer.transport.abort()
            with pytest.raises(TimeoutError, match="cannot bind"):
                await both.caller.server.wait_acked(both.caller.server.status().version or "", 0.3)
        both.caller.server.retry()
        await both.caller.server.wait_acked(both.caller.server.status().version or "", 5)
        assert both.caller.server.status().nacks == ()


async def test_a_bad_leaf_is_rejected_and_the_last_good_one_serves_on() -> None:
    """A key that does not fit its certificate reaches nobody's connection."""
    async with pair() as both:
        good = both.caller_leaf
        both.caller_leaf = replace(good, key_pem=both.authority.leaf("x", "spiffe://test/x").key_pem)
        both.caller.publish(both.egress())
        await eventually(lambda: bool(both.caller.server.status().nacks), "the rejection is shown")
        assert await both.ask() == b"ping"
        assert "PRIVATE KEY" not in str(both.caller.server.status())
        both.caller_leaf = both.authority.leaf("caller", "spiffe://test/caller")
        await both.caller.apply(both.egress())
        await both.settles_on(b"ping")


async def test_a_killed_envoy_is_configured_anew() -> None:
    """The successor gets everything by itself, and counts as acknowledged only when it has it."""
    async with pair() as both:
        opened: list[str | None] = []
        both.caller.server.on_stream = lambda: opened.append(both.caller.server.status().acked_version)
        await both.caller.kill()
        await eventually(lambda: not both.caller.server.status().connected, "the stream has ended")
        assert both.caller.server.status().acked_version is None
        await both.caller.exec()
        await eventually(lambda: both.caller.server.status().acked_version is not None, "the new Envoy is configured")
        assert opened[:1] == [None]
        await both.listening()
        await both.settles_on(b"ping")


async def test_many_routes_arrive_in_one_go() -> None:
    """200 routes, more than one flow-control window of listeners, are live after one publish."""
    async with pair() as both:
        routes = [both.route(name=f"r{n}", vip="127.63.0.1", port=20000 + n) for n in range(200)]
        await both.caller.apply(both.egress(both.route(), *routes), seconds=20)
        await both.caller.counted("listener_manager.total_listeners_active", 201)


async def test_the_socket_is_private_and_goes_away() -> None:
    """0600 while it serves, gone afterwards; a socket left by a dead process is no obstacle."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        path = Path(name) / "xds.sock"
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(path))
        left.close()
        server = XdsServer(path)
        await server.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await server.stop()
        assert not path.exists()


async def test_a_socket_that_cannot_be_is_one_clear_error() -> None:
    """A missing directory and a path that is too long are named."""
    with pytest.raises(OSError, match="/nonexistent/"):
        await XdsServer(Path("/nonexistent/x.sock")).start()
    with pytest.raises(OSError, match="107 bytes"):
        await XdsServer(Path("/" + "x" * 200)).start()


async def test_waiting_for_a_version_that_was_never_published_is_an_error() -> None:
    """It would never come."""
    server = XdsServer(Path("/unused"))
    with pytest.raises(ValueError, match="'nope'"):
        await server.wait_acked("nope", 1)


async def test_garbage_ends_the_stream_with_a_status_and_harms_no_other() -> None:
    """A request that is none is the client's fault."""
    async with serving() as (server, path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        server.publish(EMPTY)
        call = channel.stream_stream(f"/{wire.SERVICE}/{wire.METHOD}")()
        await call.write(b"\x0a\xff")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: not server.status().connected, "the stream has ended")


async def test_a_client_that_does_not_read_blocks_nobody() -> None:
    """Two streams; one takes nothing. The other still gets each snapshot, and `publish` never waits."""
    async with serving() as (server, path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        request = bytes(DeltaDiscoveryRequest(type_url=LISTENER))
        method = channel.stream_stream(f"/{wire.SERVICE}/{wire.METHOD}")
        stuck, lively = method(), method()
        await stuck.write(request)
        await lively.write(request)
        with tempfile.TemporaryDirectory() as name:
            both = Pair(Path(name))
        for n in range(3):
            server.publish(build(both.egress(both.route(port=1000 + n))))
            async with asyncio.timeout(5):
                assert await lively.read()
        stuck.cancel()
        lively.cancel()


async def test_a_client_that_stops_asking_in_the_middle_of_a_response_is_done() -> None:
    """It takes nothing more and has said its last: the stream ends, and holds nobody up."""
    async with serving() as (server, path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        resource = Resource(name="a", version="1", body=bytes(8 << 20))
        found = {**{type_url: {} for type_url in TYPES}, CLUSTER: {"a": resource}}
        server.publish(Snapshot(version="1", resources=found, entries={}))
        call = channel.stream_stream(f"/{wire.SERVICE}/{wire.METHOD}")()
        await call.write(bytes(DeltaDiscoveryRequest(type_url=CLUSTER)))
        await eventually(lambda: server.status().connected, "the stream is open")
        await call.done_writing()
        await eventually(lambda: not server.status().connected, "the stream has ended")
        call.cancel()


async def test_stop_ends_open_streams() -> None:
    """Envoy sees the end at once and reconnects later."""
    async with serving() as (server, path), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(f"/{wire.SERVICE}/{wire.METHOD}")()
        await call.write(b"")
        await eventually(lambda: server.status().connected, "the stream is open")
        async with asyncio.timeout(5):
            await server.stop()
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
