"""The commands of a member's container."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.workloads.patroni.test_asking import member as answering
from workloads.patroni import commands, config, standing
from workloads.patroni.commands import Member, NotThereError, losses
from workloads.patroni.election import Holding, Kind
from workloads.patroni.standing import Standing, State
from workloads.patroni.terms import Position


def standby(timeline: int, lsn: int, term: str = "") -> Holding:
    """One that has replayed up to there."""
    return Holding(kind=Kind.STANDBY, position=Position(timeline=timeline, lsn=lsn), term=term)


@pytest.fixture
def member(tmp_path: Path) -> Member:
    """A member whose Patroni does not run; port 1 of this machine: nobody listens there."""
    return Member(name="p0", run=tmp_path, rest="127.0.0.1:1", peers={"p0": ("127.0.0.1", 1), "p1": ("127.0.0.1", 1)})


def test_member_is_found_by_its_configuration(tmp_path: Path) -> None:
    """Name, REST interface and the list of members come from what the supervisor wrote."""
    with pytest.raises(NotThereError, match=r"^starting: the configuration is not written yet") as starting:
        commands.find({"POSTGRES_RUN": str(tmp_path)})
    assert "Error" not in str(starting.value)
    (tmp_path / "hosts").write_text("127.9.0.1 patroni-0\n127.9.0.2 patroni-1\n")
    tree = {"name": "db-1", "restapi": {"listen": "127.0.0.1:8008"},
            "mesh": {"hosts": str(tmp_path / "hosts"), "route": "patroni", "port": 8009}}  # fmt: skip
    (tmp_path / config.CONFIG).write_text(json.dumps(tree))
    found = commands.find({"POSTGRES_RUN": str(tmp_path)})
    assert found.peers == {"db-0": ("127.9.0.1", 8009), "db-1": ("127.9.0.2", 8009)}
    assert (found.name, found.rest) == ("db-1", "127.0.0.1:8008")


def test_silent_patroni_is_not_ready(member: Member) -> None:
    """Health is bad news while Patroni is away, and status says so in its first line."""
    ready, reason = commands.health(member)
    assert not ready
    assert "does not answer" in reason
    answers, lines = commands.status(member)
    assert not answers
    assert "not ready" in lines[0]
    assert lines[1:] == ["  p0: does not answer", "  p1: does not answer"]
    assert commands.status(member, own=True)[1][1:] == ["  does not answer"]


@pytest.mark.parametrize(
    ("answer", "times", "said"),
    [
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n{}", 1, "status code 502"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000, 1, "nested too deeply"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 1, "no HTTP"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", 2, "no list of members"),
    ],
)
def test_strange_answer_of_the_own_port_is_not_ready(tmp_path: Path, answer: bytes, times: int, said: str) -> None:
    """Whatever sits on Patroni's port, the health check says in one line what is wrong with its answer."""
    with answering(answer, times=times) as (host, port):
        ready, reason = commands.health(Member(name="p0", run=tmp_path, rest=f"{host}:{port}", peers={}))
    assert not ready
    assert said in reason


