"""`./mesh connect`: a port on this machine for programs that cannot take a CA. IO: sockets, signals, terminal.

What comes to the port goes on over TLS, to a public listener that is verified for each connection by what `./mesh
verify` has proven. A connection that cannot be verified is closed, and one whose answer was cut off is reset; the
reason is a line. When `verify` has written its folder anew, the next connection goes by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from meshctl import connect_proof, runs
from meshctl.connect_proof import Anchor, Proof
from meshctl.connect_target import Target, listen_of, place_of, refusal, target_of
from meshctl.connect_tls import Secure
from meshctl.errors import UserError
from meshctl.verify import INSECURE, lab_answers, root_in
from meshctl.verify_files import SEEN_IN_LAB
from runtime.tasks import TaskScope

MOST = 64
"""Connections at once. Each has two buffers of 64 KiB; a browser opens 6 to a host."""
DIAL_SECONDS = 15.0
"""For a connection and its TLS handshake."""
SILENT_SECONDS = 300.0
"""How long a server may say nothing once the program has said all: nobody may be left who waits for its answer."""
AGAIN_SECONDS = 1.0
"""After a connection that this machine could not take, so that the reason is said once a second at most."""
_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER (socket(7)): on, for 0 s. A close is then a reset."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a connection goes on."""

    proof: Proof
    target: Target
    tls: ssl.SSLContext
    by_root: bool

    @property
    def told(self) -> str:
        """For a person: what was verified, and by what."""
        issuer = "the mesh's root CA" if self.by_root else "the mesh CA"
        return (
            f"{self.target.route} at {self.target.place}: a certificate for {self.target.name}, by {issuer}; "
            f"{self.proof.manifest.cluster}, epoch {self.proof.manifest.epoch}, digest {self.proof.digest}"
        )

    def refusal(self, error: BaseException) -> str:
        """Why a connection failed."""
        return refusal(error, self.target, self.proof.manifest.epoch, by_root=self.by_root)

    def torn(self, reason: str) -> str:
        """What is said of an answer that ended before the server said so."""
        return (
            f"{self.target.place} ended without saying that this was all ({reason}), so the program may have a part of "
            "the answer only: ask again"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the person asked for."""

    route: str
    folder: Path
    name: str | None
    to: tuple[str, int] | None
    by_root: bool
    anchors: tuple[Anchor, ...]

    async def way(self) -> Way:
        """By what the folder proves now. UserError."""
        proof = await connect_proof.read(self.folder, self.anchors)
        target = target_of(proof.manifest, self.route, self.name, self.to, proof.ports)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.load_verify_locations(cadata=proof.root_ca if self.by_root else proof.mesh_ca)
        return Way(proof=proof, target=target, tls=tls, by_root=self.by_root)


class Ways:
    """The way of the next connection: it follows the folder, and stays where that cannot be read."""

    def __init__(self, wanted: Wanted, say: Say) -> None:
        self._wanted = wanted
        self._say = say
        self._stamp: tuple[int, int, int] | None = None
        self._now: Way | None = None
        self._one = asyncio.Lock()

    async def look(self) -> Way:
        """The way as of now. UserError the first time, where the folder proves none."""
        async with self._one:
            stamp = connect_proof.stamp(self._wanted.folder)
            if self._now is None:
                self._now = await self._wanted.way()
            elif stamp != self._stamp and stamp is not None:
                try:
                    self._now = await self._wanted.way()
                except UserError as error:
                    self._say(f"goes on as before: {error.message}")
                else:
                    self._say(f"from now on: {self._now.told}")
            self._stamp = stamp or self._stamp
            return self._now


class Port:
    """Takes connections on `listener` and leads each one on."""

    def __init__(self, listener: socket.socket, ways: Ways, say: Say) -> None:
        self._listener = listener
        self._ways = ways
        self._say = say
        self._open = 0
        self._count = 0

    async def serve(self) -> None:
        """For as long as it is not cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        async with TaskScope() as scope:
            while True:
                try:
                    client, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    # No more files, as a rule: connections that end give some back.
                    self._say(f"a connection could not be taken: {error}")
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
                self._count += 1
                if self._open >= MOST:
                    client.close()
                    self._say(f"connection {self._count} closed: {MOST} are open, and no more are led on at once")
                    continue
                self._open += 1
                scope.start(f"connection {self._count}", self._guarded(client, self._count))

    async def _guarded(self, client: socket.socket, number: int) -> None:
        try:
            with client:
                way = await self._ways.look()
                try:
                    torn = await lead(client, way)
                except (OSError, ssl.SSLError, TimeoutError) as error:
                    self._say(f"connection {number} closed: {way.refusal(error)}")
                else:
                    if torn is not None:
                        self._say(f"connection {number} reset: {way.torn(torn)}")
        finally:
            self._open -= 1


async def dial(way: Way) -> Secure:
    """A verified connection. OSError, ssl.SSLError, TimeoutError."""
    target = way.target
    async with asyncio.timeout(DIAL_SECONDS):
        reader, writer = await asyncio.open_connection(target.host, target.port)
        secure = Secure(reader, writer, way.tls, target.name)
        try:
            await secure.handshake()
        except BaseException:
            secure.close()
            raise
    return secure


async def lead(client: socket.socket, way: Way) -> str | None:
    """Leads `client` on until both ends have said all. Errors are those of `dial`.

    Returns why the answer may be a part only; None where the server said that it was all, or the program left. Where it
    may be a part the program's connection is reset: an end in order would say that it is whole.
    """
    secure = await dial(way)
    try:
        client.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=client)
        # `drain` then waits until the kernel has everything, and that is delivered after a close, too.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            torn = await _both_ways(reader, writer, secure)
            if torn is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
        finally:
            writer.close()
    finally:
        secure.close()
    return torn


