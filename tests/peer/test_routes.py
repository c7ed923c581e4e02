"""Routes with an MTU each, in the kernel. The device is a veth: routes do not ask what a device is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lab.network import enter
from peer.mtu import BASE, TOP
from peer.routes import Routes
from peer.spec import InterfaceSpec, LinkError
from peer.wireguard import DeviceGoneError, generate_key, set_up_link
from tests.peer.nodes import POOL
from tests.support import network_namespace

pytestmark = pytest.mark.netns

SPEC = InterfaceSpec(private_key=generate_key()[0], address="100.96.0.7", pool=POOL, name="mesh0")
Inside = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Runs a coroutine in a namespace with the device, set up."""
    with network_namespace() as name:

        def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            with ThreadPoolExecutor(1, initializer=enter, initargs=(f"/run/netns/{name}",)) as thread:
                thread.submit(asyncio.run, _with_device(work)).result()

        yield run


async def _with_device(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    from pyroute2 import AsyncIPRoute

    async with AsyncIPRoute() as links:
        await links.link("add", ifname=SPEC.name, kind="veth", peer="other0")
        await links.link("set", index=(await links.link_lookup(ifname="other0"))[0], state="up")
    await set_up_link(SPEC)
    await work()


async def _routes() -> dict[str, int]:
    """MTU by destination of the device's routes in the main table."""
    from pyroute2 import AsyncIPRoute

    async with AsyncIPRoute() as links:
        found = [each async for each in await links.route("dump", family=2, table=254)]
    return {
        f"{each.get_attr('RTA_DST')}/{each['dst_len']}": each.get_attr("RTA_METRICS").get_attr("RTAX_MTU")
        for each in found
    }


def test_the_route_of_a_peer_has_its_mtu(inside: Inside) -> None:
    """Routes come, change and go with the peers' MTUs; the pool keeps the base, and a base needs no route."""

    async def work() -> None:
        routes = Routes(SPEC)
        pool = {POOL: BASE}
        assert await _routes() == pool
        await routes.apply({"100.96.1.1": TOP, "100.96.1.2": 1328, "100.96.1.3": BASE})
        assert await _routes() == pool | {"100.96.1.1/32": TOP, "100.96.1.2/32": 1328}
        await routes.apply({"100.96.1.1": 1328, "100.96.1.2": BASE, "100.96.1.3": 480})
        assert await _routes() == pool | {"100.96.1.1/32": 1328, "100.96.1.3/32": 480}
        await routes.apply({})
        assert await _routes() == pool

    inside(work)


def test_routes_of_an_earlier_process_are_found(inside: Inside) -> None:
    """What a device has when we come is replaced or removed, and what is lost with a device is made again."""

    async def work() -> None:
        await Routes(SPEC).apply({"100.96.1.1": TOP, "100.96.1.2": TOP})
        routes = Routes(SPEC)
        await routes.apply({"100.96.1.1": 1328})
        assert await _routes() == {POOL: BASE, "100.96.1.1/32": 1328}
        await _delete("100.96.1.1/32")
        routes.forget()
        await routes.apply({"100.96.1.1": 1328})
        assert await _routes() == {POOL: BASE, "100.96.1.1/32": 1328}

    inside(work)


def test_a_new_device_during_a_change_is_looked_at(inside: Inside) -> None:
    """Routes that were set on a device that has gone meanwhile do not count as set."""

    async def work() -> None:
        routes = Routes(SPEC)
        wanted = {f"100.96.1.{number}": TOP for number in range(1, 51)}
        async with asyncio.TaskGroup() as group:
            change = group.create_task(routes.apply(wanted))
            while not (await _routes()).keys() - {POOL}:
                assert not change.done()
            routes.forget()
        await _delete("100.96.1.1/32")
        await routes.apply(wanted)
        assert len(await _routes()) == 1 + len(wanted)

    inside(work)


def test_a_device_that_is_not_there_is_gone(inside: Inside) -> None:
    """The error is the one after which the device is awaited and set up anew."""

    async def work() -> None:
        from pyroute2 import AsyncIPRoute

        routes = Routes(SPEC)
        async with AsyncIPRoute() as links:
            await links.link("del", index=(await links.link_lookup(ifname=SPEC.name))[0])
        with pytest.raises(DeviceGoneError, match="mesh0"):
            await routes.apply({"100.96.1.1": TOP})

    inside(work)


def test_what_the_kernel_refuses_is_a_link_error(inside: Inside) -> None:
    """A device that is down takes no routes; the next attempt looks again."""

    async def work() -> None:
        from pyroute2 import AsyncIPRoute

        routes = Routes(SPEC)
        async with AsyncIPRoute() as links:
            index = (await links.link_lookup(ifname=SPEC.name))[0]
            await links.link("set", index=index, state="down")
        with pytest.raises(LinkError, match="mesh0"):
            await routes.apply({"100.96.1.1": TOP})
        await set_up_link(SPEC)
        await routes.apply({"100.96.1.1": TOP})
        assert (await _routes())["100.96.1.1/32"] == TOP

    inside(work)


async def _delete(destination: str) -> None:
    from pyroute2 import AsyncIPRoute

    async with AsyncIPRoute() as links:
        index = (await links.link_lookup(ifname=SPEC.name))[0]
        await links.route("del", dst=destination, oif=index, scope="link")
