"""The demo programs' server, in this process: paths, keep-alive, errors, and the death of a listener."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

from workloads import server
from workloads.server import Answer, Server, document, text


def fail() -> Answer:
    """A path with a bug."""
    raise RuntimeError("a bug")


PATHS = {"/text": lambda: text("hello\n"), "/json": lambda: document({"a": 1}, 502), "/bug": fail}


@contextmanager
def running() -> Iterator[Server]:
    """A server on a free port of loopback."""
    made = Server(("127.0.0.1", 0), PATHS)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join(10)


def test_answers_and_keeps_the_connection() -> None:
    """Several requests on one connection: text, JSON with a status, a query string, an unknown path, HEAD."""
    with running() as made:
        connection = HTTPConnection("127.0.0.1", made.server_port, timeout=5)
        wanted = [
            ("GET", "/text?x=1", 200, b"hello\n"),
            ("GET", "/json", 502, b'{"a": 1}\n'),
            ("HEAD", "/text", 200, b""),
            ("GET", "/none", 404, None),
            ("GET", "/text", 200, b"hello\n"),
        ]
        first: socket.socket | None = None
        for method, path, status, body in wanted:
            connection.request(method, path)
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == status
            assert body is None or data == body
            first = first or connection.sock
            assert connection.sock is first, "the server closed the connection"
        connection.close()


def test_head_and_body_come_in_one_packet() -> None:
    """Two writes would cost a delayed ACK on every request of a kept connection."""
    with running() as made, socket.create_connection(("127.0.0.1", made.server_port), 5) as client:
        client.sendall(b"GET /text HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).endswith(b"\r\n\r\nhello\n")


def test_a_bug_in_a_path_ends_only_its_connection(capfd: pytest.CaptureFixture[str]) -> None:
    """The error is one line, and the next caller is served."""
    with running() as made:
        for path, ok in (("/bug", False), ("/text", True)):
            connection = HTTPConnection("127.0.0.1", made.server_port, timeout=5)
            connection.request("GET", path)
            if ok:
                assert connection.getresponse().status == 200
            else:
                with pytest.raises(ConnectionError):
                    connection.getresponse()
            connection.close()
    assert capfd.readouterr().err.count("RuntimeError('a bug')") == 1


@pytest.fixture
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
def test_a_listener_that_dies_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever ends one of two listeners: exit code 1 and a line that names it."""

    def die(made: Server) -> None:
        if made.server_name == "127.0.0.2":
            raise OSError("the socket is gone")

    monkeypatch.setattr(Server, "service_actions", die)
    assert server.serve("demo", [("127.0.0.1", 0), ("127.0.0.2", 0)], PATHS) == 1
    error = capfd.readouterr().err
    assert "the listener on 127.0.0.2:" in error
    assert "the socket is gone" in error


@pytest.mark.usefixtures("_own_signals")
def test_a_listener_that_ends_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also without an error."""

    def end(made: Server) -> None:
        threading.Thread(target=made.shutdown, daemon=True).start()

    monkeypatch.setattr(Server, "service_actions", end)
    assert server.serve("demo", [("127.0.0.1", 0)], PATHS) == 1
    assert "ended" in capfd.readouterr().err


@pytest.mark.usefixtures("_own_signals")
def test_a_taken_port_is_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, the address and the question that helps."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert server.serve("demo", [("127.0.0.1", port)], PATHS) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capfd.readouterr().err