@contextmanager
def patroni(answers: dict[str, bytes]) -> Iterator[str]:
    """A Patroni that answers only to these paths, and is silent to others, as to those for which it asks Consul."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            path = connection.recv(4096).split()[1].decode()
            if path not in answers:
                ended.wait(60)
                return
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + answers[path])

    def accept(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("ago", "said"),
    [(60, "no answer from Consul for 6"), (-60, "Patroni does not say how the cluster is")],
)
def test_consul_is_named_where_it_is_why(tmp_path: Path, monkeypatch: Any, ago: int, said: str) -> None:
    """While the coordinators are away Patroni knows itself, and how long it has not heard of Consul."""
    monkeypatch.setattr(commands, "SECONDS", 0.5)
    own = {"role": "primary", "state": "running", "timeline": 4, "xlog": {"location": 9}}
    own["dcs_last_seen"] = int(time.time()) - ago
    with patroni({"/patroni": json.dumps(own).encode()}) as rest:
        done, lines = commands.status(Member(name="p0", run=tmp_path, rest=rest, peers={}), own=True)
    assert not done
    assert said in lines[0]
    assert ("the coordinators" in lines[0]) == (ago > 0)
    assert lines[1] == "  primary, running, timeline 4, log at 0/9"


def test_status_is_done_when_every_member_answers(tmp_path: Path) -> None:
    """A member that is silent, or not ready, makes the exit code 1."""
    own = {"role": "primary", "state": "running", "timeline": 4, "xlog": {"location": 9}}
    replica = own | {"role": "replica", "xlog": {"received_location": 8}}
    members = [
        {"name": "p0", "role": "leader", "state": "running"},
        {"name": "p1", "role": "replica", "state": "streaming"},
    ]
    answers = {"/cluster": {"members": members}, "/config": {}, "/patroni": own}
    with (
        patroni({path: json.dumps(answer).encode() for path, answer in answers.items()}) as rest,
        patroni({"/patroni": json.dumps(replica).encode()}) as other,
    ):
        peers = {"p1": ("127.0.0.1", int(other.partition(":")[2]))}
        member = Member(name="p0", run=tmp_path, rest=rest, peers=peers | {"p0": ("127.0.0.1", 1)})
        assert commands.status(member) == (
            True,
            [
                "p0: ready: p0 leads, with the standby p1",
                "  p0: primary, running, timeline 4, log at 0/9",
                "  p1: replica, running, timeline 4, log at 0/8, 1 bytes behind",
            ],
        )
        member = replace(member, peers=member.peers | {"p2": ("127.0.0.1", 1)})
        assert not commands.status(member)[0]
        assert commands.status(member, own=True)[0]


def test_word_is_given_only_where_it_is_waited_for(member: Member) -> None:
    """Nothing is allowed to a member that does not wait, without --accept-loss, or without a yes."""
    allowance = member.run / standing.ALLOWANCE
    assert not commands.lead(member, True, lambda _: True)[0]
    standing.write(member.run, Standing(state=State.WAITING, reason="missing: p1"))
    done, lines = commands.lead(member, False, lambda _: True)
    assert not done
    assert "--accept-loss" in lines[-1]
    assert not commands.lead(member, True, lambda _: False)[0]
    assert not allowance.exists()
    done, lines = commands.lead(member, True, lambda _: True)
    assert done
    assert "may be lost: every write that only p1 has; what it has is not known" in lines
    assert allowance.exists()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"p0": standby(2, 10), "p1": Holding(kind=Kind.EMPTY)}, ["nothing that"]),
        ({"p0": standby(2, 10), "p1": standby(2, 9)}, ["nothing that"]),
        ({"p0": standby(2, 10), "p1": standby(2, 26)}, ["the last 16 bytes"]),
        ({"p0": standby(2, 10), "p1": standby(3, 1), "p2": None}, ["only p1 has", "only p2 has"]),
        ({"p0": standby(2, 10, "a" * 32), "p1": standby(2, 9, "b" * 32)}, ["another history"]),
        ({"p0": None, "p1": standby(2, 9)}, ["only p1 has"]),
        ({"p0": Holding(kind=Kind.EMPTY), "p1": Holding(kind=Kind.EMPTY)}, ["every write there ever was"]),
    ],
)
def test_losses_are_named(answers: dict[str, Holding | None], said: list[str]) -> None:
    """Who decides learns what each other member has that this one does not."""
    lines = losses("p0", answers)
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


def test_advice_fits_what_the_members_have() -> None:
    """A new database is offered only where every member answers and none has one."""
    empty = Holding(kind=Kind.EMPTY)
    assert "new, empty database" in commands.advice({"p0": empty, "p1": empty})[1]
    for other in (None, Holding(kind=Kind.UNSETTLED)):
        assert "has most to lead" in commands.advice({"p0": empty, "p1": other})[1]
