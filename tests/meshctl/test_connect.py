"""`./mesh connect` to real TLS servers with the certificates of a mesh."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from lab.tee_pki import DevPki, TcbState
from meshctl import __main__ as program
from meshctl import connect, runs
from meshctl.connect import Port, Wanted, Ways
from meshctl.verify import INSECURE, LabAnswers, LabEntry
from runtime.tasks import TaskScope
from tests.coordinator.world import TEE
from tests.meshctl.proofs import ANCHORS, chain, server, write
from tests.support import ROOT, popen
from tests.workloads.support import serving
from topology.envelope import Signed
from workloads.server import document


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers what is sent, until it ends or says so with a dot."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
        if data.endswith(b"."):
            break
    writer.close()


@asynccontextmanager
async def listener(context: ssl.SSLContext) -> AsyncIterator[int]:
    """An echo over TLS; yields its port."""
    made = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    async with made:
        yield made.sockets[0].getsockname()[1]


class Person:
    """Somebody with a folder of `./mesh verify`, and what the command said."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.history = chain(3, *names)
        self.folder = folder / "verify"
        self.place = folder
        self.said: list[str] = []
        self.root = folder / "root.der"
        self.root.write_bytes(TEE.root_der)
        write(self.folder, self.history[:2])

    def served(self, head: Signed, *names: str) -> ssl.SSLContext:
        """A public server's context under `head`."""
        return server(self.place, head, *names)

    def wanted(self, port: int, *, by_root: bool = False, name: str | None = None) -> Wanted:
        """What is asked for."""
        return Wanted(
            route="api", folder=self.folder, name=name, to=("127.0.0.1", port), by_root=by_root, anchors=ANCHORS
        )

    @asynccontextmanager
    async def led(self, context: ssl.SSLContext) -> AsyncIterator[int]:
        """The port of this machine that leads to an echo with `context`."""
        async with listener(context) as there, self.connected(self.wanted(there)) as port:
            yield port

    @asynccontextmanager
    async def connected(self, wanted: Wanted) -> AsyncIterator[int]:
        """The port of this machine."""
        with socket.create_server(("127.0.0.1", 0)) as own:
            # Small buffers of the kernel: a slow program then fills them, and those of the command.
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ways = Ways(wanted, self.said.append)
            await ways.look()
            port = Port(own, ways, self.said.append)
            async with TaskScope() as scope:
                task = scope.start("port", port.serve())
                yield own.getsockname()[1]
                task.cancel()


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    """One who has verified epoch 2 of a mesh whose api is public as web."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Person(tmp_path, "web")


async def ask(port: int, data: bytes) -> bytes:
    """What comes back for `data`, to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_bytes_go_both_ways(person: Person) -> None:
    """Several connections at once, and more than fits into any buffer."""
    whole = os.urandom(3 << 20).replace(b".", b",") + b"."

    async def whole_way(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with TaskScope() as scope:
            scope.start("sender", _send(writer, whole))
            found = await reader.read()
        writer.close()
        return found

    async with person.led(person.served(person.history[1], "web")) as port:
        assert await asyncio.gather(ask(port, b"a."), ask(port, b"b."), whole_way(port)) == [b"a.", b"b.", whole]
    assert person.said == []


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_another_generation_is_refused_by_name(person: Person) -> None:
    """The mesh has gone on to epoch 3: closed without a byte, until it is verified again; the root's client goes on."""
    async with listener(person.served(person.history[2], "web")) as there:
        async with person.connected(person.wanted(there)) as port:
            assert await ask(port, b"a.") == b""
            assert len(person.said) == 1
            assert person.said[0].startswith(
                f"connection 1 closed: the certificate at 127.0.0.1:{there} does not verify ("
            )
            assert "the mesh CA of epoch 2 has not issued it: another manifest is in force" in person.said[0]
            await asyncio.to_thread(write, person.folder, person.history)
            assert await ask(port, b"a.") == b"a."
            assert person.said[1].startswith("from now on: api at ")
            assert f"epoch 3, digest {person.history[2].digest}" in person.said[1]
        async with person.connected(person.wanted(there, by_root=True)) as port:
            assert await ask(port, b"b.") == b"b."


async def test_a_stranger_is_refused_also_by_the_root(person: Person, tmp_path: Path) -> None:
    """Whoever has another CA."""
    from tests.xds.pki import Authority

    async with listener(Authority().server(tmp_path, "web")) as there:
        for by_root in (False, True):
            async with person.connected(person.wanted(there, by_root=by_root)) as port:
                assert await ask(port, b"a.") == b""
    assert ["has not issued it" in line for line in person.said] == [True, True]


async def test_a_certificate_for_another_name_is_refused(person: Person) -> None:
    """Of the right CA."""
    async with person.led(person.served(person.history[1], "other")) as port:
        assert await ask(port, b"a.") == b""
    assert person.said[0].endswith(": it is not for web")


async def test_a_folder_that_is_broken_meanwhile_changes_nothing(person: Person) -> None:
    """What was proven stays, and the reason is said once."""
    async with person.led(person.served(person.history[1], "web")) as port:
        (person.folder / "bundle.json").write_text("{")
        assert await ask(port, b"a.") == b"a."
        assert await ask(port, b"b.") == b"b."
        (person.folder / "bundle.json").unlink()
        assert await ask(port, b"c.") == b"c."
    assert [line.partition(":")[0] for line in person.said] == ["goes on as before"]


async def test_connections_are_bounded(person: Person) -> None:
    """One too many is closed, and said; when one has ended there is room again."""
    async with person.led(person.served(person.history[1], "web")) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connect.MOST)]
        for reader, writer in held:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert await ask(port, b"a.") == b""
        assert person.said == [
            f"connection {connect.MOST + 1} closed: {connect.MOST} are open, and no more are led on at once"
        ]
        reader, writer = held.pop()
        writer.write(b".")
        assert await reader.read() == b"."
        writer.close()
        async with asyncio.timeout(10):
            while await ask(port, b"a.") != b"a.":
                pass
        for _, writer in held:
            writer.close()


