"""The caller that `./mesh demo trust` puts into application containers: JSON commands on stdin, answers on stdout.

Calls one after the other, each on a connection of its own, counts what was lost, and holds connections until they are
cut. Times are seconds of CLOCK_MONOTONIC, one clock for all namespaces of a machine. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PAUSE = 0.01
"""Seconds between two calls: some 100 a second each, which one core carries for several callers."""
TIMEOUT = 5.0
"""Seconds until a call counts as lost."""
SHOWN = 20
"""Lost calls that are told one by one."""
TRIES = 200
"""Connections until one leads to the instance that is wanted: Envoy takes them in turn."""


class CallError(Exception):
    """A call that was not answered, and why."""


class Connection:
    """One connection to where `url` leads, for one call or many."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._path = parts.path or "/"
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT)

    def open(self) -> Connection:
        """Connects. OSError."""
        self._http.connect()
        # Without this a connection that was cut would be replaced silently.
        self._http.auto_open = 0
        return self

    def ask(self) -> str:
        """One call. CallError."""
        try:
            self._http.request("GET", self._path)
            answer = self._http.getresponse()
            text = answer.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            raise CallError(repr(error)) from error
        if answer.status != http.HTTPStatus.OK or not text:
            raise CallError(f"answered {answer.status}")
        return text

    def close(self) -> None:
        """Ends it."""
        self._http.close()


def call(url: str) -> str:
    """One call on a connection of its own. CallError."""
    connection = Connection(url)
    try:
        return connection.open().ask()
    except OSError as error:
        raise CallError(repr(error)) from error
    finally:
        connection.close()


class _Background:
    """Something that goes on in a thread until it ends or is told to."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Returns when it ended, or after `seconds`."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """Ends it."""
        self._over.set()
        self._thread.join(TIMEOUT * 2)

    def _run(self) -> None:
        raise NotImplementedError


class Calls(_Background):
    """Calls without end."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.good = 0
        self.lost: list[tuple[float, str]] = []

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                call(self._url)
                self.good += 1
            except CallError as error:
                self.lost.append((time.monotonic(), str(error)))
            self._over.wait(PAUSE)


class Held(_Background):
    """Calls on one connection, which leads to one instance, until it is cut."""

    def __init__(self, url: str, peer: str) -> None:
        super().__init__()
        self._connection = self._connected(url, peer)
        self.last = time.monotonic()
        """When the last answer had come."""
        self.cut: float | None = None

    @staticmethod
    def _connected(url: str, peer: str) -> Connection:
        for _ in range(TRIES):
            connection = Connection(url).open()
            try:
                leads = connection.ask().endswith(peer)
            except CallError:
                connection.close()
                raise
            if leads:
                return connection
            connection.close()
        raise CallError(f"no connection to {url} leads to {peer or 'anybody'}")

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._connection.ask()
                self.last = time.monotonic()
                self._over.wait(PAUSE)
        except CallError:
            self.cut = time.monotonic()
        finally:
            self._connection.close()


class Reached(_Background):
    """Calls until one is answered."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.at: float | None = None

    def _run(self) -> None:
        while not self._over.is_set() and self.at is None:
            try:
                call(self._url)
                self.at = time.monotonic()
            except CallError:
                self._over.wait(PAUSE)


class Client:
    """Answers commands."""

    def __init__(self) -> None:
        self._calls: dict[str, Calls] = {}
        self._held: dict[str, Held] = {}
        self._reached: dict[str, Reached] = {}

    def calls(self, url: str) -> None:
        """Calls `url` from now on."""
        self._calls[url] = Calls(url)
        self._calls[url].start()

    def enough(self, url: str) -> dict[str, Any]:
        """No more of them: how many were answered, how many were lost, and some of these."""
        calls = self._calls.pop(url)
        calls.stop()
        return {"good": calls.good, "lost": len(calls.lost), "some": calls.lost[:SHOWN]}

    def hold(self, name: str, url: str, peer: str) -> None:
        """Holds a connection to `url` that leads to `peer` ("": to anybody)."""
        self._held[name] = Held(url, peer)
        self._held[name].start()

    def held(self, name: str, seconds: float) -> dict[str, Any]:
        """After at most `seconds`: when it was cut (null: it is still there), and when its last answer came."""
        held = self._held[name]
        held.wait(seconds)
        return {"cut": held.cut, "last": held.last}

    def reach(self, url: str) -> None:
        """Tries to reach `url` from now on."""
        self._reached[url] = Reached(url)
        self._reached[url].start()

    def reached(self, url: str, seconds: float) -> float | None:
        """When `url` first answered; null where it has not within `seconds`."""
        found = self._reached[url]
        found.wait(seconds)
        return found.at

    def ask(self, url: str) -> str:
        """One call; why it was not answered, after `!`."""
        try:
            return call(url)
        except CallError as error:
            return f"!{error}"


def main() -> int:
    """Answers commands until stdin ends."""
    client = Client()
    for line in sys.stdin:
        command = json.loads(line)
        method: Callable[..., Any] = getattr(client, command.pop("do"))
        try:
            answer = {"ok": method(**command)}
        except (OSError, KeyError, CallError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
