"""The list of members out of the mesh's hosts file."""

from __future__ import annotations

import pytest

from sidecar.files import hosts
from workloads.patroni.members import MAX_MEMBERS, addresses


def test_every_slot_is_listed() -> None:
    """The routes of the group's slots are the members, by the file that the sidecar writes."""
    names = ("patroni-0", "patroni-1", "patroni-10", "patronix-2", "patroni", "patroni-01", "postgres-master")
    routes = {name: f"127.10.0.{n}" for n, name in enumerate(names, 1)}
    assert addresses(hosts(routes, None), "patroni", 8008, "db-1") == {
        "db-0": ("127.10.0.1", 8008),
        "db-1": ("127.10.0.2", 8008),
        "db-10": ("127.10.0.3", 8008),
    }


@pytest.mark.parametrize(
    "text",
    ["", "patroni-0", "x patroni-0", "127.10.0.1 # patroni-0", "::1 patroni-0",
     "\n".join(f"127.10.0.1 patroni-{n}" for n in range(MAX_MEMBERS + 1))],
)  # fmt: skip
def test_no_list_is_an_empty_one(text: str) -> None:
    """What lists no member, or too many, is taken for no list: then nobody leads by it."""
    assert addresses(text, "patroni", 8008, "db-0") == {}
