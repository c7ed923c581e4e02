"""Two real Envoys back to back: what a client of a VIP sees, and what cuts it (rule 20: convergence).

Long because it is a list: each way to change or lose a listener is a case of its own, on one pair of Envoys.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from runtime.tasks import TaskScope
from tests.support import eventually
from tests.xds.mesh import CALLEE, CALLER, INGRESS_PORT, PORT, Handler, Pair, closing, echo, loopback, pair
from xds.spec import Endpoint, Principal, Sole, Spec
from xds.transport import caller_name

OTHER = Principal(uri="spiffe://test/other")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def says(stream: Stream, data: bytes = b"hello") -> bool:
    """True if the echo answers on `stream`; False if it was closed."""
    reader, writer = stream
    try:
        async with asyncio.timeout(5):
            writer.write(data)
            return await reader.readexactly(len(data)) == data
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


async def closed(stream: Stream, seconds: float = 5.0) -> None:
    """Returns once the other side closed `stream`, which is idle."""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionError):
            assert await stream[0].read() == b""


@contextlib.asynccontextmanager
async def held(
    both: Pair, count: int = 4, *, dial: Callable[[], Awaitable[Stream]] | None = None
) -> AsyncIterator[list[Stream]]:
    """Connections that work, enough to be on both of Envoy's workers."""
    streams = [await (dial or both.dial)() for _ in range(count)]
    try:
        for stream in streams:
            assert await says(stream)
        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def third_party(both: Pair) -> AsyncIterator[Callable[[], Awaitable[Stream]]]:
    """The same route for the caller OTHER, which has a leaf and a VIP of its own in the caller's Envoy."""
    leaf, vip = both.authority.leaf("other", OTHER.uri), loopback()
    more = both.egress(both.route(), both.route(name="other", vip=vip, identity="other"))
    await both.callee.apply(both.ingress(Principal(uri=CALLER), OTHER))
    await both.caller.apply(replace(more, leaves=(*more.leaves, leaf)))

    async def dial() -> Stream:
        return await asyncio.open_connection(vip, PORT)

    for _ in range(500):
        with contextlib.suppress(ConnectionError):
            _, writer = await dial()
            writer.transport.abort()
            break
        await asyncio.sleep(0.01)
    yield dial


async def test_first_byte_through_the_vip() -> None:
    """A connection to the VIP reaches the backend behind the other Envoy, and nothing was rejected."""
    async with pair() as both:
        assert await both.ask(b"ping") == b"ping"
        assert both.caller.server.status().nacks == ()
        assert both.callee.server.status().nacks == ()


async def test_a_server_with_another_identity_is_refused() -> None:
    """The route requires its own service's SAN, exactly; a valid certificate of someone else is no server."""
    async with pair() as both:
        for san in ("spiffe://test/other", CALLEE[:-1], CALLEE + "/x"):
            await both.caller.apply(both.egress(both.route(peer_sans=(san,))))
            await both.settles_on(b"")
        await both.caller.counted("cluster.egress/worker.ssl.fail_verify_san")


async def test_a_caller_without_certificate_is_refused() -> None:
    """The ingress ends a handshake that brings no client certificate."""
    async with pair() as both:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        # In TLS 1.3 the client's own handshake is done before the server refuses: the alert comes with the first read.
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            reader, writer = await asyncio.open_connection(
                both.address, INGRESS_PORT, ssl=context, server_hostname=caller_name(CALLER)
            )
            with closing(writer):
                assert await reader.read() == b""
        await both.callee.counted("listener.*ssl.fail_verify_no_cert")


async def test_tls_below_1_3_is_refused() -> None:
    """There is one version."""
    async with pair() as both:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(both.address, INGRESS_PORT, ssl=context)


async def test_a_caller_of_another_root_is_refused() -> None:
    """A certificate with the right name from the wrong authority opens nothing."""
    async with pair() as both:
        stranger = type(both.authority)()
        both.caller_leaf = stranger.leaf("caller", CALLER)
        await both.caller.apply(both.egress(both.route(generation="2")))
        await both.caller.kill()
        await both.caller.exec()
        await eventually(lambda: both.caller.server.status().acked_version is not None, "the new Envoy is configured")
        await both.listening()
        await both.settles_on(b"")


