"""Addresses: stable, inside the pool, the same as Terraform computes."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology import addresses
from topology.manifest import Manifest
from topology.model import Backend, Cluster, Group, Route

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
POOLS = st.sampled_from(["127.10.0.0/16", "100.96.0.0/16", "10.1.4.0/22", "10.0.0.0/8", "172.16.0.0/19"])


@given(NAMES, POOLS)
def test_an_address_is_in_the_pool_and_not_reserved(name: str, pool: str) -> None:
    """Never the network, the broadcast address or the first 256, so never the DNS server's."""
    net = IPv4Network(pool)
    for found in (addresses.vip_of(name, pool), addresses.mesh_address_of(name, pool)):
        address = IPv4Address(found)
        assert net[addresses.RESERVED] <= address < net.broadcast_address
        assert addresses.why_not(found, pool) is None


@given(st.lists(NAMES, min_size=1, max_size=12, unique=True), st.data())
def test_adding_and_removing_groups_moves_nobody(names: list[str], data: st.DataObject) -> None:
    """Every VIP and mesh address of the groups that stay is the same in the smaller cluster."""
    stay = data.draw(st.lists(st.sampled_from(names), unique=True))
    whole, part = _cluster(names), _cluster(stay)
    assert part.vips().items() <= whole.vips().items()
    assert part.mesh_addresses().items() <= whole.mesh_addresses().items()


@given(NAMES, st.integers(1, 20), st.integers(0, 20))
def test_scaling_a_group_moves_nobody(name: str, few: int, more: int) -> None:
    """The CVMs that stay keep their addresses."""
    small, great = _cluster([name], few), _cluster([name], few + more)
    assert small.mesh_addresses().items() <= great.mesh_addresses().items()


def test_addresses_do_not_change_between_releases() -> None:
    """Recorded values: a deployed cluster must find the same addresses after an upgrade."""
    assert addresses.vip_of("api") == "127.10.167.253"
    assert addresses.vip_of("worker") == "127.10.171.184"
    assert addresses.mesh_address_of("coordinator-0") == "100.96.34.161"
    assert addresses.mesh_address_of("worker-1") == "100.96.201.77"


def test_coordinators_never_clash_with_each_other() -> None:
    """They have no group in which an address could be pinned."""
    peers = {f"coordinator-{n}": addresses.mesh_address_of(f"coordinator-{n}") for n in range(9)}
    assert addresses.clashes(peers, addresses.MESH_POOL) == ()


@given(st.dictionaries(NAMES, st.integers(256, 300), max_size=20))
def test_every_clash_is_found_and_its_remedy_is_free(offsets: dict[str, int]) -> None:
    """After each remedy is taken, nothing clashes any more."""
    net = IPv4Network(addresses.MESH_POOL)
    taken = {name: str(net[offset]) for name, offset in offsets.items()}
    found = addresses.clashes(taken, addresses.MESH_POOL)
    assert len(found) == len(taken) - len(set(taken.values()))
    for clash in found:
        assert taken[clash.first] == taken[clash.second] == clash.address
    mended = taken | {clash.second: clash.free for clash in found}
    assert addresses.clashes(mended, addresses.MESH_POOL) == ()
    assert all(addresses.why_not(clash.free, addresses.MESH_POOL) is None for clash in found)


@given(st.integers(1, 65535))
def test_a_sidecar_port_is_a_port_and_not_the_backends(port: int) -> None:
    """20000 above, or below where that would leave the range."""
    found = addresses.sidecar_port_of(port)
    assert 1 <= found < 61000
    assert abs(found - port) == 20000
    assert (found > port) == (port < 41000)


@pytest.mark.parametrize("pool", ["10.0.0.0/24", "10.0.0.1/16", "::/64", "pool"])
def test_a_pool_that_is_too_small_or_none_is_refused(pool: str) -> None:
    """A pool is an IPv4 network with room."""
    with pytest.raises(ValueError, match=r"10\.0\.0|::|pool"):
        addresses.vip_of("a", pool)


def test_the_pools_are_those_of_the_manifest() -> None:
    """One default, said in two places."""
    fields = Manifest.__dataclass_fields__
    assert fields["vip_pool"].default == addresses.VIP_POOL
    assert fields["mesh_pool"].default == addresses.MESH_POOL


def test_terraform_computes_the_same(tmp_path: Path) -> None:
    """The formula in the module's docstring, evaluated by a real Terraform."""
    terraform = shutil.which("terraform")
    if terraform is None:
        pytest.skip("terraform is not on PATH: install Terraform 1.5 or newer to compare with it")
    names = ["api", "postgres-master", *(f"worker-{n}" for n in range(6))]
    pool = addresses.MESH_POOL
    formula = "256 + parseint(substr(sha256(n), 0, 12), 16) % (pow(2, 32 - 16) - 257)"
    question = f'join(",", [for n in {str(names).replace(chr(39), chr(34))} : cidrhost("{pool}", {formula})])\n'
    result = subprocess.run([terraform, "console"], cwd=tmp_path, input=question, capture_output=True, text=True)
    theirs = result.stdout.strip().strip('"').split(",")
    assert theirs == [addresses.mesh_address_of(name, pool) for name in names], result.stderr


def _cluster(names: list[str], replicas: int = 2) -> Cluster:
    path = Path("x")
    groups = tuple(
        Group(
            name=name,
            replicas=replicas,
            compose=path,
            backends=(Backend(name=name, port=80, workload=name, owner="platform", parent=name),),
            routes=(Route(name=name, backend=name),),
        )
        for name in names
    )
    return Cluster(name="c", folder=path, coordinators=3, coordinator_compose=path, groups=groups)
