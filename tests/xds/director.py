"""Directs conversations between two parties (`tests.xds.party`): starts both sides, kills, tells a reader to go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.tasks import TaskScope
from tests.support import eventually, spawn
from tests.xds import party
from tests.xds.cells import SIDES, Cell, plan, seen

_tokens = itertools.count()
Place = tuple[str, int]
Parts = Mapping[str, Mapping[str, Any]]
"""The plan of each side."""


@contextlib.asynccontextmanager
async def running(control: Path, listen: Place | None = None, within: Sequence[str] = ()) -> AsyncIterator[Path]:
    """A party's process, behind the socket `control`; a server with `listen`. `within` is a prefix of its command."""
    where = () if listen is None else (listen[0], str(listen[1]))
    process = await spawn(
        *within, sys.executable, "-I", "-S", str(party.__file__), str(control), *where, start_new_session=True
    )
    try:
        await eventually(control.exists, "a party listens")
        yield control
    finally:
        # The session: conversations that still go on are processes of their own.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


class Voice:
    """One side of a conversation, as its director hears it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.said: dict[str, Any] = {}
        self.news = asyncio.Event()

    @classmethod
    async def of(cls, control: Path, part: Mapping[str, Any]) -> Voice:
        """A side that has begun to play its part."""
        # Another process may have made the socket's name and not yet listen.
        for _ in range(1000):
            with contextlib.suppress(ConnectionError):
                voice = cls(*await asyncio.open_unix_connection(str(control)))
                break
            await asyncio.sleep(0.01)
        voice.writer.write(json.dumps(dict(part)).encode() + b"\n")
        return voice

    async def listen(self) -> None:
        """Takes events until the side is done or dead."""
        # A killed side leaves a `go` unread, or does not live to get it.
        with contextlib.suppress(ConnectionError):
            while line := await self.reader.readline():
                self.said |= json.loads(line)
                self.news.set()
        self.said.setdefault("dead", True)
        self.news.set()

    async def until(self, *kinds: str) -> None:
        """Returns when one of these events came, or the side is done."""
        while not self.said.keys() & {*kinds, "dead"}:
            self.news.clear()
            await self.news.wait()

    def kill(self) -> None:
        """SIGKILL, with its connection."""
        os.kill(self.said["pid"], signal.SIGKILL)

    def go(self) -> None:
        """Lets a reader that has stopped read on."""
        self.writer.write(b"go\n")

    def hang_up(self) -> None:
        """Lets the side's process go."""
        self.writer.write_eof()

    def saw(self) -> dict[str, Any]:
        """What the side observed; of a killed one the bytes that it had sent."""
        return dict(self.said.get("saw", {"sent": self.said.get("ready", 0)}))


class Stage:
    """A client's and a server's process, and where the client dials."""

    def __init__(self, client: Path, server: Path) -> None:
        self.controls = {"client": client, "server": server}

    async def play(self, cell: Cell, dial: Place) -> dict[str, str]:
        """What each side of a cell observes in words, the client dialling `dial`; a killed side is left out."""
        saw = await self.converse(cell, {side: plan(cell, side) for side in SIDES}, dial)
        return {
            side: seen(cell, saw[side], _handed_over(saw[other]))
            for side, other in (SIDES, SIDES[::-1])
            if "end" in saw[side] or "failed" in saw[side]
        }

    async def converse(self, cell: Cell, parts: Parts, dial: Place) -> dict[str, dict[str, Any]]:
        """What each side saw, raw; of a killed side the bytes that it had sent."""
        async with self.talking(parts, dial) as voices:
            await direct(cell, voices)
        return {side: voice.saw() for side, voice in voices.items()}

    @contextlib.asynccontextmanager
    async def talking(self, parts: Parts, dial: Place) -> AsyncIterator[dict[str, Voice]]:
        """A conversation that has begun; leaving the block waits for its end."""
        told = {"token": f"{next(_tokens):08}"}
        async with contextlib.AsyncExitStack() as stack:
            voices = {}
            for side, part in (("server", parts["server"]), ("client", {**parts["client"], "dial": dial})):
                voices[side] = await Voice.of(self.controls[side], {**part, **told})
                stack.callback(voices[side].writer.close)
            async with TaskScope() as scope:
                for side, voice in voices.items():
                    scope.start(side, voice.listen())
                for voice in voices.values():
                    await voice.until("met", "saw")
                for voice in voices.values():
                    voice.writer.write(party.BEGIN)
                yield voices
                for voice in voices.values():
                    await voice.until("saw")
                    voice.hang_up()


async def direct(cell: Cell, voices: dict[str, Voice]) -> None:
    """Kills whoever is to be killed, then lets readers go on that have stopped."""
    enders = [voices[side] for side in SIDES if cell.ender in (side, "both")]
    for voice in enders:
        if cell.end == "kill":
            await voice.until("ready", "saw")
            voice.kill()
        elif cell.ender == "both":
            await voice.until("sent", "stuck", "ended", "saw")
        else:
            await voice.until("stuck", "ended", "saw")
    for voice in voices.values():
        voice.go()


def _handed_over(saw: dict[str, Any]) -> int:
    return int(saw.get("sent", 0))