async def test_the_backend_does_not_hear_of_a_caller_that_is_not_allowed() -> None:
    """The certificate is judged before the backend is dialled: there is not even a connection, and a server that speaks
    first tells a stranger nothing."""
    seen = 0

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        writer.write(b"220 hello")
        await echo(reader, writer)

    async with pair(serve=greet) as both:
        assert await both.ask(b"ping" + b"12345") == b"220 hello"
        await both.callee.apply(both.ingress(OTHER))
        await both.settles_on(b"")
        seen = 0
        await both.settles_on(b"")
        assert seen == 0
        await both.callee.apply(both.ingress())
        await both.settles_on(b"220 ")


async def test_a_caller_that_announces_itself_as_another_is_refused() -> None:
    """The announced name only chooses the filter chain: its TLS context demands the certificate of that caller."""
    async with pair() as both:
        await both.callee.apply(both.ingress(OTHER, Principal(uri="spiffe://test/third")))
        both.caller_leaf = replace(both.caller_leaf, uri=OTHER.uri)
        await both.caller.apply(both.egress())
        await both.settles_on(b"")
        await both.callee.counted("listener.*ssl.fail_verify_san")


async def test_a_missing_list_lets_nobody_in_and_the_first_caller_is_let_in_at_once() -> None:
    """An ingress without callers closes every connection, whatever name it announces."""
    async with pair() as both:
        nobody = replace(both.ingress(), ingress=(replace(both.ingress().ingress[0], allowed=()),))
        await both.callee.apply(nobody)
        await both.settles_on(b"")
        await both.callee.apply(both.ingress())
        await both.settles_on(b"ping")


async def test_an_address_that_is_denied_gets_nothing_with_a_good_certificate() -> None:
    """Whoever else calls goes on."""
    async with pair() as both:
        open_to_all = both.ingress()
        await both.callee.apply(open_to_all)
        await both.settles_on(b"ping")
        here, elsewhere = "127.0.0.1", "100.96.0.77"
        for denied, answer in (((elsewhere,), b"ping"), ((elsewhere, here), b""), ((), b"ping")):
            entry = replace(open_to_all.ingress[0], denied=denied)
            await both.callee.apply(replace(open_to_all, ingress=(entry,)))
            await both.settles_on(answer)


async def test_allowing_a_caller_cuts_nobody_and_revoking_one_cuts_what_it_holds_and_nothing_else() -> None:
    """Each caller has a filter chain of its own; a revoked one is refused at once, with the sessions that it kept."""
    async with pair() as both, third_party(both) as other:
        both_callers = both.ingress(Principal(uri=CALLER), OTHER)
        await both.callee.apply(both_callers)
        async with held(both) as streams, held(both, dial=other) as others:
            await both.callee.apply(both.ingress(Principal(uri=CALLER), OTHER, Principal(uri="spiffe://test/third")))
            assert all([await says(stream) for stream in (*streams, *others)])
            await both.callee.apply(both.ingress(OTHER, Principal(uri="spiffe://test/third")))
            for stream in streams:
                await closed(stream)
            assert all([await says(stream) for stream in others])
        await both.settles_on(b"")
        await both.callee.apply(both_callers)
        await both.settles_on(b"ping")


async def test_sessions_are_resumed_also_by_many_connections_at_once() -> None:
    """Opening a connection costs no signature as a rule, and a rotated leaf costs one full handshake a session."""
    reused, made = "cluster.egress/worker.ssl.session_reused", "cluster.egress/worker.ssl.handshake"
    async with pair() as both:
        async with held(both, 40):
            pass
        before = await both.caller.stat(reused), await both.caller.stat(made)
        for _ in range(5):
            assert await asyncio.gather(*(both.ask() for _ in range(8))) == [b"ping"] * 8
        resumed, all_made = (await both.caller.stat(reused) - before[0], await both.caller.stat(made) - before[1])
        assert (resumed, all_made) == (40, 40)


async def test_key_exchange_is_hybrid_also_where_a_session_is_resumed() -> None:
    """What is recorded of a connection cannot be read later with a quantum computer."""
    hybrid, made = "cluster.egress/worker.ssl.curves.X25519MLKEM768", "cluster.egress/worker.ssl.handshake"
    async with pair() as both:
        for _ in range(4):
            assert await both.ask() == b"ping"
        await both.caller.counted(made, 4)
        assert await both.caller.stat(hybrid) == await both.caller.stat(made)


