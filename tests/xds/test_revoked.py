"""A caller that is revoked in the middle of a transfer, beside another one that is not. Two real Envoys."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

from runtime.tasks import TaskScope
from tests.support import eventually
from tests.xds.mesh import closing, echo, pair
from tests.xds.test_transport import OTHER, Stream, third_party

BLOCK = bytes(range(256)) * 256
AFTER = 64
"""Blocks (64 KiB each) that the other caller still sends after the cut."""


class Transfer:
    """Blocks that are sent on a stream and come back, until it is told to end or the stream is cut."""

    def __init__(self, stream: Stream) -> None:
        self._reader, self._writer = stream
        self.sent, self.back = hashlib.sha256(), hashlib.sha256()
        self.blocks = 0
        self.last: int | None = None
        """The number of blocks after which it ends."""
        self.cut = False

    async def run(self) -> None:
        """Sends and compares, block by block."""
        try:
            while self.last is None or self.blocks < self.last:
                self._writer.write(BLOCK)
                self.sent.update(BLOCK)
                self.back.update(await self._reader.readexactly(len(BLOCK)))
                self.blocks += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            self.cut = True


async def test_a_caller_that_is_revoked_in_the_middle_is_cut_and_another_ones_transfer_is_whole() -> None:
    """Its connection ends though it is busy; every byte of the other one comes back, before and after."""
    async with pair(serve=echo) as both, third_party(both) as dial, contextlib.AsyncExitStack() as stack:
        streams = [await both.dial(), await dial()]
        for _, writer in streams:
            stack.enter_context(closing(writer))
        revoked, kept = (Transfer(stream) for stream in streams)
        async with TaskScope() as scope:
            for transfer, name in ((revoked, "revoked"), (kept, "kept")):
                scope.start(name, transfer.run())
            await eventually(lambda: min(revoked.blocks, kept.blocks) > 8, "both are under way")
            await both.callee.apply(both.ingress(OTHER))
            await eventually(lambda: revoked.cut, "the revoked caller's connection is cut")
            kept.last = kept.blocks + AFTER
        assert not kept.cut
        assert (kept.blocks, kept.back.digest()) == (kept.last, kept.sent.digest())
