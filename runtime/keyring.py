"""The keys of Consul's gossip in an agent that runs, changed without a restart. IO: TCP to the agent.

A member opens what is sealed with any key of its ring, and seals with one. `carry_out` gives the own agent a ring; it
travels from the process to its agent in the same CVM, and no further.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

from runtime.consul_config import SERF_PORT
from runtime.gossip import HEADER, NONCE, Change, GossipError, Heard, Ring, heard, length, ping, query, seal
from runtime.secret import Secret

ANSWER_SECONDS = 1.0
"""For one question: a round trip, or one attempt of TCP."""
LOOKS = 25
"""How often it is looked whether a change is there."""
LOOK_SECONDS = 0.02
"""Between two looks. The agent changes its ring some 1 ms after it has read that it shall."""


class KeyringError(Exception):
    """The agent has not the ring that it should have. The message says why."""


class Member:
    """The member of gossip `name` at the mesh address `address`."""

    def __init__(self, name: str, address: str) -> None:
        self._name, self._address = name, address

    async def ask(self, key: Secret, known: Sequence[Secret]) -> Heard:
        """Whether it opens what is sealed with `key`, and which of `known` it seals with. KeyringError when it does not
        answer, or something else does.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection(self._address, SERF_PORT)
                try:
                    writer.write(seal(key, ping(self._name), os.urandom(NONCE)))
                    header = await reader.readexactly(HEADER)
                    return heard(header, await reader.readexactly(length(header)), known)
                finally:
                    writer.transport.abort()
        except (OSError, EOFError, TimeoutError, GossipError) as error:
            raise KeyringError(f"{self._name} at {self._address} does not answer by gossip: {error!r:.200}") from error

    async def _say(self, key: Secret, message: bytes) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                _, writer = await asyncio.open_connection(self._address, SERF_PORT)
                writer.write(seal(key, message, os.urandom(NONCE)))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            raise KeyringError(f"{self._name} at {self._address} takes nothing by gossip: {error!r:.200}") from error

    async def carry_out(self, ring: Ring, former: Sequence[Secret], clock: Callable[[], Awaitable[int]]) -> None:
        """Gives the own agent the keys of `ring`, and takes those of `former` that are not in it. `clock` asks the
        agent for its query clock. KeyringError; then another attempt does no harm.
        """
        leaving = [key for key in former if key not in ring.keys]
        known = (*ring.keys, *leaving)
        opener = await self._opener(ring, leaving, known)

        async def change(kind: Change, key: Secret) -> None:
            number = int.from_bytes(os.urandom(4), "big")
            await self._say(opener, query(kind, key, name=self._name, time=await clock(), number=number))

        for key in ring.keys:
            if key != opener:
                await change(Change.INSTALL, key)
                await self._until(key, known, lambda it: it.opens, ring)
        first = ring.keys[0]
        if (await self.ask(first, known)).sealed_by != first:
            await change(Change.USE, first)
            await self._until(first, known, lambda it: it.sealed_by == first, ring)
        opener = first
        for key in leaving:
            await change(Change.REMOVE, key)
            await self._until(key, known, lambda it: not it.opens, ring)

    async def _opener(self, ring: Ring, leaving: Sequence[Secret], known: Sequence[Secret]) -> Secret:
        """A key that the agent has."""
        for key in (*leaving, *ring.keys):
            answer = await self.ask(key, known)
            if answer.opens:
                return key
            if answer.sealed_by is not None:
                return answer.sealed_by
        raise KeyringError(f"{self._name} has none of the keys that it was given; its agent has to start anew")

    async def _until(self, key: Secret, known: Sequence[Secret], there: Callable[[Heard], bool], ring: Ring) -> None:
        for _ in range(LOOKS):
            if there(await self.ask(key, known)):
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise KeyringError(f"{self._name} did not take the ring {ring.name}")