async def test_sessions_of_two_endpoints_are_kept_together() -> None:
    """Every connection is served, and not all are resumed: Envoy offers one endpoint the sessions of the other
    (envoyproxy/envoy#33512). All resumed: Envoy keeps them apart now, and docs/xds.md has to say so.
    """
    reused = "cluster.egress/worker.ssl.session_reused"
    async with pair() as both:
        first = both.ingress()
        other = replace(first.ingress[0], name="other", address=loopback())
        await both.callee.apply(replace(first, ingress=(*first.ingress, other)))
        endpoints = tuple(Endpoint(address=place, port=INGRESS_PORT) for place in (both.address, other.address))
        await both.caller.apply(both.egress(both.route(endpoints=endpoints)))
        await both.settles_on(b"ping")
        before = await both.caller.stat(reused)
        for _ in range(40):
            assert await both.ask() == b"ping"
        assert await both.caller.stat(reused) - before < 40


async def test_benign_changes_cut_nothing() -> None:
    """Endpoints added and removed, leaves rotated on both sides, a root added, another route added: held connections
    go on."""
    async with pair() as both, held(both) as streams:
        here = Endpoint(address=both.address, port=INGRESS_PORT)
        more = both.route(endpoints=(here, Endpoint(address=loopback(), port=INGRESS_PORT)))
        await both.caller.apply(both.egress(more))
        await both.caller.apply(both.egress())
        await both.caller.apply(both.egress(both.route(endpoints=())))
        await both.caller.apply(both.egress(both.route(), both.route(name="more", vip=loopback())))
        both.caller_leaf = both.authority.leaf("caller", CALLER)
        both.callee_leaf = both.authority.leaf("callee", CALLEE)
        await both.caller.apply(both.egress())
        await both.callee.apply(both.ingress())
        assert all([await says(stream) for stream in streams])
        assert await both.ask() == b"ping"


async def test_a_new_generation_closes_idle_and_busy_connections_of_that_route_only() -> None:
    """The lever for a changed leader: every held connection ends at once, other routes' do not."""
    async with pair() as both:
        other = both.route(name="other", vip=loopback())
        await both.caller.apply(both.egress(both.route(), other))
        bystander = await asyncio.open_connection(other.vip, PORT)
        assert await says(bystander)
        async with held(both) as streams, asyncio.timeout(10), TaskScope() as scope:
            scope.start("busy client", _talk(streams[0]))
            await both.caller.apply(both.egress(both.route(generation="2"), other))
            for stream in streams[1:]:
                await closed(stream)
        assert await both.ask() == b"ping"
        assert await says(bystander)
        bystander[1].transport.abort()


def _answers(name: bytes) -> Handler:
    """A server that answers its own name to whatever it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(100):
                writer.write(name)
            writer.close()

    return serve


async def test_a_leader_change_closes_held_connections_and_no_new_one_reaches_the_old_leader() -> None:
    """The listener alone is told: held connections end, the next one is at the new leader, or at nobody where there is
    none, though all endpoints stay.
    """
    async with pair(serve=_answers(b"A")) as both:
        spec, other = both.ingress(), loopback()
        second = replace(spec.ingress[0], name="b", address=loopback(), target=Endpoint(address=other, port=PORT))
        await both.callee.apply(replace(spec, ingress=(*spec.ingress, second)))
        leaders = [Endpoint(address=address, port=INGRESS_PORT) for address in (both.address, second.address)]
        async with await asyncio.start_server(_answers(b"B"), other, PORT):  # type: ignore[arg-type]

            def leads(leader: Endpoint | None) -> Spec:
                return both.egress(both.route(endpoints=tuple(leaders), sole=Sole(endpoint=leader)))

            await both.caller.apply(leads(leaders[0]))
            for term in range(20):
                new = (term + 1) % 2
                reader, writer = await both.dial()
                with closing(writer):
                    writer.write(b"x")
                    assert await reader.readexactly(1) == b"AB"[1 - new : 2 - new]
                    vacant = term % 5 == 0
                    both.caller.publish(leads(None if vacant else leaders[new]))
                    await closed((reader, writer))
                if vacant:
                    assert await both.ask(b"x") == b""
                    both.caller.publish(leads(leaders[new]))
                    # Nothing held says when the workers have it.
                    await both.settles_on(b"AB"[new : new + 1], b"x")
                assert await both.ask(b"x") == b"AB"[new : new + 1]


async def _talk(stream: Stream) -> None:
    """Talks until the connection is closed."""
    going = True
    while going:
        going = await says(stream)


async def test_a_client_that_shut_down_its_side_gets_the_whole_answer() -> None:
    """Half-close passes through: the backend sees the end and still answers."""

    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        await asyncio.sleep(0.05)
        writer.write(hashlib.sha256(data).digest())
        await writer.drain()
        writer.close()

    async with pair(serve=digest) as both:
        reader, writer = await both.dial()
        with closing(writer):
            writer.write(b"x" * 100_000)
            writer.write_eof()
            async with asyncio.timeout(10):
                assert await reader.read() == hashlib.sha256(b"x" * 100_000).digest()


async def test_the_backends_close_and_reset_reach_the_client() -> None:
    """Whatever way the backend ends a connection, the client's read ends."""

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"R":
            writer.transport.abort()
        else:
            writer.close()

    async with pair(serve=end) as both:
        for how in (b"R", b"F"):
            stream = await both.dial()
            stream[1].write(how)
            await closed(stream)
            stream[1].transport.abort()


