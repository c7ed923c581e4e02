"""The HTTP server that the demo programs share: method and path to a function, one or two addresses, and an end that is
noticed.

What a caller sends is bounded and parsed before a function sees it; what does not parse is a 4xx with the reason. A
listener that dies ends the process, so that the container's restart policy sees it; a signal ends it at once.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import FrameType
from typing import ClassVar
from urllib.parse import parse_qsl

_IDLE = 75.0
"""Seconds after which a connection without a request is closed."""
MAX_BODY = 16 << 10
"""Bytes of a request's body: a form of a few short fields. Whoever sends more is answered 413."""
MAX_FIELDS = 32
"""Fields of a query, and of a form."""
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a path answers with."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asked, beside method and path."""

    query: Mapping[str, str]
    """The fields behind `?`."""
    form: Mapping[str, str]
    """The fields of the body, where it is a form."""


class RequestError(Exception):
    """A request that cannot be answered as it is; the message says what was expected."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


Paths = Mapping[str, Callable[[Request], Answer]]
"""`METHOD /path` → what answers it. HEAD is answered as GET is."""


def text(body: str) -> Answer:
    """A plain text answer."""
    return Answer(body=body.encode(), content_type="text/plain; charset=utf-8")


def document(body: object, status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(body=json.dumps(body).encode() + b"\n", content_type="application/json", status=status)


def fields(encoded: str) -> dict[str, str]:
    """The fields of a query or of a form. RequestError for too many, for no text, and for one that comes twice."""
    try:
        pairs = parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise RequestError(f"expected at most {MAX_FIELDS} fields NAME=VALUE, joined by '&': {error}") from error
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RequestError("a field comes twice, expected each one once")
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    # One write for head and body: two would meet Nagle and delayed ACKs, 40 ms a request.
    wbufsize = -1
    disable_nagle_algorithm = True
    paths: ClassVar[Paths] = {}

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        try:
            body = self._body()
            path, _, query = self.path.partition("?")
            action = self._action(method, path)
            self._send(action(Request(query=fields(query), form=fields(self._form(body)))))
        except RequestError as error:
            self._send(document({"error": str(error), "paths": sorted(self.paths)}, error.status))

    def _action(self, method: str, path: str) -> Callable[[Request], Answer]:
        action = self.paths.get(f"{method} {path}")
        if action is not None:
            return action
        others = [known.partition(" ")[0] for known in self.paths if known.partition(" ")[2] == path]
        if others:
            raise RequestError(f"{path} is for {' and '.join(sorted(others))}, not for {method}", 405)
        raise RequestError(f"no such path {path!r}", 404)

    def _body(self) -> bytes:
        """The body, read whole: what stays unread would be taken for the next request."""
        told = self.headers.get_all("Content-Length", ["0" if self.command != "POST" else ""])
        if "Transfer-Encoding" in self.headers or len(told) != 1 or not (told[0].isascii() and told[0].isdecimal()):
            self.close_connection = True
            raise RequestError("expected one Content-Length that says how many bytes the body has", 411)
        if len(told[0]) > len(str(MAX_BODY)) or int(told[0]) > MAX_BODY:
            self.close_connection = True
            raise RequestError(f"the body has {told[0][:20]} bytes, expected at most {MAX_BODY}", 413)
        return self.rfile.read(int(told[0]))

    def _form(self, body: bytes) -> str:
        if self.headers.get_content_type() != _FORM:
            return ""
        try:
            return body.decode("ascii")
        except UnicodeDecodeError as error:
            raise RequestError(f"the form is no {_FORM}: {error}") from error

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """No access log: one line a request would cost more than the request."""


class Server(ThreadingHTTPServer):
    """One listener."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], paths: Paths) -> None:
        handler = type("Handler", (_Handler,), {"paths": paths})
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Binds without HTTPServer's look-up of the host's full name, which may wait for a silent name server."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the base class's names
        """A caller that went away is no news; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"request from {client_address} failed: {error!r}", file=sys.stderr, flush=True)


def serve(name: str, addresses: list[tuple[str, int]], paths: Paths) -> int:
    """Listens on `addresses` until a signal (returns 0) or the death of a listener (returns 1). Main thread only."""
    ended: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        ended.put((0, f"{signal.Signals(number).name}, goodbye"))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    listeners: list[tuple[Server, threading.Thread]] = []
    for address in addresses:
        try:
            server = Server(address, paths)
        except OSError as error:
            place = f"{address[0]}:{address[1]}"
            print(f"{name}: cannot listen on {place}: {error}; is another program on this port?", file=sys.stderr)
            _close(listeners)
            return 1
        thread = threading.Thread(target=_run, args=(server, ended), daemon=True)
        listeners.append((server, thread))
    for server, thread in listeners:
        thread.start()
        print(f"{name}: listening on http://{server.server_name}:{server.server_port}", flush=True)
    code, reason = ended.get()
    print(f"{name}: {reason}", file=sys.stderr, flush=True)
    # After a signal the end of the process closes everything, and faster: a listener looks up twice a second only.
    if code:
        _close(listeners)
    return code


def _close(listeners: list[tuple[Server, threading.Thread]]) -> None:
    for server, thread in listeners:
        if thread.is_alive():
            server.shutdown()
        server.server_close()


def _run(server: Server, ended: queue.SimpleQueue[tuple[int, str]]) -> None:
    place = f"{server.server_name}:{server.server_port}"
    try:
        server.serve_forever()
    except Exception as error:  # noqa: BLE001 - the boundary of a listener's thread: whatever ended it ends the process
        ended.put((1, f"the listener on {place} died: {error!r}"))
    else:
        ended.put((1, f"the listener on {place} ended"))
