"""The end of this member's sessions in Consul, once nothing of its database is left. IO: Consul.

Patroni's session names no health check (`config`). Most tokens can read the ID of a check, and a token that may write
any service may put a failing check of that ID on another's node: that would take the leader key away. So a session is
ended by this supervisor when the processes of its member have ended, by the coordinators when gossip has given its CVM
up (`coordinator.sessions`), and by its own TTL in whatever other case.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from runtime.consul import ConsulClient, ConsulError

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1


def own(sessions: Any, name: str) -> list[str]:
    """IDs of the sessions called `name`, by the answer of `/v1/session/node/<node>`. Pure."""
    return [
        str(entry["ID"])
        for entry in (sessions if isinstance(sessions, list) else ())
        if isinstance(entry, dict) and entry.get("Name") == name and entry.get("ID")
    ]


class Sessions:
    """The sessions of Patroni on this member."""

    def __init__(self, consul: ConsulClient, cluster: str, peer_id: str) -> None:
        self._consul = consul
        self._node = peer_id
        self._name = f"{cluster}-{peer_id}"
        """What Patroni calls its session: `<scope>-<name>`."""

    async def end(self) -> None:
        """Destroys them; returns when the servers say that there is none. Waits for servers that do not answer."""
        told = ""
        while True:
            try:
                # The Raft leader answers once it has made sure that it is: no session that was just made is missed.
                _, found = await self._consul.get(f"/v1/session/node/{self._node}", params={"consistent": ""})
                left = own(found, self._name)
                if not left:
                    return
                for session in left:
                    await self._consul.put(f"/v1/session/destroy/{session}")
                log.info("session ended", extra={"sessions": left})
                # Consul answers when Raft has it: the session is gone, and the keys that it held.
                return
            except ConsulError as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("the session cannot be ended yet", extra={"reason": told})
            await asyncio.sleep(RETRY_SECONDS)
