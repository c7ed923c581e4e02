"""One side of a TCP conversation, as a program that knows nothing but sockets.

`party.py CONTROL [ADDRESS PORT]` listens on the unix socket CONTROL and, as a server, on ADDRESS:PORT. Each connection
to CONTROL is a conversation in a forked process of its own, which can be killed. The process reads a plan (one line of
JSON) and writes events (one line of JSON each); the last event, `saw`, is what this side observed.

| plan | meaning |
|---|---|
| `dial` | address and port; without it the process accepts |
| `token` | 8 characters that the client sends first: whose conversation this is |
| `me`, `peer` | `client` or `server`: whose bytes are sent, whose are expected |
| `send`, `answer` | bytes to send at once, and after the peer's end |
| `read` | `fast`, `slow`, or `stop`: nothing before `go` comes from CONTROL |
| `end` | `close`, `half-close`, `reset`, `kill` when all is sent; empty: close after the peer's end |
| `whole` | bytes that must have come before an end by `close` |
| `probe` | whether to write after the peer's end, until that fails |
| `bound` | seconds for all of it |

Events: `pid`; `met` (the connection stands; then `begin` is waited for); `sent` (all of it); `stuck` (the peer takes no
more for now); `unread` (something has come that a stopped reader has not read); `ended`; `ready` (to be killed); `saw`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

BEGIN = b"begin\n"
BLOCK = 1 << 18
SLOW_BLOCK, SLOW_PAUSE, SMALL_BUFFER = 1 << 16, 0.001, 1 << 17
"""A slow reader takes so many bytes, then waits so many seconds. It and one that stops have a small receive buffer."""
STUCK_AFTER = 0.3
"""Seconds without room to write after which a side says that it is stuck. Said too early, it makes the conversation an
easier one; what has to be observed stays the same."""
PROBE_PAUSE = 0.01
"""Seconds between two writes after the peer's end."""
PERIOD = (1 << 20) + 7
"""Bytes after which what a party sends repeats: no multiple of a page or a TLS record, so no shift looks right."""
STREAMS = {name: memoryview(random.Random(name).randbytes(PERIOD) * 2) for name in ("client", "server")}


