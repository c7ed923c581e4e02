"""The zone: which names exist, whose they are, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dns import zone
from dns.zone import SrvTarget, ZoneError


def test_a_route_has_a_plain_name_and_one_below_mesh() -> None:
    """Both names of a route lead to its VIP, in any case."""
    built = zone.build({"Worker": "127.10.1.2"}, {}, {}, serial=1)
    assert built.addresses[zone.parse_name("worker")] == "127.10.1.2"
    assert built.addresses[zone.parse_name("WORKER.Mesh.")] == "127.10.1.2"


def test_names_between_a_record_and_the_apex_exist() -> None:
    """`peer.mesh`, `_tcp.mesh` and `mesh` have no records but exist; a route's parent, the root, is not ours."""
    built = zone.build({"worker": "127.10.1.2"}, {"api-0": "100.96.0.1"}, {"api": ()}, serial=1)
    for name in ("mesh", "peer.mesh", "_tcp.mesh", "_api._tcp.mesh", "api-0.peer.mesh", "worker"):
        assert zone.parse_name(name) in built.names, name
    assert () not in built.names


def test_owner_is_mesh_below_mesh_and_the_route_itself_else() -> None:
    """The SOA of an answer belongs to an ancestor of the name, or to the name."""
    built = zone.build({"worker": "127.10.1.2"}, {}, {}, serial=1)
    assert built.owner(zone.parse_name("no.such.mesh")) == (b"mesh",)
    assert built.owner(zone.parse_name("worker")) == (b"worker",)
    assert built.owner(zone.parse_name("example.org")) is None
    assert built.owner(()) is None


def test_a_label_with_a_dot_in_it_is_no_other_name() -> None:
    """The wire can carry dots inside a label; `api-0\\.peer` below mesh is not `api-0.peer.mesh`."""
    built = zone.build({}, {"api-0": "100.96.0.1"}, {}, serial=1)
    assert (b"api-0.peer", b"mesh") not in built.addresses


@pytest.mark.parametrize("label", ["", "a.b", "-a", "a-", "a b", "ä", "a" * 64, "a\n"])
def test_a_name_that_is_no_label_is_refused(label: str) -> None:
    """The error names the entry."""
    with pytest.raises(ZoneError) as caught:
        zone.build({label: "127.10.1.2"}, {}, {}, serial=1)
    assert repr(label) in str(caught.value)


@pytest.mark.parametrize("address", ["", "127.10.1", "::1", "127.10.1.256", "worker"])
def test_an_address_that_is_not_ipv4_is_refused(address: str) -> None:
    """The error names entry and address."""
    with pytest.raises(ZoneError, match=r"'worker'.*expected an IPv4 address"):
        zone.build({"worker": address}, {}, {}, serial=1)


def test_names_that_differ_in_case_only_are_refused() -> None:
    """DNS has no case, so the two would be one."""
    with pytest.raises(ZoneError, match="same DNS name"):
        zone.build({"worker": "127.10.1.2", "Worker": "127.10.1.3"}, {}, {}, serial=1)


def test_localhost_is_refused() -> None:
    """Resolvers answer localhost themselves, so a route of that name could never be reached."""
    with pytest.raises(ZoneError, match="localhost"):
        zone.build({"localhost": "127.10.1.2"}, {}, {}, serial=1)


def test_a_service_keeps_only_instances_whose_peer_is_known() -> None:
    """A target that does not resolve would only cost its reader a second question."""
    instances = (SrvTarget(peer_id="api-1", port=1), SrvTarget(peer_id="api-0", port=1), SrvTarget(peer_id="x", port=1))
    built = zone.build({}, {"api-0": "100.96.0.1", "api-1": "100.96.0.2"}, {"api": instances}, serial=1)
    assert [target.peer_id for target in built.services[zone.parse_name("_api._tcp.mesh")]] == ["api-0", "api-1"]


def test_a_zone_does_not_change() -> None:
    """Neither its fields nor its tables take assignments, and a later change of the input does not reach it."""
    routes = {"worker": "127.10.1.2"}
    built = zone.build(routes, {}, {}, serial=1)
    routes["api"] = "127.10.1.3"
    assert zone.parse_name("api") not in built.addresses
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.serial = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        built.addresses[zone.parse_name("api")] = "127.10.1.3"  # type: ignore[index]


@given(st.lists(st.sampled_from([b"127", b"10", b"0", b"01", b"256", b"x", b"", b"\xb2"]), max_size=6))
def test_any_reverse_name_is_judged(labels: list[bytes]) -> None:
    """Whatever its labels; ours only with the octets of a pool as one writes them."""
    built = zone.build({}, {}, {}, serial=1, pools=("127.10.0.0/16",))
    owner = built.owner((*labels, *zone.REVERSE))
    assert owner == ((b"10", b"127", *zone.REVERSE) if labels[-2:] == [b"10", b"127"] else None)


def test_search_domains_are_names() -> None:
    """Longest first, each once, in lower case; the root and our own are none."""
    found = zone.search_names(("b.example", "A.b.example.", ".", "", "mesh", "x.mesh", "b.example"))
    assert found == ((b"a", b"b", b"example"), (b"b", b"example"))


def test_an_address_outside_the_pools_has_no_name_here() -> None:
    """A route may be pinned to one, and its reverse name is somebody else's."""
    built = zone.build({"worker": "127.20.1.2"}, {}, {}, serial=1, pools=("127.10.0.0/16",))
    assert dict(built.pointers) == {}


@given(st.integers(min_value=0, max_value=2**70))
def test_the_serial_fits_32_bits(serial: int) -> None:
    """A manifest epoch of any size gives a serial that can be encoded."""
    assert 0 <= zone.build({}, {}, {}, serial=serial).serial < 2**32


def test_only_single_labels_and_names_below_mesh_could_be_ours() -> None:
    """Nothing else has to wait for the zone."""
    could = [
        name for name in ("worker", "a.mesh", "mesh", "a.b", "mesh.org") if zone.could_be_ours(zone.parse_name(name))
    ]
    assert could == ["worker", "a.mesh", "mesh"]
    assert not zone.could_be_ours(())
