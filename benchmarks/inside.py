"""What the bench runs inside a CVM's namespaces: JSON commands on stdin, JSON answers on stdout, a line each.

Blocking sockets, one thread for what is timed: the same code on every path, so that what differs is the path. Times are
seconds of CLOCK_MONOTONIC, which is one clock for all namespaces of a machine. Ends, with everything that it started,
when stdin closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer.spec import INTERFACE
from vip.filter import Filter
from vip.nftables import RefusalTable
from vip.table import Wanted

CONNECT_SECONDS = 2.0
LOGS = Path("/tmp/bench-logs")
AGENT = "http://127.0.0.1:8500/"
TOKEN = Path("/run/mesh/secrets/consul-token")
"""The workload's, where the CVM's group keeps a registration itself; only there is something at AGENT."""


class Watch:
    """New connections one after the other, each asking who answers; a thread of its own."""

    def __init__(self, host: str, port: int, pause: float) -> None:
        self.events: list[tuple[float, float, str]] = []
        """Start, end and answer of each connection; `!<error>` for a failed one."""
        self._target = (host, port)
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def until(self, answer: str, times: int, seconds: float) -> bool:
        """Waits until the last `times` answers are all `answer`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            tail = self.events[-times:]
            if len(tail) == times and all(event[2] == answer for event in tail):
                return True
            time.sleep(0.005)
        return False

    def stop(self) -> list[tuple[float, float, str]]:
        """Ends and returns all events."""
        self._stop.set()
        self._thread.join(CONNECT_SECONDS * 2)
        return self.events

    def _run(self) -> None:
        while not self._stop.is_set():
            start = time.monotonic()
            answer = who(self._target)
            end = time.monotonic()
            self.events.append((start, end, answer))
            time.sleep(max(0.0, self._pause - (end - start)))


class Hold:
    """One connection that echoes a byte every few milliseconds until it is closed."""

    def __init__(self, host: str, port: int) -> None:
        self.closed: float | None = None
        self._socket = socket.create_connection((host, port), CONNECT_SECONDS)
        self._socket.sendall(b"ex")
        self._socket.recv(1)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> float | None:
        """Closes it; when the other side did before, that moment."""
        self._stop = True
        self._thread.join(CONNECT_SECONDS * 2)
        self._socket.close()
        return self.closed

    def _run(self) -> None:
        while not self._stop:
            try:
                self._socket.sendall(b"x")
                if not self._socket.recv(1):
                    raise ConnectionResetError
            except OSError:
                self.closed = time.monotonic()
                return
            time.sleep(0.002)


def who(target: tuple[str, int]) -> str:
    """The ordinal of the CVM that answers a new connection, or `!` and the error."""
    try:
        with socket.create_connection(target, CONNECT_SECONDS) as connection:
            connection.sendall(b"w")
            return connection.recv(1).decode() or "!closed"
    except OSError as error:
        return f"!{type(error).__name__}"


