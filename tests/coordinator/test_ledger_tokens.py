"""When the tokens of a CVM end, without Consul."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest

from admission.protocol import MeshPeer
from coordinator import grants
from coordinator.grants import Tokens
from coordinator.ledger import SLOTS_PREFIX, Ledger
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.slots import Holder
from runtime.consul import ConsulError
from tests.coordinator.world import make_database_manifest

MANIFEST = make_database_manifest()


class Consul:
    """Transactions on keys, and tokens, as far as the ledger uses them."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[int, bytes]] = {}
        self.tokens: set[str] = set()
        self.index = 0

    async def put(self, path: str, body: Any, **_: object) -> Any:
        """See `runtime.consul.ConsulClient`."""
        if path == "/v1/acl/token":
            self.tokens.add(body["AccessorID"])
            return {}
        operations = [operation["KV"] for operation in body]
        for each in operations:
            if each["Verb"] == "cas" and self.keys.get(each["Key"], (0, b""))[0] != each["Index"]:
                raise ConsulError(409, f"{path}: it was written meanwhile")
        self.index += 1
        for each in operations:
            if each["Verb"] == "delete":
                self.keys.pop(each["Key"], None)
            else:
                self.keys[each["Key"]] = self.index, base64.b64decode(each["Value"])
        return {"Results": [{"KV": {"ModifyIndex": self.index}} for _ in operations]}

    async def delete(self, path: str) -> None:
        """Likewise."""
        self.tokens.discard(path.rpartition("/")[2])

    async def get(self, path: str, **_: object) -> tuple[int, Any]:
        """Likewise."""
        prefix = path.removeprefix("/v1/kv/")
        return self.index, [
            {"Key": key, "ModifyIndex": index, "Value": base64.b64encode(value).decode()}
            for key, (index, value) in self.keys.items()
            if key.startswith(prefix)
        ]


class Coordinator:
    """The part of one that gives tokens to `db-0`."""

    def __init__(self, consul: Consul) -> None:
        self.consul = consul
        self.now = 1000.0
        self.ledger = Ledger(consul, Registry(lambda: None), lambda: self.now, lambda: self.now)  # type: ignore[arg-type]

    def new(self) -> Tokens:
        """Fresh tokens, each later than those before."""
        self.now += 1.0
        return grants.new_tokens(MANIFEST, "db", os.urandom, self.now)

    async def admit(self, boot: str = "one") -> Holder:
        """One attestation."""
        tokens = self.new()
        holder = tokens.noted(
            Holder(
                peer_id="db-0",
                group="db",
                instance_id="aa" * 20,
                boot_key=boot,
                leaf_key="l",
                compose_hash="c",
                renewed_at=self.now,
            )
        )
        peer = MeshPeer(peer_id="db-0", public_key=boot, address="127.90.0.40", kind="workload")
        await self.ledger.take(holder, peer)
        await self.ledger.issue(tokens.bodies(MANIFEST, "db-0", "db"))
        await self.ledger.confirm(holder)
        return self.ledger.slots["db-0"]

    async def renew(self) -> Holder:
        """A renewal with tokens."""
        tokens, holder = self.new(), self.ledger.slots["db-0"]
        await self.ledger.issue(tokens.bodies(MANIFEST, "db-0", "db"))
        await self.ledger.replace_tokens(holder, tokens)
        return self.ledger.slots["db-0"]


async def test_a_boot_has_its_tokens_and_those_before_and_eviction_ends_all() -> None:
    """However often it attests and renews: its answer may be lost, so those before go on until the next ones."""
    consul = Consul()
    it = Coordinator(consul)
    before: tuple[str, ...] = ()
    for step in (it.admit, it.admit, it.renew, it.renew, it.admit, it.renew):
        holder = await step()
        assert consul.tokens == {*holder.tokens, *before}
        assert len(holder.tokens) == 2
        before = holder.tokens
    await it.ledger.free(it.ledger.slots["db-0"], "evicted")
    assert consul.tokens == set()


async def test_another_coordinator_ends_them_too() -> None:
    """The records name them."""
    consul = Consul()
    one, other = Coordinator(consul), Coordinator(consul)
    await one.admit()
    await one.renew()
    await other.ledger.refresh()
    await other.ledger.free(other.ledger.slots["db-0"], "evicted")
    assert consul.tokens == set()


async def test_another_boot_ends_those_of_the_one_before() -> None:
    """That one has no slot any more."""
    consul = Consul()
    it = Coordinator(consul)
    await it.admit()
    await it.renew()
    it.now += 1000.0
    holder = await it.admit("two")
    assert consul.tokens == set(holder.tokens)


@pytest.mark.parametrize("step", ["admit", "renew"])
async def test_none_is_left_of_who_was_put_out_meanwhile(step: str) -> None:
    """By another coordinator, while the tokens were made: it could not revoke what was not there yet."""
    consul = Consul()
    it, other = Coordinator(consul), Coordinator(consul)
    await it.admit()
    issue = it.ledger.issue

    async def late(bodies: Any) -> None:
        await other.ledger.refresh()
        assert await other.ledger.free(other.ledger.slots["db-0"], "evicted")
        await issue(bodies)

    it.ledger.issue = late  # type: ignore[method-assign]
    with pytest.raises(RefusalError, match="db-0"):
        await (it.admit() if step == "admit" else it.renew())
    assert consul.tokens == set()


async def test_a_renewal_that_meets_another_write_is_noted_all_the_same() -> None:
    """The records have to name every token that there is."""
    consul = Consul()
    it, other = Coordinator(consul), Coordinator(consul)
    await it.admit()
    await other.ledger.refresh()
    await other.ledger.trusts(other.ledger.slots["db-0"], "d1" * 32)
    holder = await it.renew()
    await other.ledger.refresh()
    assert other.ledger.slots["db-0"].tokens == holder.tokens
    assert other.ledger.slots["db-0"].trusts == "d1" * 32
    await other.ledger.free(other.ledger.slots["db-0"], "evicted")
    assert consul.tokens == set()
    assert SLOTS_PREFIX + "db-0" in consul.keys