async def test_who_has_said_all_still_gets_the_answer(person: Person) -> None:
    """A program that closes its half, as `nc -N`; and a server that answers at the end of the question."""
    with answering(person.served(person.history[1], "web")) as there:
        async with person.connected(person.wanted(there)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"abc")
            writer.write_eof()
            assert await reader.read() == b"cba"
            writer.close()


@contextmanager
def answering(context: ssl.SSLContext) -> Iterator[int]:
    """A server that reads to the end, and then answers with all of it, the last first; yields its port."""

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.settimeout(20)
        with plain, context.wrap_socket(plain, server_side=True) as secure:
            got = b""
            while data := secure.recv(1 << 16):
                got += data
            secure.sendall(got[::-1])
            secure.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


@contextmanager
def cutting(context: ssl.SSLContext, answer: bytes, end: Callable[[ssl.SSLSocket], object]) -> Iterator[int]:
    """A server that answers the first byte with `answer` and then does `end`; yields its port."""

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.settimeout(20)
        with plain, context.wrap_socket(plain, server_side=True) as secure:
            secure.recv(1)
            secure.sendall(answer)
            end(secure)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


async def test_an_answer_that_was_cut_off_does_not_look_whole(person: Person) -> None:
    """Anybody on the way can send a FIN; TLS has a word of its own for the end, and it is missing."""
    context = person.served(person.history[1], "web")
    with cutting(context, b"balance: 1", lambda secure: secure.shutdown(socket.SHUT_WR)) as there:
        async with person.connected(person.wanted(there)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"?")
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(20):
                    await reader.read()
            writer.close()
    assert len(person.said) == 1
    assert person.said[0].startswith(f"connection 1 reset: 127.0.0.1:{there} ended without saying that this was all (")


