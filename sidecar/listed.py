"""Keeps this CVM's node in Consul's catalog while its agent lives. IO: Consul.

All agents share one gossip key, so any of them can say in another's name that it leaves. The servers believe it: they
take the node out of the catalog, with its services and sessions, and nobody tells the node, for gossip does not talk to
who has left (memberlist's `gossip`: only who is dead hears of it, and contradicts). Measured with Consul 1.22.7: two
packets, and the node is gone after 5 to 13 ms, for 53 s, until the agent exchanges its whole state with another one
(every 30 s, with anybody). Joining a server is such an exchange, so whoever misses itself joins at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from runtime.consul import ConsulClient, ConsulError

log = logging.getLogger(__name__)

WAIT_SECONDS = 300.0
"""Of a query that waits for a change."""
AGAIN_SECONDS = 1.0
"""Between two attempts to be listed again: each exchanges the whole state of gossip."""
RETRY_SECONDS = 0.5
"""After a query that failed: the agent restarts, or has no server to ask."""


def lists(tree: Any, address: str) -> bool:
    """Whether there is a node at `address`, by the answer of `/v1/catalog/node/<name>`. Pure.

    Once this CVM is said to have left, whoever has the gossip key may join under its name, from an address of its own.
    One that claims this CVM's address is contradicted by this CVM's agent, which is asked there.
    """
    node = tree.get("Node") if isinstance(tree, dict) else None
    return isinstance(node, dict) and node.get("Address") == address


class Listed:
    """The node `peer_id` at the mesh address `address`, whose agent is asked through `consul`."""

    def __init__(
        self,
        consul: ConsulClient,
        peer_id: str,
        address: str,
        rejoin: Callable[[], Awaitable[object]],
        on_back: Callable[[], None],
    ) -> None:
        """`rejoin` has the agent join the servers. `on_back`: called when the node is listed again; its services are
        not yet.
        """
        self._consul = consul
        self._path, self._address = f"/v1/catalog/node/{peer_id}", address
        self._rejoin = rejoin
        self._on_back = on_back

    async def run(self) -> None:
        """Until cancelled."""
        index: int | None = None
        missing = False
        while True:
            try:
                # A server that has just restarted may not have applied its log: it would miss everybody.
                index, tree = await self._consul.get(
                    self._path,
                    index=index,
                    wait=AGAIN_SECONDS if missing else WAIT_SECONDS,
                    params={"consistent": ""},
                )
            except ConsulError:
                index = None
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not lists(tree, self._address):
                if not missing:
                    log.warning("the servers do not list this CVM: gossip says that it has left; joining them again")
                missing = True
                await self._rejoin()
            elif missing:
                missing = False
                log.info("the servers list this CVM again")
                self._on_back()
