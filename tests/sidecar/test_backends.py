"""Who listens where a backend's server should, as the status says it."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from sidecar import backends
from sidecar.backends import Listener
from tests.sidecar.world import manifest

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 00000000 100 0 0 10 0\n"
ONE_HALF = "00000000000000000000000001000000"
"""::1 as a little-endian machine prints it."""


@pytest.mark.parametrize(
    ("address", "state", "wanted"),
    [
        ("0100007F:1F90", "0A", ("127.0.0.1", 8080)),
        ("00000000:0050", "0A", ("0.0.0.0", 80)),
        (f"{ONE_HALF}:2382", "0A", ("::1", 9090)),
        ("0000000000000000FFFF00000100007F:2382", "0A", ("::ffff:127.0.0.1", 9090)),
        (f"{'0' * 32}:2382", "0A", ("::", 9090)),
        ("0100007F:1F90", "01", None),
        ("0100007F", "0A", None),
        ("01007F:1F90", "0A", None),
        ("x", "0A", None),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the rows are as a little-endian machine prints them")
def test_a_line_of_the_kernels_table(address: str, state: str, wanted: tuple[str, int] | None) -> None:
    """A listening socket by address, port and inode; any other line is none."""
    found = backends.parse(ROW.format(address, state, 4711))
    assert found == (None if wanted is None else Listener(address=wanted[0], port=wanted[1], inode=4711))


def test_a_line_that_is_none() -> None:
    """The head, an empty line and the end of the table are no sockets."""
    assert [backends.parse(text) for text in (HEAD, "", "\n", "a b c d e f g h i j")] == [None] * 4


def shown(*addresses: str, port: int = 8080) -> str | None:
    """What is wrong with the backend api when its port is bound on `addresses`; Envoy has the route's VIP."""
    there = [Listener(address=address, port=port, inode=n) for n, address in enumerate(addresses)]
    found = backends.document(manifest(), "api", there)
    assert [item["name"] for item in found] == ["api"]
    problem = found[0]["problem"]
    assert problem is None or isinstance(problem, str)
    return problem


def test_a_server_on_loopback_is_fine() -> None:
    """127.0.0.1, and a wildcard beside the VIP's listener, are where the mesh calls."""
    for addresses in (["127.0.0.1"], ["127.10.0.1", "127.0.0.1"], ["127.10.0.1", "0.0.0.0"], ["127.10.0.1", "::"]):
        assert shown(*addresses) is None


def test_nobody_listens() -> None:
    """Said with the reason where the mesh's own listener is one: a wildcard cannot be bound beside it."""
    assert shown() == "nothing listens on 127.0.0.1:8080"
    told = shown("127.10.0.1")
    assert told is not None
    assert "nothing listens on 127.0.0.1:8080" in told
    assert "binds 0.0.0.0:8080 cannot: the mesh has 127.10.0.1:8080" in told
    assert shown("127.0.0.1", port=8081) == "nothing listens on 127.0.0.1:8080"


def test_a_server_on_another_address_is_not_reached() -> None:
    """`::1` alone, or the machine's own address alone: named, with what to do."""
    told = shown("::1", "192.0.2.7")
    assert told == "port 8080 is bound on ::1, 192.0.2.7 only, where the mesh does not call; bind 127.0.0.1"


def test_a_server_that_took_the_vips_port() -> None:
    """A wildcard that was there first keeps the mesh from the route's address."""
    assert "the mesh cannot have 127.10.0.1:8080 for its route" in (shown("0.0.0.0") or "")


def test_a_server_for_its_own_cvm_alone_stays_on_loopback() -> None:
    """With ingress off nobody else is meant to reach it, and the mesh does not stand before it."""
    base = manifest()
    api = base.groups["api"]
    off = dataclasses.replace(api.backends["api"], ingress="off", callers=())
    alone = dataclasses.replace(base, groups={"api": dataclasses.replace(api, backends={"api": off})}, routes=())

    def told(*addresses: str) -> str | None:
        there = [Listener(address=address, port=8080, inode=n) for n, address in enumerate(addresses)]
        return backends.document(alone, "api", there)[0]["problem"]

    for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert told(address) is None
    for address in ("0.0.0.0", "::", "::ffff:0.0.0.0", "192.0.2.7"):
        assert told("127.0.0.1", address) == (
            f"port 8080 is bound on {address}, and its ingress is off: it answers in clear whoever reaches the CVM "
            "there; bind 127.0.0.1"
        )


def test_a_group_that_the_manifest_does_not_have() -> None:
    """Before there is a manifest nothing is expected of anybody."""
    assert backends.document(dataclasses.replace(manifest(), groups={}), "api", []) == []
