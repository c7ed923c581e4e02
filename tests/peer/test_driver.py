"""Tunnels between real wireguard-go devices behind real NATs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from peer import path
from peer.link import Contact
from peer.wireguard import generate_key
from sidecar import lost
from tests import support
from tests.peer.nodes import Echo, Mesh, mesh

pytestmark = pytest.mark.netns


def _let_pass(seconds: float) -> None:
    """Traffic needs time to be lost in."""
    time.sleep(seconds)


@pytest.fixture(autouse=True)
def _quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct is tried again after 1 s instead of 30: the same code, sooner."""
    monkeypatch.setattr(path, "RETRY_FIRST", 1.0)


def test_preserving_nats_connect_directly() -> None:
    """Two CVMs behind NATs that keep ports talk to each other's public address, and packets get through."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.wait_path("direct")
        rows = made.nodes[0].call(made.links[0].status)
        assert [row.endpoint for row in rows] == [f"{made.places[1].public_address}:51820"]
        echo = Echo(made.nodes[0], made.nodes[1])
        _let_pass(0.3)
        sent, lost = echo.close()
        assert sent > 5
        assert lost == 0


@pytest.mark.parametrize("nats", [("random", "random"), ("preserving", "random")])
def test_random_nats_use_the_relay(nats: tuple[str, ...]) -> None:
    """Where a NAT picks a port per destination, the tunnel goes through the rendezvous."""
    with mesh(*nats) as made:
        made.start()
        made.wait_up()
        made.wait_path("relay")
        echo = Echo(made.nodes[0], made.nodes[1])
        _let_pass(0.3)
        assert echo.close()[1] == 0


def test_moves_lose_no_packet() -> None:
    """Direct to relay to direct and once more, under traffic: every packet comes back."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.wait_path("direct")
        echo = Echo(made.nodes[0], made.nodes[1], rate=200)
        for allow, wanted in [(False, "relay"), (True, "direct")] * 2:
            for node, link in zip(made.nodes, made.links, strict=True):
                node.call(lambda link=link, allow=allow: link.set_allow_direct(allow))
            made.wait_path(wanted)
            _let_pass(0.2)
        sent, lost = echo.close()
        assert sent > 50
        assert lost == 0


@pytest.mark.parametrize("direction", ["both", "out"])
def test_dead_direct_path_moves_to_the_relay_and_back(direction: str) -> None:
    """UDP dropped between two CVMs, both ways or one: the relay takes over within 10 s; direct returns without loss."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.wait_path("direct")
        made.network.block_udp("c0", made.places[1].public_address, direction)  # type: ignore[arg-type]
        made.wait_path("relay", seconds=10.0)
        echo = Echo(made.nodes[0], made.nodes[1])
        _let_pass(0.2)
        made.network.unblock_udp("c0")
        made.wait_path("direct", seconds=20.0)
        _let_pass(0.2)
        assert echo.close()[1] == 0


def _contact(made: Mesh) -> Contact:
    """What the first CVM's link has of the second."""
    return made.nodes[0].call(made.links[0].contacts)[0]


def _ever_lost(made: Mesh, until: Callable[[], bool]) -> bool:
    """Looks at the link as a sidecar does, for 12 s at most; whether the peer was lost before `until`."""
    watched: Mapping[str, lost.Watched] = {}
    end = time.monotonic() + 12.0
    while time.monotonic() < end and not until():
        watched = lost.watch(watched, [_contact(made)], frozenset(), time.monotonic())
        if lost.addresses(watched):
            return True
        _let_pass(0.1)
    return False


def test_a_calm_tunnel_is_not_lost_and_a_cut_one_is_until_it_is_whole() -> None:
    """Without any traffic, answers keep coming. A CVM that is cut off is asked in vain; its return is told at once."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.wait_path("direct")
        assert not _ever_lost(made, lambda: False)
        told: list[float] = []
        made.network.cut("c1")
        assert _ever_lost(made, lambda: False)
        made.nodes[0].call(lambda: setattr(made.links[0], "on_return", lambda: told.append(time.monotonic())))
        silent_since = _contact(made).heard_at
        made.network.heal("c1")
        made.nodes[0].run(support.eventually(lambda: bool(told), "its return is told"))
        heard_at = _contact(made).heard_at
        assert silent_since is not None
        assert heard_at is not None
        assert heard_at > silent_since


def test_a_change_of_path_loses_nobody() -> None:
    """The relay's first answer comes before the silence is long enough, also where no relay was asked for before."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.wait_path("direct")
        made.network.block_udp("c0", made.places[1].public_address, "both")
        assert not _ever_lost(made, lambda: made.nodes[0].call(made.links[0].status)[0].path == "relay")
        made.wait_path("relay")
        assert not _ever_lost(made, lambda: False)


