"""The demo programs' server, in this process: paths, keep-alive, errors, and the death of a listener."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from tests.workloads.support import serving
from workloads import server
from workloads.server import Answer, Paths, Request, Server, document, text


def fail(_: Request) -> Answer:
    """A path with a bug."""
    raise RuntimeError("a bug")


PATHS: Paths = {
    "GET /text": lambda _: text("hello\n"),
    "GET /json": lambda _: document({"a": 1}, 502),
    "GET /bug": fail,
    "POST /echo": lambda request: document({"query": request.query, "form": request.form}),
}


def test_answers_and_keeps_the_connection() -> None:
    """Several requests on one connection: text, JSON with a status, a query string, an unknown path, HEAD."""
    with serving(PATHS) as made:
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


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ASKED = {
    "a form and a query": (
        "POST",
        "/echo?a=%3A&b",
        "c=%2B&d=+",
        FORM,
        200,
        {"query": {"a": ":", "b": ""}, "form": {"c": "+", "d": " "}},
    ),
    "no form": ("POST", "/echo", "c=1", {"Content-Type": "text/plain"}, 200, {"query": {}, "form": {}}),
    "another method": ("GET", "/echo", None, {}, 405, "/echo is for POST, not for GET"),
    "an unknown path": ("POST", "/text/", "", {}, 404, "no such path '/text/'"),
    "too many fields": ("GET", "/text?" + "a&" * 40, None, {}, 400, "expected at most 32 fields"),
    "no text": ("GET", "/text?a=%ff", None, {}, 400, "expected at most 32 fields NAME=VALUE, joined by '&'"),
    "a field twice": ("POST", "/echo", "a=1&a=2", FORM, 400, "a field comes twice"),
    "a form that is none": ("POST", "/echo", b"a=\xff", FORM, 400, "the form is no application/x-www"),
}


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "wanted"), ASKED.values(), ids=ASKED)
def test_what_is_asked_is_parsed_or_refused_with_the_reason(
    method: str, path: str, body: str | bytes | None, headers: dict[str, str], status: int, wanted: object
) -> None:
    """And the connection goes on: the next request on it is answered."""
    with serving(PATHS) as made:
        connection = HTTPConnection("127.0.0.1", made.server_port, timeout=5)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        first = connection.sock
        connection.request("GET", "/text")
        assert connection.getresponse().read() == b"hello\n"
        assert connection.sock is first
        connection.close()
    assert answer.status == status
    assert told == wanted if isinstance(wanted, dict) else str(wanted) in told["error"]


LENGTHS = {
    "none": (b"", 411),
    "a sign": (b"Content-Length: +5\r\n", 411),
    "two": (b"Content-Length: 5\r\nContent-Length: 5\r\n", 411),
    "chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 411),
    "too many": (b"Content-Length: 16385\r\n", 413),
    "5,000 digits": (b"Content-Length: " + b"9" * 5000 + b"\r\n", 413),
}


@pytest.mark.parametrize(("length", "status"), LENGTHS.values(), ids=LENGTHS)
def test_a_body_of_unknown_or_great_length_is_not_read(length: bytes, status: int) -> None:
    """One answer with the reason, then the end: what follows cannot be told from the next request."""
    with serving(PATHS) as made, socket.create_connection(("127.0.0.1", made.server_port), 5) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n")
        told = b"".join(iter(lambda: client.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in told
    assert told.count(b"HTTP/1.1") == 1


def test_head_and_body_come_in_one_packet() -> None:
    """Two writes would cost a delayed ACK on every request of a kept connection."""
    with serving(PATHS) as made, socket.create_connection(("127.0.0.1", made.server_port), 5) as client:
        client.sendall(b"GET /text HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).endswith(b"\r\n\r\nhello\n")


def test_a_bug_in_a_path_ends_only_its_connection(capfd: pytest.CaptureFixture[str]) -> None:
    """The error is one line, and the next caller is served."""
    with serving(PATHS) as made:
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
