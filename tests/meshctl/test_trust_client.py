"""The caller of `./mesh demo trust`, against real servers: what is lost is counted, what is cut is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from meshctl.trust_client import CallError, Client, call
from tests.support import ROOT, popen
from workloads.server import Server, text


@contextmanager
def serving(name: str) -> Iterator[tuple[str, Server]]:
    """A program as the demo's: its URL, and itself."""
    server = Server(("127.0.0.1", 0), {"GET /hello": lambda _: text(f"hello from {name}\n")})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hello", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def url() -> Iterator[str]:
    """Where `one-0` answers."""
    with serving("one-0") as (found, _):
        yield found


def test_calls_are_counted_and_so_are_lost_ones() -> None:
    """A server that goes away loses calls, each with its reason."""
    client = Client()
    with serving("one-0") as (url, _):
        client.calls(url)
        client.reach(url)
        assert client.reached(url, 10.0) is not None
    client.reach("http://127.0.0.1:1/none")
    assert client.reached("http://127.0.0.1:1/none", 0.1) is None
    while len(client._calls[url].lost) < 3:
        threading.Event().wait(0.01)
    found = client.enough(url)
    assert found["good"] > 0
    assert found["lost"] >= len(found["some"]) > 0
    # What was under way when the server went is reset; what comes later is refused.
    assert "refused" in found["some"][-1][1].lower()


def test_a_held_connection_leads_to_the_instance_that_is_wanted(url: str) -> None:
    """To another it is an error, and not another connection."""
    client = Client()
    client.hold("mine", url, "one-0")
    found = client.held("mine", 0.05)
    assert found["cut"] is None
    with pytest.raises(CallError, match="leads to two-0"):
        client.hold("other", url, "two-0")


def test_a_connection_that_is_cut_is_noticed_and_not_replaced(url: str) -> None:
    """The server still takes new ones: only the held one ended."""
    client = Client()
    client.hold("mine", url, "")
    held = client._held["mine"]
    before = held.last
    connection = held._connection._http.sock
    assert connection is not None
    connection.shutdown(2)
    found = client.held("mine", 10.0)
    assert found["cut"] is not None
    assert before <= found["last"] <= found["cut"]
    assert client.ask(url) == "hello from one-0"


class _Once(BaseHTTPRequestHandler):
    """Answers, and closes the connection."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello from once-0")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_server_that_closes_after_its_answer_has_cut_the_connection() -> None:
    """A client of Python's would connect again without a word, and a connection that is held would never be cut."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Once) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            client = Client()
            client.hold("mine", f"http://127.0.0.1:{server.server_port}/", "")
            assert client.held("mine", 10.0)["cut"] is not None
        finally:
            server.shutdown()
            thread.join()


def test_what_is_no_answer_is_a_lost_call(url: str) -> None:
    """A status of failure, and nobody."""
    with pytest.raises(CallError, match="404"):
        call(url.replace("hello", "none"))
    assert Client().ask("http://127.0.0.1:1/").startswith("!")


def test_commands_are_lines_of_json(url: str) -> None:
    """As the demo runs it in a container: a mistake is answered, and the end of input ends it."""
    argv = [sys.executable, "-S", "-m", "meshctl.trust_client"]
    with popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        lines = [{"do": "ask", "url": url}, {"do": "held", "name": "none", "seconds": 0}]
        out, _ = process.communicate("".join(f"{json.dumps(line)}\n" for line in lines), timeout=60)
    first, second = map(json.loads, out.splitlines())
    assert first == {"ok": "hello from one-0"}
    assert "KeyError" in second["error"]
    assert process.returncode == 0
