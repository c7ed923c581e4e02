"""The attacks of chaos reach what they are aimed at, and end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from workloads import dbattacks


def test_half_sent_requests_are_held_at_every_target() -> None:
    """As many as asked for, for as long as asked for; a target that refuses counts none."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as gone:
        port, closed = server.getsockname()[1], gone.getsockname()[1]
        gone.close()
        found = dbattacks.occupy([("127.0.0.1", port), ("127.0.0.1", closed)], 3, 0.5)
        assert found == {f"127.0.0.1:{port}": 3, f"127.0.0.1:{closed}": 0}
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1000) == dbattacks.HALF
            assert connection.recv(1000) == b""


def test_an_ended_request_is_replaced() -> None:
    """A server that closes what is half-sent is asked again."""
    accepted: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def close_all() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                accepted.append(1)
                connection.close()

        thread = threading.Thread(target=close_all)
        thread.start()
        try:
            dbattacks.occupy([("127.0.0.1", server.getsockname()[1])], 2, 1.0)
        finally:
            stop.set()
            thread.join(5)
    assert len(accepted) > 2


class Agent(BaseHTTPRequestHandler):
    """A Consul agent that takes every write but one."""

    written: ClassVar[list[dict[str, object]]] = []

    def do_GET(self) -> None:
        """The own service, the checks and the address of a node."""
        answers: dict[str, object] = {
            "/v1/agent/services": {"api-0": {}},
            "/v1/agent/service/api-0": {"Service": "api"},
            "/v1/health/node/db-0": [{"CheckID": "secret-id"}],
            "/v1/catalog/node/db-0": {"Node": {"Address": "100.96.0.7"}},
        }
        self._say(200 if self.path in answers else 404, answers.get(self.path))

    def do_PUT(self) -> None:
        """A registration."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).written.append(body)
        self._say(403 if body["Check"]["CheckID"] == "db-0:member" else 200, True)

    def _say(self, status: int, tree: object) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 -- the base class's name
        """Quiet."""


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That agent, where the attack looks for one."""
    Agent.written.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        monkeypatch.setattr(dbattacks, "CONSUL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(5)


@pytest.mark.usefixtures("agent")
def test_checks_are_forged_by_every_id() -> None:
    """Those that can be read or guessed, as failing checks of the own service on the other's node."""
    counts = dbattacks.poison(["db-0"], 0.2)
    assert counts["checks"] == 1
    assert counts["written"] == 2 * counts["refused"] > 0
    assert {body["Check"]["CheckID"] for body in Agent.written} == {"secret-id", "serfHealth", "db-0:member"}  # type: ignore[index]
    assert Agent.written[0] | {"Check": None} == {
        "Node": "db-0", "Address": "100.96.0.7", "SkipNodeUpdate": True,
        "Service": {"ID": "api-0", "Service": "api", "Port": 1}, "Check": None,
    }  # fmt: skip
