"""Where a connection of the mesh comes from, as the local server sees it. Two real Envoys back to back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.workloads.postgres import Server, postgres
from tests.xds.mesh import INGRESS_PORT, PORT, Pair, closing, pair
from xds.spec import Endpoint

MANY = 2000
"""Connections at once."""
ONE_AFTER_ANOTHER = 30_000
"""More than there are ephemeral ports (28,232), each closed by its server first, which leaves it in TIME_WAIT."""
PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


async def says_who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers whom it talks to."""
    with contextlib.suppress(ConnectionError):
        await reader.read(1)
        writer.write(writer.get_extra_info("peername")[0].encode())
        await writer.drain()
    writer.close()


async def test_a_caller_through_the_mesh_is_not_localhost() -> None:
    """The local server sees the ingress's own source address."""
    async with pair(serve=says_who) as both:
        reader, writer = await both.dial()
        with closing(writer):
            writer.write(b"?")
            assert (await reader.read()).decode() == both.source


async def test_a_server_that_asks_for_the_proxy_protocol_is_told_the_callers_address() -> None:
    """A PROXY protocol v2 header comes first, with the address from which the caller's Envoy came and the ingress's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            # A worker may lead one connection more there without a header.
            if await reader.readexactly(12) == PROXY_V2:
                command, family, length = struct.unpack("!BBH", await reader.readexactly(4))
                source, target, _, port = struct.unpack("!4s4sHH", (await reader.readexactly(length))[:12])
                said = f"{command:x} {family:x} {socket.inet_ntoa(source)} {socket.inet_ntoa(target)} {port} "
                writer.write(said.encode() + await reader.read())
                writer.write_eof()
                await writer.drain()
                await reader.read()

    async with pair(serve=serve) as both:
        spec = both.ingress()
        told = replace(spec.ingress[0], proxy_protocol=True)
        await both.callee.apply(replace(spec, ingress=(told,)))
        expected = f"21 11 127.0.0.1 {both.address} {INGRESS_PORT} ping"
        async with asyncio.timeout(20):
            answer = ""
            while answer != expected:
                reader, writer = await both.dial()
                with closing(writer), contextlib.suppress(ConnectionError):
                    writer.write(b"ping")
                    writer.write_eof()
                    answer = (await reader.read()).decode()


async def test_many_connections_at_once_find_a_port() -> None:
    """All come from one address to one port, and each has a port of its own."""
    async with pair() as both:
        held = []
        try:
            for _ in range(MANY):
                held.append(await both.dial())
                held[-1][1].write(b"ping")
            for reader, _ in held:
                async with asyncio.timeout(20):
                    assert await reader.readexactly(4) == b"ping"
        finally:
            for _, writer in held:
                writer.transport.abort()
        assert await both.callee.stat("cluster.local/worker.bind_errors") == 0


async def test_more_connections_than_ports_one_after_another_find_a_port() -> None:
    """Linux uses a loopback port that is in TIME_WAIT again (`tcp_tw_reuse` 2, the default), for those who leave the
    choice to connect(2), as Envoy does: 30,000 connections that their server closed first are no obstacle."""
    async with pair() as both:
        spec = both.ingress()
        moved = replace(spec.ingress[0], target=Endpoint(address=both.backend, port=1))
        with socket.create_server((both.backend, 1), backlog=512) as server:
            await asyncio.to_thread(_wear_out, server, both.source, both.backend)
            await both.callee.apply(replace(spec, ingress=(moved,)))
            accepted = asyncio.to_thread(_answer, server, 50)
            answers, _ = await asyncio.gather(_ask_all(both, 50), accepted)
        assert answers == [b"pong"] * 50


def _wear_out(server: socket.socket, source: str, target: str) -> None:
    """Connections from `source`, bound as Envoy binds them, that the server closes first."""
    bind_no_port = 24  # IP_BIND_ADDRESS_NO_PORT, linux/in.h
    for _ in range(ONE_AFTER_ANOTHER):
        with socket.socket() as client:
            client.setsockopt(socket.IPPROTO_IP, bind_no_port, 1)
            client.bind((source, 0))
            client.connect((target, 1))
            server.accept()[0].close()
            assert client.recv(1) == b""


def _answer(server: socket.socket, count: int) -> None:
    for _ in range(count):
        connection, _ = server.accept()
        with connection:
            connection.recv(4)
            connection.sendall(b"pong")


async def _ask_all(both: Pair, count: int) -> list[bytes]:
    # A worker may lead one more connection to the old target, which echoes.
    answers = [await both.ask() for _ in range(count)]
    while answers.count(b"pong") < count:
        answers = [*(answer for answer in answers if answer == b"pong"), await both.ask()]
    return answers


@contextlib.asynccontextmanager
async def as_the_official_image(folder: Path) -> AsyncIterator[Server]:
    """PostgreSQL with the pg_hba.conf that its official image writes: trust on this machine, a password from elsewhere
    (docker-library/postgres, docker-entrypoint.sh, `pg_setup_hba_conf`)."""
    with postgres(folder) as server:
        with (folder / "data" / "pg_hba.conf").open("a", encoding="utf-8") as hba:
            hba.write("\nhost all all all scram-sha-256\n")
        with psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", autocommit=True) as local:
            local.execute("ALTER ROLE postgres PASSWORD 'right'")
            local.execute("SELECT pg_reload_conf()")
        yield server


async def test_postgresql_asks_a_caller_from_another_cvm_for_the_password(tmp_path: Path) -> None:
    """What trusts programs of its own machine does not trust the mesh."""
    async with pair() as both, as_the_official_image(tmp_path) as server:
        spec = both.ingress()
        database = replace(spec.ingress[0], target=Endpoint(address="127.0.0.1", port=server.port))
        await both.callee.apply(replace(spec, ingress=(database,)))

        def ask(host: str, port: int, password: str | None = None) -> str:
            with psycopg.connect(
                host=host, port=port, user="postgres", password=password, connect_timeout=10
            ) as connection:
                row = connection.execute("SELECT host(inet_client_addr())").fetchone()
                assert row is not None
                return str(row[0])

        assert await asyncio.to_thread(ask, "127.0.0.1", server.port) == "127.0.0.1"
        for password in (None, "wrong"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                await asyncio.to_thread(ask, both.vip, PORT, password)
        assert await asyncio.to_thread(ask, both.vip, PORT, "right") == both.source
