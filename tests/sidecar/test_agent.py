"""The sidecar's Consul side against a real coordinator with a real server: admission, agent, registrations, watches."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from admission.broker import Admitted, Broker, Renewed
from admission.trust import by, coordinator_check, nothing
from lab.agent import GuestAgentServer
from runtime.children import Child
from runtime.consul import ConsulClient, ConsulError, api_socket
from runtime.gossip import Ring
from runtime.guest import GuestAgent
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import identity, sources
from sidecar.admission import Admission, Claim
from sidecar.agent import Agent
from sidecar.certificate_reading import Given
from sidecar.desired import World, desired
from sidecar.registrar import Registrar
from sidecar.slot import Wish
from sidecar.watches import Apply, Watches
from tests.admission.test_broker import ADMISSION
from tests.coordinator.world import API_COMPOSE, TEE, Cluster, cluster, cvm, free_port
from tests.sidecar.world import HoldsNothing
from tests.support import eventually, tool
from tests.topology.support import opened


@dataclass
class Joined:
    """An admitted CVM with a running agent."""

    admitted: Admitted
    child: Child
    consul: ConsulClient
    registrar: Registrar
    serving: asyncio.Event
    world: World
    agent: Agent
    made: Cluster

    async def lose_server(self) -> None:
        """Kills the only coordinator, and waits until the agent has no server to ask."""
        await self.made.lose(0)
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.consul.get("/v1/status/leader")
                except ConsulError as error:
                    if "No known" in str(error):
                        return
                await asyncio.sleep(0.05)


Asked = tuple[Admission, Admitted, identity.Keys]


class Listener(HoldsNothing):
    """Keeps the first admission."""

    def __init__(self) -> None:
        self.first: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()

    async def admitted(self, admitted: Admitted, _given: Given) -> None:
        if not self.first.done():
            self.first.set_result(admitted)

    async def renewed(self, renewed: Renewed, _given: Given) -> None:
        """Of no interest."""

    def not_admitted(self, reason: str) -> None:
        """Of no interest."""


@contextlib.asynccontextmanager
async def admission(made: Cluster, url: str, folder: Path, guest: GuestAgent) -> AsyncIterator[Asked]:
    keys = identity.load_or_make(folder)
    listener = Listener()
    verify = coordinator_check(by(opened(made.manifest)), nothing, made.pccs_url, TEE.root_der, time.time)
    claim = Claim(
        cluster="tests", group="api", wish=Wish(pinned="api-0"), identities=lambda: made.manifest.identities("api"),
        info=await guest.info(), keys=keys,
    )  # fmt: skip
    brokers = (Broker(url, verify),)
    it = Admission(lambda: brokers, guest, claim, listener)
    async with TaskScope() as scope:
        task = scope.start("admission", it.run())
        try:
            async with asyncio.timeout(20):
                yield it, await listener.first, keys
        finally:
            task.cancel()
            await it.release()


@contextlib.asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    """A cluster of one coordinator and one CVM whose agent has joined."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-", dir="/dev/shm") as text:
        folder = Path(text)
        async with cluster() as made, contextlib.AsyncExitStack() as stack:
            await made.start()
            url = (await made.ready()).url
            server = GuestAgentServer(TEE, cvm(API_COMPOSE, "api-0"))
            await server.start(folder / "dstack.sock")
            stack.push_async_callback(server.stop)
            guest = await stack.enter_async_context(GuestAgent(folder / "dstack.sock"))
            _, admitted, keys = await stack.enter_async_context(admission(made, url, folder, guest))
            consul = await stack.enter_async_context(ConsulClient(admitted.token, socket=api_socket(folder)))
            agent = Agent(Path(tool("consul")), folder, consul)
            stack.push_async_callback(agent.close)
            agent.write(admitted, keys)
            # A port of our own: tests of others run on this machine too.
            backend = dataclasses.replace(made.manifest.groups["api"].backends["api"], port=free_port())
            group = dataclasses.replace(made.manifest.groups["api"], backends={"api": backend})
            serving = asyncio.Event()
            registrar = Registrar(consul, tuple(group.backends.values()), admitted.peer_id, admitted.address, serving)

            async def started() -> None:
                await agent.up()
                registrar.restarted()

            child = Child(agent.spec(), started)
            scope = await stack.enter_async_context(TaskScope())
            running = scope.start("agent", child.run())
            try:
                async with asyncio.timeout(20):
                    await agent.joined()
                yield Joined(
                    admitted=admitted, child=child, consul=consul, registrar=registrar, agent=agent, made=made,
                    serving=serving,
                    world=World(signed=opened(made.manifest), own=group, group="api", address=admitted.address,
                                admitted_peers=admitted.peers),
                )  # fmt: skip
            finally:
                running.cancel()


async def listen(port: int) -> asyncio.Server:
    """A backend."""
    return await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)


async def follow(it: Joined, scope: TaskScope) -> Watches:
    """Watches everything that a sidecar watches; the answers go into `it.world`."""
    kept = Watches(it.consul, scope)

    def taker(change: sources.Change) -> Apply:
        def take(tree: object, index: int) -> None:
            it.world = change(it.world, tree, index)

        return take

    wanted = sources.queries(it.world, check_signatures=True)
    # The test cluster has no routes: the instances of its one service are watched as a route's would be.
    wanted = {**wanted, **sources.instances_of("api")}
    kept.keep({query: taker(change) for query, change in wanted.items()})
    return kept