class Inside:
    """The commands. Each takes the fields of its JSON object and returns what becomes the answer."""

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._watch: Watch | None = None
        self._hold: Hold | None = None

    def http(self, method: str, url: str, body: object = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """One request, with the moments before and after it. `status` 0: no answer."""
        data = None if body is None else json.dumps(body).encode()
        if url.startswith(AGENT) and TOKEN.exists():
            headers = {"X-Consul-Token": TOKEN.read_text(encoding="utf-8").strip()} | (headers or {})
        request = urllib.request.Request(url, data, headers or {}, method=method)
        start = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode(errors="replace")
        except OSError as error:
            status, text = 0, str(error)
        return {"status": status, "body": text, "start": start, "end": time.monotonic()}

    def spawn(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> dict[str, Any]:
        """Starts a program that ends with this one."""
        LOGS.mkdir(exist_ok=True)
        start = time.monotonic()
        with (LOGS / name).open("wb") as log:
            self._children[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                preexec_fn=_die_with_parent,  # noqa: PLW1509 -- one prctl, which takes no lock
            )
        return {"start": start, "pid": self._children[name].pid}

    def end(self, name: str, number: int = signal.SIGKILL) -> dict[str, Any]:
        """Ends a program that `spawn` started."""
        child = self._children.pop(name)
        start = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)
        child.wait(10)
        return {"start": start}

    def log(self, name: str, lines: int = 20) -> list[str]:
        """The last lines of a program that `spawn` started."""
        return (LOGS / name).read_text(errors="replace").splitlines()[-lines:]

    def write(self, path: str, text: str) -> None:
        """Writes a file, with its folder."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        """Removes a folder."""
        shutil.rmtree(path, ignore_errors=True)

    def watch(self, host: str, port: int, pause: float) -> None:
        """Starts a Watch."""
        self._watch = Watch(host, port, pause)

    def watch_until(self, answer: str, times: int, seconds: float) -> bool:
        """`Watch.until`."""
        assert self._watch is not None
        return self._watch.until(answer, times, seconds)

    def watch_stop(self) -> list[tuple[float, float, str]]:
        """Ends the Watch; its events."""
        assert self._watch is not None
        return self._watch.stop()

    def hold(self, host: str, port: int) -> None:
        """Starts a Hold."""
        self._hold = Hold(host, port)

    def hold_end(self) -> float | None:
        """Ends the Hold; when the other side closed it."""
        assert self._hold is not None
        return self._hold.end()

    def until(self, host: str, port: int, answer: str, seconds: float, pause: float = 0.005) -> float | None:
        """When a new connection is first answered by `answer` (`?`: by anyone), or None."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            got = who((host, port))
            if got == answer or (answer == "?" and not got.startswith("!")):
                return time.monotonic()
            time.sleep(pause)
        return None

    def connects(self, paths: dict[str, tuple[str, int]], n: int) -> dict[str, list[float]]:
        """Connect and first byte, `n` times per path in turns, in microseconds."""
        taken: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(n):
            for name, (host, port) in paths.items():
                start = time.perf_counter()
                with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.sendall(b"w")
                    if not connection.recv(1):
                        raise ConnectionError(f"{name}: closed without an answer")
                    taken[name].append((time.perf_counter() - start) * 1e6)
        return taken

    def round_trips(self, paths: dict[str, tuple[str, int]], n: int, size: int) -> dict[str, list[float]]:
        """Round trips of `size` bytes on an open connection, `n` per path in blocks of 50 in turns, in microseconds."""
        taken: dict[str, list[float]] = {name: [] for name in paths}
        data, buffer = b"x" * size, memoryview(bytearray(size))
        with contextlib.ExitStack() as stack:
            open_ = {n: stack.enter_context(socket.create_connection((p[0], p[1]), 5)) for n, p in paths.items()}
            for connection in open_.values():
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(b"e")
            for block in range(0, n + 50, 50):
                for name, connection in open_.items():
                    for _ in range(50):
                        start = time.perf_counter()
                        connection.sendall(data)
                        got = 0
                        while got < size:
                            got += connection.recv_into(buffer[got:]) or _closed(name)
                        if block:  # the first block warms up
                            taken[name].append((time.perf_counter() - start) * 1e6)
        return taken

    def open_ports(self, tcp: list[int], udp: list[int]) -> None:
        """Lets connections and datagrams from the mesh come to these ports: the anchor's, and the raw path's. The
        sidecar's packet filter keeps its own.
        """
        shut, opened = (Wanted(filter=Filter("100.64.0.0/10", INTERFACE, *ports))
                        for ports in ((), (frozenset(tcp), frozenset(udp))))  # fmt: skip
        RefusalTable(shut).apply(opened)

    def throughput(self, host: str, port: int, seconds: float) -> float:
        """Bits a second of one stream in writes of 64 KiB, counted until the last byte is taken by the kernel."""
        data = b"x" * 65536
        sent = 0
        try:
            with socket.create_connection((host, port), 5) as connection:
                connection.sendall(b"s")
                start = time.perf_counter()
                while time.perf_counter() < start + seconds:
                    connection.sendall(data)
                    sent += len(data)
                return sent * 8 / (time.perf_counter() - start)
        except OSError as error:
            raise ConnectionError(f"{host}:{port}, after {sent} bytes: {error}") from error


def _closed(name: str) -> int:
    raise ConnectionError(f"{name}: closed while a round trip was under way")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """Answers commands until stdin ends."""
    inside = Inside()
    for line in sys.stdin:
        command = json.loads(line)
        method: Callable[..., Any] = getattr(inside, command.pop("do"))
        try:
            answer = {"ok": method(**command)}
        except (OSError, KeyError, AssertionError, subprocess.SubprocessError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    # The last process of the set-up must be gone before we are: children end by PR_SET_PDEATHSIG.
    sys.exit(main())
