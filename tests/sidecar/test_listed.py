"""A CVM that somebody else took out of Consul's catalog is there again at once."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.tasks import TaskScope
from sidecar.listed import Listed, lists
from tests.sidecar.gossip import say_left
from tests.sidecar.test_agent import follow, joined, listen
from tests.support import eventually, soon


@pytest.mark.parametrize(
    ("tree", "wanted"),
    [
        ({"Node": {"Node": "api-0", "Address": "100.96.1.2"}, "Services": {}}, True),
        ({"Node": {"Node": "api-0", "Address": "100.96.1.3"}, "Services": {}}, False),
        ({"Node": {"Node": "api-0"}}, False),
        (None, False),
        ({"Node": None}, False),
        ([], False),
    ],
)
def test_a_node_is_listed_by_consuls_answer(tree: Any, wanted: bool) -> None:
    """Nothing else is one, and no node that another CVM has made under this one's name."""
    assert lists(tree, "100.96.1.2") is wanted


async def test_a_leave_that_another_forged_is_undone() -> None:
    """Whoever has the gossip key says that this CVM has left. Its node and its service are gone; and back, though its
    agent never hears of it.
    """
    async with joined() as it, TaskScope() as scope:
        kept = await follow(it, scope)
        back: list[int] = []
        coordinator = it.made.manifest.coordinators.peers[0].address

        def on_back() -> None:
            back.append(1)
            it.registrar.restarted()

        own = Listed(it.consul, "api-0", it.admitted.address, lambda: it.agent.rejoin(it.admitted.servers), on_back)
        running = [scope.start("registrar", it.registrar.run()), scope.start("listed", own.run())]
        server = await listen(it.world.own.backends["api"].port)
        it.serving.set()
        await eventually(lambda: bool(it.world.catalog.get("api")), "the instance passes")
        sent = 0
        for times in (1, 2):
            for late in range(10 * times, 10 * times + 10):
                # One datagram, which may be lost; and what is undone at once may go unseen.
                say_left(it.admitted.gossip.keys[0], "api-0", coordinator, late=late * 1_000_000)
                sent += 1
                if await soon(lambda: it.world.catalog["api"] == (), 3):
                    break
            else:
                pytest.fail("the servers never believed it")
            await eventually(lambda: bool(it.world.catalog["api"]), "the instance passes again", 20)
            assert times <= len(back) <= sent, "once for each leave that was believed"
        server.close()
        await server.wait_closed()
        kept.keep({})
        for task in running:
            task.cancel()