def test_losing_the_rendezvous_breaks_no_direct_link() -> None:
    """Established direct tunnels do not notice a dead rendezvous; its return is picked up and it serves again."""
    with mesh("preserving", "preserving", "preserving") as made:
        made.admit(made.nodes[:2])
        made.start(admit=False)
        pair = made.nodes[:2]
        for node, link in zip(pair, made.links, strict=False):
            assert node.run(link.wait_up([each.key for each in pair], 10.0))
        echo = Echo(*pair)
        made.stop_rendezvous()
        _let_pass(2.0)
        assert echo.close()[1] == 0
        made.start_rendezvous()
        # The third CVM is admitted by the new rendezvous only, and the others learn of it there.
        made.admit()
        made.wait_up(seconds=40.0)
        made.wait_path("direct")


def test_relayed_links_survive_a_new_rendezvous() -> None:
    """A rendezvous that restarts has no pairs; peers ask again and the tunnels go on."""
    with mesh("random", "random") as made:
        made.start()
        made.wait_up()
        made.wait_path("relay")
        made.stop_rendezvous()
        made.wait_path("none", seconds=10.0)
        made.start_rendezvous()
        made.admit()
        made.wait_path("relay", seconds=40.0)
        echo = Echo(*made.nodes)
        _let_pass(0.3)
        assert echo.close()[1] == 0


def test_keys_nobody_admitted_get_nowhere() -> None:
    """A CVM that no coordinator admitted reaches neither the control API nor, with others' help, anyone."""
    with mesh("preserving", "preserving") as made:
        made.admit(made.nodes[:1])
        made.start(admit=False)
        first, second = made.links
        made.nodes[0].run(support.eventually(first.rendezvous_up, "the admitted CVM is served"))
        assert not made.nodes[1].run(second.wait_up([made.nodes[0].key], 1.0))
        assert not made.nodes[1].call(second.rendezvous_up)
        assert [row.path for row in made.nodes[0].call(first.status)] == ["none"]


def test_restarted_wireguard_is_restored() -> None:
    """After SIGKILL of wireguard-go and its restart the device has its addresses and peers, and packets flow again."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.nodes[0].kill_wireguard()
        made.nodes[0].start_wireguard()
        _flows_again(made)
        assert [row.path for row in made.nodes[0].call(made.links[0].status)] == ["direct"]


def _flows_again(made: Mesh) -> None:
    async def answered() -> None:
        def one() -> bool:
            echo = Echo(*made.nodes)
            _let_pass(0.1)
            sent, lost = echo.close()
            return sent > lost

        def up() -> bool:
            try:
                return one()
            except OSError:
                # The address goes with the device and comes back with it.
                return False

        await support.eventually(up, "packets flow again", 10.0)

    import asyncio

    asyncio.run(answered())


def test_peers_come_and_go() -> None:
    """A peer that is no longer wanted leaves the device, and comes back when it is wanted again."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        node, link = made.nodes[0], made.links[0]
        peers = [each.peer for each in link._links.values()]
        node.call(lambda: link.set_peers([]))

        def gone() -> bool:
            return made.nodes[1].key not in link._device_state.peers

        node.run(support.eventually(gone, "the peer left the device"))
        assert not node.run(link.wait_up([made.nodes[1].key], 0.1))
        node.call(lambda: link.set_peers(peers))
        made.wait_up()


def test_wait_up_says_no_for_strangers() -> None:
    """Waiting for a key that is no peer ends with False at the deadline."""
    with mesh("preserving") as made:
        made.start()
        assert not made.nodes[0].run(made.links[0].wait_up([generate_key()[1]], 0.2))
        assert made.nodes[0].run(made.links[0].wait_up([made.nodes[0].key], 0.2))