async def test_a_slow_program_gets_the_whole_answer(person: Person) -> None:
    """Its buffers are full when the server ends: what it has not taken yet is not dropped."""
    whole = os.urandom(48 << 10)
    loop = asyncio.get_running_loop()

    def end(secure: ssl.SSLSocket) -> None:
        # It says the end, and does not get the other side's.
        with suppress(OSError):
            secure.unwrap()

    with cutting(person.served(person.history[1], "web"), whole, end) as there:
        async with person.connected(person.wanted(there)) as port:
            with socket.socket() as program:
                program.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                program.setblocking(False)
                await loop.sock_connect(program, ("127.0.0.1", port))
                await loop.sock_sendall(program, b"?")
                got = await loop.sock_recv(program, 1)
                # Time to go wrong; the outcome does not hang on it.
                await asyncio.sleep(0.3)
                async with asyncio.timeout(20):
                    while data := await loop.sock_recv(program, 1 << 12):
                        got += data
    assert got == whole
    assert person.said == []


@contextmanager
def command(person: Person, port: int, *more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`./mesh connect`, once it has said where it listens; and those lines."""
    argv = [
        sys.executable,
        "-m",
        "meshctl",
        "connect",
        "api",
        "--to",
        f"127.0.0.1:{port}",
        "-b",
        str(person.folder),
        "--insecure-root",
        str(person.root),
        *more,
    ]
    process = popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        yield process, [process.stdout.readline() for _ in range(3)]
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_what_it_verified_and_ends_at_a_signal(person: Person, number: signal.Signals) -> None:
    """A plain HTTP client gets the answer of an HTTPS server."""
    head = person.history[1]
    paths = {"GET /api/list": lambda _: document([1])}
    with serving(paths, person.served(head, "web")) as site, command(person, site.server_port) as (process, said):
        assert said[0] == f"{INSECURE}\n"
        assert said[1] == (
            f"verified: api at 127.0.0.1:{site.server_port}: a certificate for web, by the mesh CA; tests, epoch 2, "
            f"digest {head.digest}\n"
        )
        place = said[2].removeprefix("listening: ").partition(",")[0]
        done = subprocess.run(
            ["curl", "-sS", f"http://{place}/api/list"], capture_output=True, text=True, timeout=20, check=True
        )
        assert done.stdout == "[1]\n"
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


def test_the_command_refuses_to_begin(person: Person, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a folder; where nobody is; where another answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = free.getsockname()[1]
    root = ("--insecure-root", str(person.root))
    to = ("--to", f"127.0.0.1:{gone}", *root)
    assert program.run(["connect", "api", "-b", str(tmp_path / "none"), *to]) == 2
    assert "there is nothing to verify by" in capsys.readouterr().err
    assert program.run(["connect", "api", "-b", str(person.folder), *to]) == 1
    assert f"not connected: 127.0.0.1:{gone} cannot be reached" in capsys.readouterr().err
    with serving({}, person.served(person.history[2], "web")) as site:
        there = ("--to", f"127.0.0.1:{site.server_port}")
        assert program.run(["connect", "api", "-b", str(person.folder), *there, *root]) == 1
    assert "the mesh CA of epoch 2 has not issued it" in capsys.readouterr().err


def test_of_several_labs_that_run_the_bundle_is_of_any(
    person: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without --insecure-root, and without --to its port is dialled; a broken one stands in no other's way."""
    roots = {"broken": "no hex", "other": DevPki(b"another", TcbState()).root_der.hex(), "own": TEE.root_der.hex()}
    monkeypatch.setattr(runs, "all_runs", lambda: [runs.Run(name, tmp_path / name) for name in (*roots, "ended")])
    monkeypatch.setattr(runs.Run, "alive", property(lambda run: run.name in roots))
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as strange:
        gone, other = free.getsockname()[1], strange.getsockname()[1]
    entries = {"own": (LabEntry(group="api", port=443, here=gone),)}
    entries["other"] = (LabEntry(group="api", port=443, here=other),)
    answers = {
        name: LabAnswers(url="", owners="", development_root=root, entries=entries.get(name, ()))
        for name, root in roots.items()
    }
    monkeypatch.setattr(connect, "lab_answers", lambda run: answers[run.name])
    for to in ((), ("--to", f"127.0.0.1:{gone}")):
        assert program.run(["connect", "api", "-b", str(person.folder), *to]) == 1
        assert f"not connected: 127.0.0.1:{gone} cannot be reached" in capsys.readouterr().err