async def _both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secure: Secure) -> str | None:
    spoken = asyncio.Event()
    torn: str | None = None

    async def up() -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await secure.write(data)
            await secure.end()
        spoken.set()
        wait()

    def wait() -> None:
        if spoken.is_set():
            limit.reschedule(asyncio.get_running_loop().time() + SILENT_SECONDS)

    try:
        async with asyncio.timeout(None) as limit, TaskScope() as scope:
            sending = scope.start("up", up())
            torn = await _down(writer, secure, wait)
            # What the program would still send is dropped. Programs that keep connections for later do not look whether
            # one has ended, and would hold theirs, of which there are MOST.
            sending.cancel()
    except TimeoutError:
        torn = f"it did not go on for {SILENT_SECONDS:g} s"
    return torn


async def _down(writer: asyncio.StreamWriter, secure: Secure, came: Callable[[], None]) -> str | None:
    """What the server says, until it has said that this was all; `came` is called for each part. Why it ended before
    that, if it did; that the program has left is no such reason.
    """
    while True:
        try:
            data = await secure.read()
        except OSError as error:
            return str(error)
        if not data:
            return None
        came()
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            return None


async def run(listener: socket.socket, ways: Ways, say: Say) -> None:
    """Verifies once, then serves until a signal. UserError where that first connection fails."""
    way = await ways.look()
    try:
        secure = await dial(way)
    except (OSError, ssl.SSLError, TimeoutError) as error:
        raise UserError(
            f"not connected: {way.refusal(error)}", "--to HOST:PORT says where to dial; ./mesh verify", exit_code=1
        ) from error
    secure.close()
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if way.proof.insecure:
        say(INSECURE)
    say(f"verified: {way.told}")
    say(f"listening: {place}, in clear, for programs of this machine; Ctrl-C ends it")
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What the caller ignores (nohup) stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, ended.set)
    async with TaskScope() as scope:
        serving = scope.start("port", Port(listener, ways, say).serve())
        await ended.wait()
        serving.cancel()
    say("ended")


def _of_labs() -> tuple[Anchor, ...]:
    """Those of the labs that run here, as for `./mesh verify`: the bundle may be of any of them."""
    found = []
    for run in runs.all_runs():
        with contextlib.suppress(UserError, ValueError):
            if run.alive:
                told = lab_answers(run)
                root = bytes.fromhex(told.development_root)
                ports = {(entry.group, entry.port): entry.here for entry in told.entries}
                found.append(Anchor(development_root=root, seen=run.folder / SEEN_IN_LAB, ports=ports))
    return tuple(found)


@click.command()
@click.argument("route")
@click.option("--listen", "listen", default="127.0.0.1:0", metavar="IP:PORT", help="Where. Default: a free port.")
@click.option(
    "--bundle",
    "-b",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("verify"),
    help="The folder that ./mesh verify wrote. Default: verify.",
)
@click.option(
    "--to",
    metavar="HOST:PORT",
    help="Where to dial. Default: the gateway, or where the certificate's name is; for a lab, its port.",
)
@click.option(
    "--as", "name", metavar="NAME", help="Which name of the certificate. Default: the gateway's, or the first."
)
@click.option("--by-root", is_flag=True, help="Take every manifest that the mesh's root CA certified, also older ones.")
@click.option(
    "--insecure-root",
    type=click.Path(path_type=Path),
    help="Trust this root (PEM or DER) instead of Intel's, for a lab. Default: that of the lab that runs here, if any.",
)
def command(
    route: str, listen: str, folder: Path, to: str | None, name: str | None, by_root: bool, insecure_root: Path | None
) -> None:
    """A port on this machine that leads to a public ROUTE, verified by what ./mesh verify has proven.

    For programs that cannot take a CA: they speak in clear to that port. Each connection is verified anew.
    """
    place = listen_of(listen)
    wanted = Wanted(
        route=route,
        folder=folder,
        name=name,
        to=place_of(to, "--to") if to else None,
        by_root=by_root,
        anchors=(Anchor(development_root=root_in(insecure_root)),) if insecure_root else (Anchor(), *_of_labs()),
    )
    ways = Ways(wanted, click.echo)
    try:
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        listener = socket.create_server(place, family=family, backlog=MOST)
    except OSError as error:
        raise UserError(
            f"cannot listen on {listen}: {error.strerror}", "--listen 127.0.0.1:0 takes a free port"
        ) from error
    with listener:
        asyncio.run(run(listener, ways, click.echo))