async def test_killing_the_other_envoy_closes_held_connections_and_its_return_serves_new_ones() -> None:
    """The client sees a close at once, not a hang; a restarted Envoy is configured by its server without help."""
    async with pair() as both:
        async with held(both) as streams:
            await both.callee.kill()
            for stream in streams:
                await closed(stream)
        await both.callee.exec()
        await eventually(lambda: both.callee.server.status().acked_version is not None, "the new Envoy is configured")
        await both.listening()
        assert await both.ask() == b"ping"


async def test_a_dead_endpoint_costs_a_retry_not_a_connection() -> None:
    """With one endpoint that refuses and one that works, every connection works, and the dead one is soon left out."""
    async with pair() as both:
        dead = Endpoint(address=loopback(), port=1)
        here = Endpoint(address=both.address, port=INGRESS_PORT)
        await both.caller.apply(both.egress(both.route(endpoints=(dead, here))))
        assert [await both.ask() for _ in range(12)] == [b"ping"] * 12


async def test_no_endpoint_closes_the_connection_at_once() -> None:
    """A route without endpoints refuses by closing, it does not hang."""
    async with pair() as both:
        await both.caller.apply(both.egress(both.route(endpoints=())))
        await both.settles_on(b"")


async def test_300_parallel_connections() -> None:
    """Limits that default to 100 or 1024 do not bite."""
    async with pair() as both, held(both, 300) as streams:
        answers = await asyncio.gather(*(says(stream, b"%08d" % n) for n, stream in enumerate(streams)))
        assert answers == [True] * 300


async def test_clients_that_do_not_read_hold_up_nobody_else() -> None:
    """Each has a connection of its own."""
    async with pair() as both:
        stuck = []
        try:
            for _ in range(40):
                reader, writer = await both.dial()
                writer.transport.pause_reading()
                writer.write(bytes(8 << 20))
                stuck.append((reader, writer))
            assert [await both.ask() for _ in range(8)] == [b"ping"] * 8
        finally:
            for _, writer in stuck:
                writer.transport.abort()


async def test_64_mib_arrive_whole() -> None:
    """Bulk data in both directions at once comes through unchanged."""
    async with pair() as both:
        block = os.urandom(1 << 20)
        sent, got = hashlib.sha256(), hashlib.sha256()
        reader, writer = await both.dial()

        async def push() -> None:
            for _ in range(64):
                sent.update(block)
                writer.write(block)
                await writer.drain()
            writer.write_eof()

        with closing(writer):
            async with asyncio.timeout(60), TaskScope() as scope:
                scope.start("push", push())
                while data := await reader.read(1 << 18):
                    got.update(data)
        assert got.digest() == sent.digest()


async def test_many_aborted_connections_do_not_harm_a_held_one() -> None:
    """Clients that reset their connections must cost nobody else anything."""
    async with pair() as both, held(both) as streams:
        for _ in range(1200):
            _, writer = await both.dial()
            writer.get_extra_info("socket").setsockopt(_SOL_SOCKET, _SO_LINGER, _RESET)
            writer.transport.abort()
        assert all([await says(stream) for stream in streams])


_SOL_SOCKET, _SO_LINGER = 1, 13
_RESET = (1).to_bytes(4, "little") + bytes(4)
