"""The gossip key of real Consul agents changes while they run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.consul import ConsulClient, ConsulError
from runtime.gossip import Heard, Ring
from runtime.keyring import KeyringError, Member
from runtime.secret import Secret
from tests.sidecar.gossip import say_left
from tests.support import eventually, popen, tool

OLD, NEW, OTHER = (Secret(base64.b64encode(bytes([n]) * 32).decode()) for n in (1, 2, 3))
BEFORE, BOTH, TURNED, AFTER = (
    Ring(name=str(n), keys=keys) for n, keys in enumerate(((OLD,), (OLD, NEW), (NEW, OLD), (NEW,)))
)
_numbers = itertools.count(1)


@dataclass
class Agent:
    """One that runs."""

    name: str
    address: str
    consul: ConsulClient
    process: subprocess.Popen[bytes]
    log: Path
    ring: Ring = BEFORE

    @property
    def member(self) -> Member:
        """It, in gossip."""
        return Member(self.name, self.address)

    async def clock(self) -> int:
        """Its query clock."""
        _, tree = await self.consul.get("/v1/agent/self")
        return int(tree["Stats"]["serf_lan"]["query_time"])

    async def take(self, ring: Ring) -> None:
        """As a sidecar does."""
        await self.member.carry_out(ring, self.ring.keys, self.clock)
        self.ring = ring

    async def alive(self) -> dict[str, int]:
        """The states of all members, as it sees them. 1 is alive."""
        _, members = await self.consul.get("/v1/agent/members")
        return {each["Name"]: each["Status"] for each in members}


@contextlib.asynccontextmanager
async def mesh(agents: int) -> AsyncIterator[list[Agent]]:
    """A server, and so many agents that have joined it."""
    network = f"127.{100 + os.getpid() % 150}.{250 - next(_numbers)}"
    with tempfile.TemporaryDirectory(prefix="mesh-test-", dir="/dev/shm") as text:
        made: list[Agent] = []
        try:
            made += [
                _start(Path(text), f"node-{n}", f"{network}.{n + 1}", server=f"{network}.1") for n in range(agents + 1)
            ]
            for each in made:
                await _all_alive(each, agents + 1)
            yield made
        finally:
            for each in made:
                each.process.kill()
                each.process.wait(20)
                await each.consul.close()


async def _all_alive(agent: Agent, count: int) -> None:
    seen: dict[str, int] = {}
    async with asyncio.timeout(40):
        while list(seen.values()) != [1] * count:
            with contextlib.suppress(ConsulError):
                seen = await agent.alive()
            await asyncio.sleep(0.05)


def _start(folder: Path, name: str, address: str, server: str) -> Agent:
    socket = folder / f"{name}.sock"
    config = {
        "node_name": name, "datacenter": "tests", "data_dir": str(folder / name), "bind_addr": address,
        "addresses": {"http": f"unix://{socket}"}, "encrypt": OLD.reveal(), "disable_keyring_file": True,
        "ports": {"dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1}, "retry_join": [server],
        "gossip_lan": {"probe_interval": "500ms", "probe_timeout": "300ms", "suspicion_mult": 3,
                       "gossip_interval": "100ms"},
        "retry_interval": "1s", "disable_update_check": True, "log_level": "warn", "connect": {"enabled": False},
    } | ({"server": True, "bootstrap_expect": 1} if address == server else {})  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = popen(
            [tool("consul"), "agent", f"-config-file={path}"], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    return Agent(name=name, address=address, consul=ConsulClient(socket=socket), process=process, log=log)


async def test_a_key_changes_and_no_member_is_lost() -> None:
    """All accept both, all send the new one, the old one goes. An agent that was left out is out: whoever has the old
    key alone says nothing any more that is believed. No other agent heard of the new key by gossip.
    """
    async with mesh(3) as made:
        server, left_out, *staying = made
        watched = staying[0]
        for ring in (BOTH, TURNED, AFTER):
            for each in (server, *staying):
                await each.take(ring)
            heard = await watched.member.ask(ring.keys[0], ring.keys)
            assert heard == Heard(opens=True, sealed_by=ring.keys[0])
            seen = await server.alive()
            assert all(seen[each.name] == 1 for each in staying), seen
            # Consul's own way would have told it.
            assert not (await left_out.member.ask(NEW, (OLD, NEW))).opens
        assert await watched.member.ask(OLD, (OLD, NEW)) == Heard(opens=False, sealed_by=NEW)
        say_left(OLD, staying[1].name, server.address)
        states: dict[str, int] = {}
        believed = False
        async with asyncio.timeout(40):
            while states.get(left_out.name) != 4 or not believed:
                # It contradicts at once, so it is said until it was seen.
                say_left(NEW, staying[0].name, server.address)
                states.update(await server.alive())
                believed = believed or states[staying[0].name] == 3
                await asyncio.sleep(0.05)
        assert states[staying[1].name] == 1, "the old key was believed"


async def test_a_ring_is_carried_out_again_and_from_the_middle() -> None:
    """Repeating it changes nothing. An agent that has none of the keys that are known says so."""
    async with mesh(1) as made:
        agent = made[1]
        await agent.take(TURNED)
        await agent.take(TURNED)
        agent.ring = BEFORE
        await agent.take(AFTER)
        assert await agent.member.ask(OLD, (OLD, NEW)) == Heard(opens=False, sealed_by=NEW)
        with pytest.raises(KeyringError, match="has none of the keys"):
            await agent.member.carry_out(Ring(name="other", keys=(OTHER,)), (OLD,), agent.clock)
        agent.process.kill()
        with pytest.raises(KeyringError, match="does not answer by gossip"):
            await agent.take(AFTER)
        await eventually(lambda: agent.process.poll() is not None, "it ends")
