"""Refused connections in a real kernel, in network namespaces of the test's own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from tests.support import ROOT, network_namespace
from tests.vip.inside import run

pytestmark = pytest.mark.netns


_PRELUDE = """
import json, os, socket, sys
from vip.nftables import RefusalError, RefusalTable
from vip.resets import Refusal, Resets
from vip.table import Wanted

ONE, TWO = ("127.10.1.1", 8000), ("127.10.1.2", 8000)

def listen(*places):
    return [socket.create_server(place) for place in places]

def dial(place, source=("", 0)):
    # What a TCP check does (`nc -z`): 0, or the number of the error.
    with socket.socket() as client:
        client.bind(source)
        client.settimeout(10)
        return client.connect_ex(place)

def refuse(*places):
    table.apply(Wanted(Resets(frozenset(Refusal(*place) for place in places))))

table = RefusalTable()
"""


def inside(namespace: str, script: str) -> object:
    """What `script` prints as JSON, run in the namespace after the prelude."""
    return run(namespace, _PRELUDE + script)


REFUSED = errno.ECONNREFUSED


def test_a_refused_address_and_port_answers_as_a_closed_port(namespace: str) -> None:
    """ECONNREFUSED though somebody listens, on that address and port and on no other; lifted, it connects again."""
    script = """
servers = listen(ONE, TWO, (ONE[0], 8001))
found = [[dial(ONE), dial(TWO)]]
refuse(ONE)
found.append([dial(ONE), dial(TWO), dial((ONE[0], 8001))])
refuse(ONE, TWO)
found.append([dial(ONE), dial(TWO)])
refuse(TWO)
found.append([dial(ONE), dial(TWO)])
refuse()
found.append([dial(ONE), dial(TWO)])
print(json.dumps(found))
"""
    assert inside(namespace, script) == [[0, 0], [REFUSED, 0, 0], [REFUSED, REFUSED], [0, REFUSED], [0, 0]]


def test_a_held_connection_is_not_touched(namespace: str) -> None:
    """It carries bytes both ways while new connections are refused, and after; ending it is orderly."""
    script = """
server, = listen(ONE)
client = socket.create_connection(ONE, timeout=10)
held, _ = server.accept()
held.settimeout(10)
found = []
for places in ((), (ONE,), (), (ONE,)):
    refuse(*places)
    client.sendall(b"ping")
    held.sendall(held.recv(4))
    found.append([client.recv(4).decode(), dial(ONE)])
client.shutdown(socket.SHUT_WR)
found.append(held.recv(1).decode())
held.close()
found.append(client.recv(1).decode())
print(json.dumps(found))
"""
    assert inside(namespace, script) == [["ping", 0], ["ping", REFUSED], ["ping", 0], ["ping", REFUSED], "", ""]


LOSE = """
PEER, OTHER, OWN = ("100.96.0.7", 8000), ("100.96.0.8", 8000), ("100.96.0.9", 0)
with __import__("pyroute2").IPRoute() as link:
    for address, _ in (PEER, OTHER, OWN):
        link.addr("add", index=link.link_lookup(ifname="lo")[0], address=address, prefixlen=32)
table.apply(Wanted())

def lose(*addresses):
    table.apply(Wanted(Resets(frozenset(), frozenset(addresses))))

def sends(client):
    try:
        client.sendall(b"ping")
        return client.recv(4).decode()
    except OSError as error:
        return error.errno
"""


def test_a_lost_peer_resets_held_and_new_connections_and_no_others(namespace: str) -> None:
    """A held connection ends with ECONNRESET at its next packet, a new one is refused; once the peer is back, new ones
    are carried. Another peer and datagrams are not concerned.
    """
    script = """
