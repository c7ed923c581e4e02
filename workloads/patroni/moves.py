"""Ends a member whose CVM becomes another peer of the mesh. IO: the sidecar's `identity.json`.

A member's name, addresses and registrations are its peer's. A CVM whose slot went to another one gets a slot that is
free, and its programs start anew as that peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

IDENTITY_SECONDS = 1.0
"""Between two looks at the file. The sidecar writes it once in a boot, and again when this CVM becomes another peer."""
ANEW = 75
"""Exit code: to be started anew, as the sidecar's own (EX_TEMPFAIL of sysexits.h)."""


async def live(member: Coroutine[Any, Any, int], peer_id: str, identity: Path) -> int:
    """The exit code of `member`; or ANEW, once the sidecar says in the file `identity` that this CVM is another peer
    than `peer_id`: a member's name, addresses and registrations are its peer's, so it stops in order and starts anew.
    """
    async with TaskScope() as scope:
        life = scope.start("member", member)
        other = scope.start("identity", _until_another_peer(peer_id, identity))
        await asyncio.wait({life, other}, return_when=asyncio.FIRST_COMPLETED)
        moved = not life.done()
        for task in (life, other):
            task.cancel()
    return ANEW if moved else life.result()


async def _until_another_peer(peer_id: str, identity: Path) -> None:
    """Returns when the file names another peer. One that is not there or not whole says nothing."""
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(identity.read_bytes())["peer_id"]
            if found != peer_id:
                log.warning("this CVM is another peer now: starting anew", extra={"was": peer_id, "is": found})
                return
        await asyncio.sleep(IDENTITY_SECONDS)