class Side:
    """A conversation: what is to be done, and what was seen."""

    def __init__(self, plan: dict[str, Any], control: socket.socket) -> None:
        self.plan = plan
        self.control = control
        self.sent, self.target = 0, plan["send"]
        self.got, self.intact = 0, True
        self.end: str | None = None
        self.write_error: str | None = None
        self.gone = self.ended = False
        self.reading = plan["read"] != "stop"
        self.told: set[str] = set()
        self.deadline = time.monotonic() + plan["bound"]

    def tell(self, kind: str, value: object = True) -> None:
        """An event, each kind once."""
        if kind not in self.told:
            self.told.add(kind)
            self.control.sendall(json.dumps({kind: value}).encode() + b"\n")

    def play(self, listener: socket.socket | None) -> None:
        """The conversation to its end."""
        link = self.meet(listener)
        if self.plan["read"] != "fast":
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        link.setblocking(False)
        self.tell("met")
        # A side that began before both have met could reset the greeting away.
        if not self.control.recv(len(BEGIN), socket.MSG_WAITALL):
            sys.exit("the director is gone")
        while not self.over():
            self.turn(link)
        after = self.probe(link) if self.plan["probe"] else None
        link.close()
        saw = {"got": self.got, "intact": self.intact, "end": self.end, "sent": self.sent}
        self.tell("saw", {**saw, "write_error": self.write_error, "after": after})

    def meet(self, listener: socket.socket | None) -> socket.socket:
        """The connection, after client and server have greeted each other."""
        token = self.plan["token"].encode()
        if listener is None:
            link = socket.create_connection(tuple(self.plan["dial"]), timeout=self.plan["bound"])
            link.sendall(token)
            if link.recv(1) != b"!":
                raise ConnectionError("the server did not greet")
            return link
        while True:
            link = listener.accept()[0]
            link.settimeout(self.plan["bound"])
            # Who brings no token, or another one, tried the route, or is left over from another conversation.
            with contextlib.suppress(ConnectionError):
                if link.recv(len(token), socket.MSG_WAITALL) == token:
                    link.sendall(b"!")
                    return link
            link.close()

    def over(self) -> bool:
        """Whether this side has nothing left to do. Decides first whether it is its turn to end."""
        if time.monotonic() > self.deadline:
            self.end = self.end or f"nothing within {self.plan['bound']} s"
            return True
        if self.sent < self.target:
            return False
        if self.end == "EOF" and self.plan["answer"]:
            self.target, self.plan["answer"] = self.sent + self.plan["answer"], 0
            return False
        return self.gone or self.end is not None

    def turn(self, link: socket.socket) -> None:
        """Ends where that is due; else waits for what the link or the director brings, and takes it."""
        if self.sent >= self.target and self.plan["end"] and not self.ended:
            self.ends(link)
            if self.gone:
                return
        writing, reading = self.sent < self.target, self.reading and self.end is None
        looking = not self.reading and "unread" not in self.told
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if writing or reading or looking:
            poll.register(link, select.POLLOUT * writing | select.POLLIN * (reading or looking))
        events = dict(poll.poll(STUCK_AFTER * 1000))
        if self.control.fileno() in events:
            if not self.control.recv(64):
                sys.exit("the director is gone")
            self.reading = True
        happened = events.get(link.fileno(), 0)
        if looking and happened & select.POLLIN:
            self.tell("unread")
        if writing and not happened:
            self.tell("stuck", self.sent)
            if self.plan["end"] in {"reset", "kill"}:
                self.target = self.sent
        if writing and happened & ~select.POLLIN:
            self.write(link)
        if reading and happened & ~select.POLLOUT:
            self.read(link)

    def write(self, link: socket.socket) -> None:
        """As much as the kernel takes of one block."""
        at = self.sent % PERIOD
        try:
            self.sent += link.send(STREAMS[self.plan["me"]][at : at + min(BLOCK, self.target - self.sent)])
        except BlockingIOError:
            return
        except OSError as error:
            self.write_error = errno.errorcode[error.errno or 0]
            self.target = self.sent
        if self.sent >= self.target:
            self.tell("sent", self.sent)

    def read(self, link: socket.socket) -> None:
        """One block, compared with what the peer sends."""
        slow = self.plan["read"] == "slow"
        try:
            # No more than it wants: a reader that leaves with something unread must not have read it by chance.
            data = link.recv(SLOW_BLOCK if slow else min(BLOCK, self.plan["whole"] or BLOCK))
        except BlockingIOError:
            return
        except OSError as error:
            self.end = errno.errorcode[error.errno or 0]
            return
        if not data:
            self.end = "EOF"
        at = self.got % PERIOD
        self.intact = self.intact and STREAMS[self.plan["peer"]][at : at + len(data)] == data
        self.got += len(data)
        if slow:
            time.sleep(SLOW_PAUSE)

    def ends(self, link: socket.socket) -> None:
        """Does what the plan says when everything was sent."""
        how = self.plan["end"]
        if how == "kill":
            self.ended = True
            self.tell("ready", self.sent)
        elif how == "half-close":
            self.ended = True
            link.shutdown(socket.SHUT_WR)
            self.tell("ended", self.sent)
        elif self.got >= self.plan["whole"] or self.end is not None:
            if how == "reset":
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.close()
            self.ended = self.gone = True
            self.tell("ended", self.sent)

    def probe(self, link: socket.socket) -> str | None:
        """What a write says after the peer's end: the first error, None without one until the bound."""
        while time.monotonic() < self.deadline:
            try:
                link.send(b"x")
            except BlockingIOError:
                pass
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            time.sleep(PROBE_PAUSE)
        return None


def conversation(control: socket.socket, listener: socket.socket | None) -> None:
    """One conversation, in the forked process."""
    plan = json.loads(control.makefile().readline())
    side = Side(plan, control)
    # Blocking steps (connect, accept, greeting) end too.
    signal.alarm(2 * plan["bound"])
    side.tell("pid", os.getpid())
    try:
        side.play(listener)
    except OSError as error:
        side.tell("saw", {"failed": f"{type(error).__name__}: {error}"})
    control.shutdown(socket.SHUT_WR)
    # A socket that is closed with a `go` unread resets, which would overtake the last event.
    while control.recv(64):
        pass


def main() -> None:
    """Serves CONTROL until it is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = None
    if len(sys.argv) > 2:
        listener = socket.create_server((sys.argv[2], int(sys.argv[3])), backlog=4096)
    with socket.socket(socket.AF_UNIX) as controls:
        controls.bind(sys.argv[1])
        controls.listen(64)
        while True:
            control = controls.accept()[0]
            if os.fork() == 0:
                controls.close()
                conversation(control, listener)
                os._exit(0)
            control.close()


if __name__ == "__main__":
    main()
