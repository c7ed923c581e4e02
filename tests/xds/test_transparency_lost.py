"""A CVM that is lost in the middle of a conversation: two Envoys in namespaces, a wire that loses everything, and the
kernel told as the sidecars would tell it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lab.nat import drop_arrivals
from sidecar.lost import LOST_SECONDS
from tests.xds.cells import ENDLESS, SIDES, part
from tests.xds.director import Stage, running
from tests.xds.mesh import PORT, Pair
from tests.xds.test_lost_peer import CALLEE_PLACE, CALLER_PLACE, Inside, wired, within
from tests.xds.test_lost_peer import lose as lost
from xds.transport import DEAD_AFTER

pytestmark = pytest.mark.netns
BOUND = 4 * DEAD_AFTER
"""Seconds after which a side gives up."""
CONVERSATIONS: dict[str, dict[str, dict[str, object]]] = {
    "nobody sends": {},
    "the client sends": {"client": {"send": ENDLESS}},
    "the server sends": {"server": {"send": ENDLESS}},
    "both send": {"client": {"send": ENDLESS}, "server": {"send": ENDLESS}},
    "the server sends to a slow reader": {"server": {"send": ENDLESS}, "client": {"read": "slow"}},
    "the server sends to a reader that stopped": {"server": {"send": ENDLESS}, "client": {"read": "stop"}},
    "the client sends to a reader that stopped": {"client": {"send": ENDLESS}, "server": {"read": "stop"}},
}
Saw = dict[str, dict[str, dict[str, Any]]]
ERRORS = {"ECONNRESET", "EPIPE"}


async def lose(caller: str, callee: str) -> Saw:
    """What each side of each conversation saw after the wire was cut."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        place = Path(name)
        both = Pair(place)
        both.caller, both.callee = Inside("caller", place), Inside("callee", place)
        both.caller.namespace, both.callee.namespace = caller, callee
        both.address = CALLEE_PLACE
        enter = {netns: ("nsenter", f"--net=/var/run/netns/{netns}") for netns in (caller, callee)}
        async with contextlib.AsyncExitStack() as stack:
            server = running(place / "server.sock", (both.backend, PORT), enter[callee])
            stage = Stage(
                await stack.enter_async_context(running(place / "client.sock", within=enter[caller])),
                await stack.enter_async_context(server),
            )
            for node in (both.callee, both.caller):
                stack.push_async_callback(node.close)
                await node.start()
            await both.callee.apply(both.ingress())
            await both.caller.apply(both.egress())
            voices = {}
            async with contextlib.AsyncExitStack() as talks:
                for what, changes in CONVERSATIONS.items():
                    parts = {side: part(side, bound=BOUND, **changes.get(side, {})) for side in SIDES}
                    voices[what] = await talks.enter_async_context(stage.talking(parts, (both.vip, PORT)))
                for netns in (caller, callee):
                    await asyncio.to_thread(within, netns, lambda: drop_arrivals(["wire"]))
                for talk in voices.values():
                    for voice in talk.values():
                        voice.go()
                await asyncio.sleep(LOST_SECONDS)
                for netns, other in ((caller, CALLEE_PLACE), (callee, CALLER_PLACE)):
                    await asyncio.to_thread(lost, netns, other)
        return {what: {side: voice.saw() for side, voice in talk.items()} for what, talk in voices.items()}


@pytest.fixture(scope="module")
def saw() -> Saw:
    """What each side of each conversation saw: the wire is cut once, for all of them."""
    with wired() as (caller, callee):
        return asyncio.run(lose(caller, callee))


def test_a_lost_cvm_ends_every_conversation_on_both_sides(saw: Saw) -> None:
    """Whoever sends or waits, and however the reader reads: both sides learn of it, what had come is right, and a
    sender gets an error. Without a mesh a side that waits would learn of nothing."""
    for what, sides in saw.items():
        for side, observed in sides.items():
            assert observed.get("intact"), f"{what}, the {side}: {observed}"
            assert observed["end"] in {"EOF", *ERRORS}, f"{what}, the {side}: {observed}"
            if CONVERSATIONS[what].get(side, {}).get("send"):
                assert {observed["end"], observed["write_error"]} & ERRORS, f"{what}, the {side}: {observed}"


def test_what_a_lost_cvm_had_sent_does_not_look_like_all_of_it(saw: Saw) -> None:
    """A side that only reads gets an error, not an end."""
    ends = {observed["end"] for sides in saw.values() for observed in sides.values() if not observed["sent"]}
    assert ends <= ERRORS