async def test_admitted_cvm_joins_registers_and_sees_itself() -> None:
    """Attested by a simulated quote, its agent joins, its backend passes, and the world has all that Envoy needs."""
    async with joined() as it, TaskScope() as scope:
        assert it.admitted.peer_id == "api-0"
        socket = Path(it.agent.spec().argv[-1].removeprefix("-config-dir=")).parent / "api.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600, "nobody else's"
        kept = await follow(it, scope)
        registrar = scope.start("registrar", it.registrar.run())
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", it.world.own.backends["api"].port
        )
        it.serving.set()
        await eventually(lambda: bool(it.world.catalog.get("api")), "the instance passes")
        instance = it.world.catalog["api"][0]
        assert (instance.peer_id, instance.service_id) == ("api-0", "api-api-0")
        await eventually(lambda: kept.stale() == (), f"every watch answered: {kept.stale()}")
        assert {peer.peer_id for peer in it.world.peers} == {"api-0", "coordinator-0"}
        assert desired(it.world).services == {}, "there is no route to it"
        server.close()
        await server.wait_closed()
        await it.registrar.deregister()
        await eventually(lambda: it.world.catalog["api"] == (), "the instance is gone")
        kept.keep({})
        registrar.cancel()


async def test_killed_agent_comes_back_and_changes_are_seen_again() -> None:
    """After SIGKILL the agent is replaced, the backend registered again, and watches follow the new agent."""
    async with joined() as it, TaskScope() as scope:
        kept = await follow(it, scope)
        registrar = scope.start("registrar", it.registrar.run())
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", it.world.own.backends["api"].port
        )
        it.serving.set()
        await eventually(lambda: bool(it.world.catalog.get("api")), "the instance passes")
        before = it.child.status().pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: it.child.status().pid not in (None, before), "replaced")
        await eventually(lambda: it.registrar.complete and kept.stale() == (), "registered and followed again")
        server.close()
        await server.wait_closed()
        await eventually(lambda: it.world.catalog["api"] == (), "the lost backend is seen through the new agent")
        kept.keep({})
        registrar.cancel()


async def test_files_are_private_and_the_token_is_on_no_command_line(tmp_path: Path) -> None:
    """Key and configuration have mode 0600; argv names the folder only; a new token alone is no new certificate."""
    from admission.broker import decode_admission

    async with ConsulClient() as consul:
        agent = Agent(Path("/usr/bin/consul"), tmp_path, consul)
        admitted = decode_admission(ADMISSION, "u")
        assert agent.write(admitted, KEYS)
        assert not agent.write(admitted, KEYS)
        files = [path for path in (tmp_path / "consul").rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert agent.spec().argv == ("/usr/bin/consul", "agent", f"-config-dir={tmp_path}/consul/config")
        assert "s3cret-token" in (tmp_path / "consul/config/agent.json").read_text()
        assert not await agent.healthy()
        await agent.close()


KEYS = identity.make()


async def test_an_agent_compares_everything_after_its_reload(tmp_path: Path) -> None:
    """The new token, which makes the agent compare what it has with the servers, is the last that it is told: a reload
    takes for told what the servers never heard. A reload that fails does not keep the token back.
    """
    asked: list[str] = []
    failing: set[str] = set()

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=500 if request.path in failing else 200)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    socket = api_socket(tmp_path)
    socket.parent.mkdir()
    await web.UnixSite(runner, str(socket)).start()
    async with ConsulClient() as consul:
        agent = Agent(Path("/usr/bin/consul"), tmp_path, consul)
        await agent.use_token(Secret("new"), reload=True)
        assert asked == ["/v1/agent/reload", "/v1/agent/token/agent"]
        failing.add("/v1/agent/reload")
        with pytest.raises(ConsulError, match="reload"):
            await agent.use_token(Secret("newer"), reload=True)
        assert asked[2:] == ["/v1/agent/reload", "/v1/agent/token/agent"]
        await agent.close()
    await runner.cleanup()


async def test_recovery_token_opens_the_agent_while_no_server_can_judge() -> None:
    """With every server gone, a new token can still be given to the agent, and servers be joined again."""
    async with joined() as it:
        await it.lose_server()
        assert it.child.status().pid is not None
        await it.agent.use_token(it.admitted.token)
        assert not await it.agent.rejoin(("127.255.255.1",))


async def test_two_who_take_gossip_keys_do_it_one_after_the_other(tmp_path: Path) -> None:
    """Each takes out the keys that it does not know: at once they would take out each other's."""
    agent = Agent(Path("consul"), tmp_path, ConsulClient(socket=tmp_path / "none"))
    inside, most = 0, 0
    done: list[tuple[str, tuple[Secret, ...]]] = []

    async def carry_out(wanted: Ring, former: tuple[Secret, ...], _: object) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(9):
            # Long enough for the other one to begin.
            await asyncio.sleep(0)
        inside -= 1
        done.append((wanted.name, former))

    agent._member = SimpleNamespace(carry_out=carry_out)  # type: ignore[assignment]
    agent._ring = first = Ring(name="1", keys=(Secret("a"),))
    async with TaskScope() as scope:
        one = scope.start("one", agent.take_ring())
        await asyncio.sleep(0)
        agent._ring = Ring(name="2", keys=(Secret("b"),))
        two = scope.start("two", agent.take_ring())
    await agent.close()
    assert (one.result(), two.result(), most) == ("1", "2", 1)
    assert done == [("1", ()), ("2", first.keys)]
