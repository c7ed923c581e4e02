"""The table on a real loopback, in a network namespace of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vip.inside import run
from vip.netlink import VipError, VipTable

pytestmark = pytest.mark.netns


_PRELUDE = """
import asyncio, json, os, sys
from pyroute2 import IPRoute
from vip.netlink import LABEL, VipError, VipTable

def held():
    with IPRoute() as link:
        found = link.get_addr(family=2)
        return sorted([m.get_attr("IFA_LOCAL"), m["prefixlen"], m.get_attr("IFA_LABEL")] for m in found)

def add(address, interface="lo", prefix=32, **more):
    with IPRoute() as link:
        link.addr("add", index=link.link_lookup(ifname=interface)[0], address=address, prefixlen=prefix, **more)

table = VipTable("127.10.0.0/16")
"""


def inside(namespace: str, script: str) -> object:
    """What `script` prints as JSON, run in the namespace after the prelude."""
    return run(namespace, _PRELUDE + script)


LOOPBACK = ["127.0.0.1", 8, "lo"]


def test_apply_adds_removes_and_does_nothing_twice(namespace: str) -> None:
    """Each /32 carries our label; the second call finds nothing to do; an empty set takes all of ours away."""
    script = """
states = []
for wanted in (["127.10.0.1", "127.10.0.2"], ["127.10.0.1", "127.10.0.2"], ["127.10.0.2", "127.10.3.4"], []):
    table.apply(frozenset(wanted))
    states.append(held())
print(json.dumps(states))
"""
    ours = [[address, 32, "lo:mesh"] for address in ("127.10.0.1", "127.10.0.2", "127.10.3.4")]
    assert inside(namespace, script) == [
        [LOOPBACK, ours[0], ours[1]],
        [LOOPBACK, ours[0], ours[1]],
        [LOOPBACK, ours[1], ours[2]],
        [LOOPBACK],
    ]


def test_foreign_addresses_are_untouched_also_after_a_restart(namespace: str) -> None:
    """An address in the pool without our label is not ours, wanted or not; one with it is, whoever added it."""
    script = """
add("127.10.0.7")
add("127.10.0.8", label="lo:else")
add("192.0.2.1")
table.apply(frozenset({"127.10.0.1", "127.10.0.7"}))
again = VipTable("127.10.0.0/16")
again.apply(frozenset({"127.10.0.2"}))
print(json.dumps(held()))
"""
    assert inside(namespace, script) == [
        LOOPBACK,
        ["127.10.0.2", 32, "lo:mesh"],
        ["127.10.0.7", 32, "lo"],
        ["127.10.0.8", 32, "lo:else"],
        ["192.0.2.1", 32, "lo"],
    ]


def test_an_address_on_another_interface_is_an_error_that_names_it(namespace: str) -> None:
    """Nothing is changed then; an address of the other interface that nobody wants is no trouble."""
    script = """
with IPRoute() as link:
    link.link("add", ifname="eth9", kind="veth", peer="eth8")
add("127.10.0.5", "eth9")
try:
    table.apply(frozenset({"127.10.0.1", "127.10.0.5"}))
except VipError as error:
    text = str(error)
before = held()
table.apply(frozenset({"127.10.0.1"}))
print(json.dumps([text, before, held()]))
"""
    text, before, after = inside(namespace, script)  # type: ignore[misc]
    assert text.startswith("virtual address '127.10.0.5' is already on interface 'eth9'; ")
    assert before == [LOOPBACK, ["127.10.0.5", 32, "eth9"]]
    assert after == [LOOPBACK, ["127.10.0.1", 32, "lo:mesh"], ["127.10.0.5", 32, "eth9"]]


def test_without_the_right_the_error_says_what_to_grant(namespace: str) -> None:
    """As an ordinary user: adding and removing fail with the remedy; having nothing to do needs no right."""
    script = """
table.apply(frozenset({"127.10.0.1"}))
os.setuid(65534)
texts = []
table.apply(frozenset({"127.10.0.1"}))
for wanted in ({"127.10.0.1", "127.10.0.2"}, set()):
    try:
        table.apply(frozenset(wanted))
    except VipError as error:
        texts.append(str(error))
print(json.dumps(texts))
"""
    texts = inside(namespace, script)
    assert texts == [
        f"cannot {verb} virtual address '127.10.0.{last}' on 'lo': operation not permitted; "
        "grant the sidecar NET_ADMIN (docker compose: `cap_add: [NET_ADMIN]`)"
        for verb, last in (("add", 2), ("remove", 1))
    ]


def test_apply_may_be_called_from_a_running_loop(namespace: str) -> None:
    """In-line in a coroutine and from a worker thread."""
    script = """
async def main():
    table.apply(frozenset({"127.10.0.1"}))
    await asyncio.to_thread(table.apply, frozenset({"127.10.0.2"}))
asyncio.run(main())
print(json.dumps(held()))
"""
    assert inside(namespace, script) == [LOOPBACK, ["127.10.0.2", 32, "lo:mesh"]]


def test_many_addresses(namespace: str) -> None:
    """A thousand routes at once, in one call each way."""
    script = """
wanted = frozenset(f"127.10.{i // 250}.{i % 250 + 1}" for i in range(1000))
table.apply(wanted)
count = len(held())
table.apply(frozenset())
print(json.dumps([count, held()]))
"""
    assert inside(namespace, script) == [1001, [LOOPBACK]]


def test_addresses_outside_the_pool_are_refused() -> None:
    """Before anything is read or changed."""
    with pytest.raises(VipError, match=r"\['10\.0\.0\.1'\] are not in the pool '127\.10\.0\.0/16'"):
        VipTable("127.10.0.0/16").apply(frozenset({"10.0.0.1", "127.10.0.1"}))


@pytest.mark.parametrize("pool", ["", "127.10.0.0", "127.10.0.1/16", "::/64", str(Path.cwd())])
def test_a_pool_that_is_no_network_is_refused(pool: str) -> None:
    """A single address is a network of one, which is fine; host bits and other families are not."""
    if pool == "127.10.0.0":
        VipTable(pool)
        return
    with pytest.raises(ValueError, match=r"\S"):
        VipTable(pool)
