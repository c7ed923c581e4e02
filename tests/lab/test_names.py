"""What the CVMs of a lab are called."""

from __future__ import annotations

import pytest

from lab.names import Seen, called, machine_name


def seen(machine: str, peer_id: str | None = None, *, current: bool = True, at: float = 1.0) -> Seen:
    """A machine of the group that its name begins with."""
    return Seen(machine=machine, group=machine.partition("-")[0], peer_id=peer_id, current=current, at=at)


@pytest.mark.parametrize(
    ("machines", "wanted"),
    [
        pytest.param(
            [seen("api-cvm0", "api-1"), seen("api-cvm1", "api-0")],
            {"api-cvm1": "api-0", "api-cvm0": "api-1"},
            id="by the slots that they have, in their order",
        ),
        pytest.param(
            [seen("api-cvm0"), seen("api-cvm1", "api-0"), seen("db-cvm0", "db-0")],
            {"api-cvm1": "api-0", "api-cvm0": "api-cvm0", "db-cvm0": "db-0"},
            id="one that was never admitted",
        ),
        pytest.param(
            [seen("api-cvm0", "api-0", current=False, at=9.0), seen("api-cvm1", "api-1")],
            {"api-cvm0": "api-0", "api-cvm1": "api-1"},
            id="one that was killed is what it was",
        ),
        pytest.param(
            [seen("api-cvm0", "api-0", current=False, at=9.0), seen("api-cvm1", "api-0", at=5.0)],
            {"api-cvm1": "api-0", "api-cvm0": "api-cvm0"},
            id="the slot of one that was killed went to another",
        ),
        pytest.param(
            [seen("api-cvm0", "api-0", at=5.0), seen("api-cvm1", "api-0", at=9.0)],
            {"api-cvm1": "api-0", "api-cvm0": "api-cvm0"},
            id="the slot of one that runs was given to another",
        ),
        pytest.param(
            [seen(f"api-cvm{n}", f"api-{n}") for n in (10, 9)],
            {"api-cvm9": "api-9", "api-cvm10": "api-10"},
            id="in the order of numbers",
        ),
    ],
)
def test_a_cvm_is_called_by_its_peer_id(machines: list[Seen], wanted: dict[str, str]) -> None:
    """By its peer ID in the mesh; what is no peer, or lost its slot, by its name in the lab. No name is there twice."""
    found = called(machines)
    assert found == wanted
    assert list(found) == list(wanted)
    assert len(set(found.values())) == len(found)


def test_a_machines_name_is_never_a_peer_id() -> None:
    """Or one of the two could not be meant."""
    for group in ("api", "api-cvm", "api-1"):
        assert not machine_name(group, 0).rpartition("-")[2].isdigit()
