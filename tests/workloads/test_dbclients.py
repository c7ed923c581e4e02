"""Writers, readers and held connections on a real PostgreSQL that dies under them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.workloads.postgres import Server, postgres
from workloads.dbclients import CREATE, Client, Holder, Reader, Target, Writer, connect


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the table; each test leaves it running."""
    with postgres(tmp_path_factory.mktemp("pg")) as running:
        with connect(target(running)) as connection:
            connection.execute(CREATE)
        yield running


def target(server: Server) -> Target:
    """Where clients log in."""
    return Target(**server.target)  # type: ignore[arg-type]


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Waits, bounded."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def ended(client: Client) -> None:
    """Stops a client and sees that it has."""
    client.stop()
    client.wait(10)
    assert not client.is_alive()


def test_writer_notes_each_acknowledged_row_and_who_said_so(server: Server) -> None:
    """What it was told is what the database has, with the server's name, its timeline, and times in order."""
    writer = Writer(target(server), "plain", 3, 0.001)
    writer.start()
    until(lambda: len(writer.acks) >= 20, "20 rows")
    ended(writer)
    with connect(target(server)) as connection:
        rows = connection.execute("SELECT writer, seq FROM chaos_rows WHERE run = 'plain' ORDER BY seq").fetchall()
    assert rows == [(3, ack.seq) for ack in writer.acks]
    assert {(ack.timeline, ack.peer) for ack in writer.acks} == {(1, "postgres-7")}
    assert all(ack.start <= ack.end for ack in writer.acks)
    assert (writer.unknown, writer.failures) == ([], [])


def test_clients_come_back_after_the_death_of_their_server(server: Server) -> None:
    """SIGKILL of the server: failures are noted, no number is used twice, and work goes on once there is one again."""
    writer, reader = Writer(target(server), "killed", 0, 0.001), Reader(target(server), 0.001)
    for client in (writer, reader):
        client.start()
    until(lambda: len(writer.acks) >= 5 and len(reader.reads) >= 5, "both work")
    server.kill()
    until(lambda: bool(writer.failures and reader.failures), "both have noticed")
    told, read = len(writer.acks), len(reader.reads)
    server.start()
    until(lambda: len(writer.acks) >= told + 5 and len(reader.reads) >= read + 5, "both work again")
    for client in (writer, reader):
        ended(client)
    numbers = [ack.seq for ack in writer.acks]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & set(writer.unknown)
    assert reader.reads[-1][1:] == (False, "postgres-7")


def test_held_connections_tell_when_they_were_closed(server: Server) -> None:
    """Idle or talking, the moment of the close is noted; closing by ourselves is none."""
    holder = Holder(target(server), 0.002)
    assert {name: state["peer"] for name, state in holder.state().items()} == {
        "idle": "postgres-7",
        "talking": "postgres-7",
    }
    assert all(state["closed"] is None for state in holder.state().values())
    at = time.monotonic()
    server.kill()
    until(lambda: all(state["closed"] for state in holder.state().values()), "both are closed")
    assert all(state["closed"] >= at for state in holder.state().values())
    holder.stop()
    server.start()
    second = Holder(target(server), 0.002)
    second.stop()
    assert all(state["closed"] is None for state in second.state().values())


def test_a_statement_that_takes_too_long_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose answer never comes hangs up, counts the row as unknown, and goes on with a new connection."""
    from workloads import dbclients

    with connect(target(server)) as blocker, connect(target(server)) as other:
        blocker.execute("BEGIN; LOCK TABLE chaos_rows IN EXCLUSIVE MODE")
        writer = Writer(target(server), "slow", 0, 0.001)
        writer.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: bool(other.execute(waiting).fetchone()[0]), "the writer waits")  # type: ignore[index]
        writer.check()
        assert writer.failures == []
        monkeypatch.setattr(dbclients, "PATIENCE_SECONDS", 0.0)
        writer.check()
        until(lambda: writer.unknown == [1], "it has given up")
        monkeypatch.undo()
        blocker.execute("ROLLBACK")
        until(lambda: bool(writer.acks), "it goes on")
        ended(writer)


def test_nobody_there_is_a_failure_and_no_end(server: Server) -> None:
    """A port without a listener: the client tries again until it is stopped."""
    nowhere = Target(host="127.0.0.1", port=1, user="x", database="x", password_file="")
    writer = Writer(nowhere, "none", 0, 0.001)
    writer.start()
    until(lambda: len(writer.failures) >= 3, "three attempts")
    ended(writer)
    assert writer.acks == []
    lost = Target(host="127.0.0.1", port=server.port, user="x", database="x", password_file="/nonexistent")
    with pytest.raises(FileNotFoundError):
        connect(lost)
