"""The HTTP server that the demo programs share: paths to functions, one or two addresses, and an end that is noticed.

A listener that dies ends the process, so that the container's restart policy sees it; a signal ends it at once.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import FrameType
from typing import ClassVar

_IDLE = 75.0
"""Seconds after which a connection without a request is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a path answers with."""

    body: bytes
    content_type: str
    status: int = 200


Paths = Mapping[str, Callable[[], Answer]]


def text(body: str) -> Answer:
    """A plain text answer."""
    return Answer(body=body.encode(), content_type="text/plain; charset=utf-8")


def document(body: object, status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(body=json.dumps(body).encode() + b"\n", content_type="application/json", status=status)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    # One write for head and body: two would meet Nagle and delayed ACKs, 40 ms a request.
    wbufsize = -1
    disable_nagle_algorithm = True
    paths: ClassVar[Paths] = {}

    def do_GET(self) -> None:
        found = self.paths.get(self.path.partition("?")[0])
        if found is None:
            self._send(document({"error": f"no such path {self.path!r}", "paths": sorted(self.paths)}, 404))
        else:
            self._send(found())

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
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