servers = listen(PEER, OTHER)
clients = [socket.create_connection(place, timeout=10, source_address=OWN) for place in (PEER, OTHER)]
held = [server.accept()[0] for server in servers]
held[1].sendall(b"pong")
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.bind(PEER)
datagrams.settimeout(10)
lose(PEER[0])
socket.socket(type=socket.SOCK_DGRAM).sendto(b"ping", PEER)
found = [[sends(client) for client in clients], [dial(PEER, OWN), dial(OTHER, OWN)], datagrams.recv(4).decode()]
lose()
print(json.dumps([*found, [dial(PEER, OWN), dial(OTHER, OWN)]]))
"""
    found = inside(namespace, LOSE + script)
    assert found == [[errno.ECONNRESET, "pong"], [REFUSED, 0], "ping", [0, 0]]


def test_datagrams_are_not_concerned(namespace: str) -> None:
    """The rule is for TCP: the same address and port takes UDP."""
    script = """
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(ONE)
server.settimeout(10)
refuse(ONE)
client = socket.socket(type=socket.SOCK_DGRAM)
client.sendto(b"ping", ONE)
print(json.dumps([server.recv(4).decode(), dial(ONE)]))
"""
    assert inside(namespace, script) == ["ping", REFUSED]


def test_what_a_killed_predecessor_left_is_replaced(namespace: str) -> None:
    """A new table knows nothing of the old one; its first call makes the whole."""
    script = """
servers = listen(ONE, TWO)
refuse(ONE)
table = RefusalTable()
found = [[dial(ONE), dial(TWO)]]
refuse(TWO)
found.append([dial(ONE), dial(TWO)])
print(json.dumps(found))
"""
    assert inside(namespace, script) == [[REFUSED, 0], [0, REFUSED]]


def test_a_table_that_somebody_deleted_comes_back(namespace: str) -> None:
    """The next change finds nothing to change and makes the whole anew."""
    script = """
servers = listen(ONE, TWO)
refuse(ONE)
RefusalTable().remove()
found = [[dial(ONE), dial(TWO)]]
refuse(ONE, TWO)
found.append([dial(ONE), dial(TWO)])
print(json.dumps(found))
"""
    assert inside(namespace, script) == [[0, 0], [REFUSED, REFUSED]]


def test_removing_ends_every_refusal_and_may_be_repeated(namespace: str) -> None:
    """A clean stop leaves nothing behind, where there is a table and where there is none."""
    script = """
servers = listen(ONE)
refuse(ONE)
table.remove()
table.remove()
found = [dial(ONE)]
refuse(ONE)
found.append(dial(ONE))
print(json.dumps(found))
"""
    assert inside(namespace, script) == [0, REFUSED]


def test_tables_of_two_sidecars_know_nothing_of_each_other(namespace: str) -> None:
    """Each is its network namespace's own."""
    script = """
servers = listen(ONE, TWO)
refuse(%s)
print(json.dumps([dial(ONE), dial(TWO)]))
"""
    with network_namespace() as other:
        assert inside(namespace, script % "ONE") == [REFUSED, 0]
        assert inside(other, script % "TWO") == [0, REFUSED]
        left = "servers = listen(ONE, TWO)\nprint(json.dumps([dial(ONE), dial(TWO)]))\n"
        assert inside(namespace, left) == [REFUSED, 0]


def test_without_the_right_the_error_says_what_to_grant(namespace: str) -> None:
    """It names the cause, the remedy and what happens without it, at once; nothing else fails."""
    script = """
servers = listen(ONE)
os.setuid(65534)
texts = []
for action in (lambda: refuse(ONE), table.remove):
    try:
        action()
    except RefusalError as error:
        texts.append(str(error))
print(json.dumps([texts, dial(ONE)]))
"""
    texts, dialled = inside(namespace, script)  # type: ignore[misc]
    assert dialled == 0
    assert len(texts) == 2
    for text in texts:
        assert "operation not permitted" in text
        assert "NET_ADMIN" in text
        assert "accepts connections and closes them" in text


def test_an_unprivileged_user_namespace_is_enough() -> None:
    """Who has no right on the machine has it in a namespace of their own, as `./mesh` on a laptop does."""
    script = (
        _PRELUDE
        + """
from pyroute2 import IPRoute
with IPRoute() as link:
    link.link("set", index=link.link_lookup(ifname="lo")[0], state="up")
servers = listen(ONE, TWO)
refuse(ONE)
print(json.dumps([dial(ONE), dial(TWO)]))
"""
    )
    own = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    done = subprocess.run(
        [*own, sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [REFUSED, 0]


def test_many_pairs(namespace: str) -> None:
    """Thousands of routes without anybody behind them, in one call each way."""
    script = """
servers = listen(ONE)
refuse(ONE, *((f"127.10.{n >> 8}.{n & 255}", 80) for n in range(3000)))
found = [dial(ONE), dial(("127.10.9.9", 80))]
refuse()
print(json.dumps([*found, dial(ONE)]))
"""
    assert inside(namespace, script) == [REFUSED, REFUSED, 0]
