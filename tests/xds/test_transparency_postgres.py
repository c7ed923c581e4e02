"""PostgreSQL's own programs through a route and without one: psql, COPY both ways, pg_dump, cancel, TLS inside."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.support import eventually
from tests.workloads.postgres import Server, postgres
from tests.xds.mesh import PORT, Pair, pair
from tests.xds.test_transparency_programs import program, run
from xds.spec import Endpoint

ROWS = 200_000
"""Rows that are copied: 17 MB."""
TABLE = f"SELECT n, md5(n::text), md5((n + 1)::text) FROM generate_series(1, {ROWS}) n"
Place = tuple[str, int]


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Pair, tuple[Place, Place]]]:
    """A route to a PostgreSQL that trusts everybody and speaks TLS, and both places where it is found."""
    with postgres(folder) as server:
        async with pair() as both:
            await asyncio.to_thread(_prepare, folder, server, both)
            spec = both.ingress()
            database = replace(spec.ingress[0], target=Endpoint(address="127.0.0.1", port=server.port))
            await both.callee.apply(replace(spec, ingress=(database,)))
            await eventually(lambda: _serves((both.vip, PORT)), "the route leads to PostgreSQL")
            yield both, (("127.0.0.1", server.port), (both.vip, PORT))


def _prepare(folder: Path, server: Server, both: Pair) -> None:
    leaf = both.authority.leaf("inner", "spiffe://inner/postgres")
    (folder / "data" / "server.crt").write_text(leaf.chain_pem)
    key = folder / "data" / "server.key"
    key.touch(mode=0o600)
    key.write_text(leaf.key_pem.reveal())
    with (folder / "data" / "pg_hba.conf").open("a", encoding="utf-8") as hba:
        hba.write("\nhost all all all trust\n")
    with psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", autocommit=True) as local:
        local.execute("ALTER SYSTEM SET ssl = on")
        local.execute("SELECT pg_reload_conf()")


def _serves(place: Place) -> bool:
    try:
        with psycopg.connect(host=place[0], port=place[1], user="postgres", sslmode="require", connect_timeout=10):
            return True
    except psycopg.OperationalError:
        return False


def _arguments(place: Place) -> tuple[str, ...]:
    return ("-h", place[0], "-p", str(place[1]), "-U", "postgres")


async def test_copy_and_pg_dump_are_whole_plain_and_in_tls(tmp_path: Path) -> None:
    """COPY out and in, and a dump, give the same bytes through the route, in PostgreSQL's own TLS and without."""
    psql, pg_dump = program("psql"), program("pg_dump")
    async with served(tmp_path) as (_, places):
        digests, dumps = set(), set()
        for mode in ("disable", "require"):
            for place in places:
                to, who = {"PGSSLMODE": mode}, _arguments(place)
                code, rows = await run(psql, *who, "-qAtc", f"COPY ({TABLE}) TO STDOUT", **to)
                assert code == 0, rows
                digests.add(hashlib.sha256(rows).hexdigest())
                for make in ("DROP TABLE IF EXISTS t", "CREATE TABLE t (n int, a text, b text)"):
                    assert (await run(psql, *who, "-qc", make, **to))[0] == 0
                assert await run(psql, *who, "-qc", "COPY t FROM STDIN", data=rows, **to) == (0, b"")
                code, dump = await run(pg_dump, *who, "-t", "t", **to)
                assert code == 0, dump
                assert rows in dump
                # Newer releases begin a dump with a random word, by which psql knows its own commands in it.
                dumps.add(b"".join(line for line in dump.splitlines(True) if not line.startswith(b"\\")))
        assert (len(digests), len(dumps)) == (1, 1)


async def test_a_query_is_cancelled_through_a_route(tmp_path: Path) -> None:
    """A cancel request is a connection of its own that the server closes without a word; the query ends by it."""
    async with served(tmp_path) as (_, places):
        for host, port in places:
            await asyncio.to_thread(_cancel, host, port)


def _cancel(host: str, port: int) -> None:
    with psycopg.connect(host=host, port=port, user="postgres", autocommit=True) as connection:
        # Asked again and again, for one that comes before the query does nothing.
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.2):
                connection.cancel()

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT pg_sleep(100)")
        finally:
            over.set()
            thread.join()


async def test_postgresql_tls_inside_a_route_shows_the_servers_own_certificate(tmp_path: Path) -> None:
    """The client verifies the database's certificate, not the mesh's."""
    async with served(tmp_path) as (both, places):
        roots = tmp_path / "roots.pem"
        roots.write_text(both.authority.pem)
        for host, port in places:
            assert await asyncio.to_thread(_version, host, port, str(roots)) == "TLSv1.3"
            with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
                await asyncio.to_thread(_version, host, port, ssl.get_default_verify_paths().openssl_cafile)


def _version(host: str, port: int, roots: str) -> str:
    with psycopg.connect(host=host, port=port, user="postgres", sslmode="verify-ca", sslrootcert=roots) as connection:
        row = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert row is not None
        return str(row[0])
