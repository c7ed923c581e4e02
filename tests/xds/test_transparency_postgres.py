"""PostgreSQL's own programs through a route and without one: psql, COPY both ways, pg_dump, cancel, TLS inside."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from tests.workloads.postgres import Server, postgres
from tests.xds.mesh import PORT, Pair, pair
from tests.xds.pki import Authority
from tests.xds.test_transparency_programs import program, run
from xds.spec import Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROWS = 60_000
"""Rows that are copied: 4 MB."""
TABLE = f"SELECT n, md5(n::text), md5((n + 1)::text) FROM generate_series(1, {ROWS}) n"
Place = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A PostgreSQL that trusts everybody and speaks TLS; `places`: where it is, and the route to it."""

    places: tuple[Place, Place]
    roots_pem: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """A database, and a route to it."""
    folder = tmp_path_factory.mktemp("postgres")
    with postgres(folder) as server:
        async with pair() as both:
            await asyncio.to_thread(_prepare, folder, server, both)
            spec = both.ingress()
            target = replace(spec.ingress[0], target=Endpoint(address="127.0.0.1", port=server.port))
            await both.callee.apply(replace(spec, ingress=(target,)))
            row = 0
            async with asyncio.timeout(60):
                # A worker may lead one more connection to the old target.
                while row < 8:
                    row = row + 1 if await asyncio.to_thread(_serves, (both.vip, PORT)) else 0
            yield Database(places=(("127.0.0.1", server.port), (both.vip, PORT)), roots_pem=both.authority.pem)


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


async def test_copy_and_pg_dump_are_whole_plain_and_in_tls(database: Database) -> None:
    """COPY out and in, and a dump, give the same bytes through the route, in PostgreSQL's own TLS and without."""
    psql, pg_dump = program("psql"), program("pg_dump")
    digests, dumps = set(), set()
    for mode in ("disable", "require"):
        for place in database.places:
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


async def test_a_query_is_cancelled_through_a_route(database: Database) -> None:
    """A cancel request is a connection of its own that the server closes without a word; the query ends by it."""
    for host, port in database.places:
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


async def test_postgresql_tls_inside_a_route_shows_the_servers_own_certificate(
    database: Database, tmp_path: Path
) -> None:
    """The client verifies the database's certificate, not the mesh's."""
    roots, others = tmp_path / "roots.pem", tmp_path / "others.pem"
    roots.write_text(database.roots_pem)
    others.write_text(Authority().pem)
    for host, port in database.places:
        assert await asyncio.to_thread(_version, host, port, roots) == "TLSv1.3"
        with pytest.raises(psycopg.OperationalError, match="SSL error"):
            await asyncio.to_thread(_version, host, port, others)


def _version(host: str, port: int, roots: Path) -> str:
    with psycopg.connect(
        host=host, port=port, user="postgres", sslmode="verify-ca", sslrootcert=str(roots)
    ) as connection:
        row = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert row is not None
        return str(row[0])
