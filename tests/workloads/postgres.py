"""A real PostgreSQL for tests: one server on loopback, gone afterwards."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import popen, tool

SECONDS = 60.0
_AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
"""PostgreSQL refuses uid 0. In a user namespace of its own it is somebody else, and files stay the caller's."""


@dataclass(slots=True)
class Server:
    """The server; `start` and `kill` may be called again and again."""

    folder: Path
    binaries: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> dict[str, object]:
        """The fields of `workloads.dbclients.Target`."""
        return {"host": "127.0.0.1", "port": self.port, "user": "postgres", "database": "postgres", "password_file": ""}

    def start(self) -> None:
        """Starts it and waits until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "mesh.peer_id": "postgres-7",
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        argv = [*_AS_USER, str(self.binaries / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = popen([*argv, *options], stdout=log, stderr=log)
        ask = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        end = time.monotonic() + SECONDS
        while subprocess.run(ask, check=False).returncode != 0:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, f"PostgreSQL does not answer after {SECONDS} s"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; its children see that within moments."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def postgres(folder: Path) -> Iterator[Server]:
    """A running server with an empty database, in which anybody on loopback is `postgres`."""
    binaries = Path(tool("postgres")).parent
    argv = [*_AS_USER, str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust"]
    done = subprocess.run([*argv, "--no-sync", "-E", "UTF8", "--locale=C"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(folder=folder, binaries=binaries, port=port)
    try:
        server.start()
        yield server
    finally:
        server.kill()
