"""What former coordinators hand out, to whom, and when not."""

from __future__ import annotations

import base64
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from admission.protocol import MANIFEST_KEY, EstateEntry, EstateRequest
from coordinator.authority import mesh_ca
from coordinator.broker import Rules
from coordinator.estate import PAGE, TAKEN_KEY, Estate, handed_out, is_estate, page, secrets
from coordinator.keys import Inherited, derive, workload_secret
from coordinator.refusal import RefusalError
from runtime.consul import ConsulError
from runtime.secret import Secret
from tests.coordinator.world import OWNER, make_database_manifest
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.handover import Handover
from topology.manifest import Rotate

NOW = 1_800_000_000
KEYS = derive(Secret("11" * 32), "tests")
FIRST = opened(make_database_manifest(), OWNER)
FORMER = FIRST.manifest.coordinators


def handed_over(until: int = NOW + 60) -> Signed:
    """The manifest that hands the mesh over."""
    given = Handover(from_app_id=FORMER.app_id, until=until, urls=("https://former",))
    return opened(after(FIRST, coordinators=dataclasses.replace(FORMER, app_id="77" * 20, handover=given)), OWNER)


def entry(key: str, text: str = "", session: str = "") -> dict[str, Any]:
    """As Consul's KV has it."""
    found = {"Key": key, "Value": base64.b64encode(text.encode()).decode(), "Flags": 3, "ModifyIndex": 1}
    return found | ({"Session": session} if session else {})


class Kv:
    """Records with one key of a workload, beside no lock."""

    def __init__(self, signed: Signed) -> None:
        self.kv = {MANIFEST_KEY: signed.envelope, "service/db-notes": "ttl"}
        self.policies: list[dict[str, Any]] = []
        self.away = False

    async def get(self, path: str, **_: object) -> tuple[int, Any]:
        """As ConsulClient; so the next."""
        if self.away:
            raise ConsulError(500, "No cluster leader")
        if path == "/v1/acl/policies":
            return 1, []
        key = path.removeprefix("/v1/kv/")
        found = [entry(name, text) for name, text in sorted(self.kv.items()) if name == key or not key]
        return 1, found or None

    async def put(self, path: str, body: Any) -> None:
        if path == "/v1/acl/policy":
            self.policies.append(body)
        else:
            self.kv[path.removeprefix("/v1/kv/")] = body.decode()


def estate(kv: Kv, signed: Signed, *, gives: bool = True, allows: bool = True, now: float = NOW) -> Estate:
    """Of a coordinator that goes by `signed`."""

    def sibling(_: str) -> str:
        return "heir-0"

    rules = Rules(signed=signed, adopted_at=1.0)
    broker: Any = SimpleNamespace(sibling=sibling, allows_sibling=lambda _: allows, rules=rules, keys=KEYS)
    head: Any = SimpleNamespace(
        signed=signed,
        manifest=signed.manifest,
        handed_over=gives,
        is_in=lambda envelope: envelope == signed.envelope,
    )
    return Estate(kv, broker, head, before=lambda: FIRST.manifest, unix=lambda: now)  # type: ignore[arg-type]


ASKED = EstateRequest(lease="lease")


async def test_a_page_has_keys_secrets_and_authorities_once_nobody_writes_any_more() -> None:
    """The rights to write keys end before they are read. What the mesh's keys are made of is not in it."""
    kv = Kv(handed_over())
    found = await estate(kv, handed_over()).answer(ASKED)
    assert [each.key for each in found.entries] == ["service/db-notes"]
    [workload] = [each["Rules"] for each in kv.policies if each["Name"] == "mesh-workload_db"]
    assert '"service/db": {"policy": "read"}' in workload
    assert '"write"' in str([each["Rules"] for each in kv.policies]), "of services and sessions"
    assert [(each.owner, each.name) for each in found.secrets] == [("db", "database")]
    [authority] = found.authorities
    assert authority.digest == FIRST.digest
    assert authority.pem == mesh_ca(KEYS, 1, FIRST.digest).pem
    said = repr(found)
    for secret in (KEYS.workload_root, KEYS.authority_root, KEYS.gossip_root, KEYS.link_root, KEYS.management_token):
        assert secret.reveal() not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gives": False}, "no manifest hands this coordinator's mesh over"),
        ({"allows": False}, "was not admitted by epoch 2"),
        ({"now": NOW + 60}, "the time for the handover is over"),
    ],
)
async def test_nobody_else_and_not_later(changes: dict[str, Any], words: str) -> None:
    """Nothing is read, and no workload loses a right."""
    kv = Kv(handed_over())
    with pytest.raises(RefusalError, match=words):
        await estate(kv, handed_over(), **changes).answer(ASKED)
    assert kv.policies == []


async def test_a_coordinator_that_its_records_do_not_confirm_hands_nothing_out() -> None:
    """They have another manifest, or nobody leads them."""
    kv = Kv(FIRST)
    with pytest.raises(RefusalError, match="another manifest"):
        await estate(kv, handed_over()).answer(ASKED)
    kv.away = True
    with pytest.raises(RefusalError, match="cannot be read now"):
        await estate(kv, handed_over()).answer(ASKED)
    assert kv.policies == []


async def test_what_was_taken_over_is_handed_out_to_nobody() -> None:
    """It grows old from then on. To say once more that it is done is fine."""
    kv = Kv(handed_over())
    it = estate(kv, handed_over())
    for _ in range(2):
        assert (await it.answer(dataclasses.replace(ASKED, done=True))).entries == ()
    assert kv.kv[TAKEN_KEY] == "heir-0"
    with pytest.raises(RefusalError, match="heir-0 has taken the mesh over"):
        await it.answer(ASKED)


def test_locks_leader_keys_and_what_only_these_coordinators_decide_stay() -> None:
    """By key and order."""
    tree = [
        *map(entry, ("service/db/sync", "service/db/leader", "service/db/terms", "service/db-notes")),
        entry("service/locked", session="s"),
        *map(entry, ("coordinator/began", "coordinator/instances/i", "coordinator/rotation", "mesh/manifest")),
        *map(entry, ("mesh/records", "mesh/manifests/1-ab", "mesh/peers/db-0", "mesh/documents/ab")),
        entry("coordinator/slots/db-0"),
    ]
    found = [each.key for each in handed_out(tree, ("service/db/leader",))]
    assert found == [
        "coordinator/slots/db-0",
        "mesh/documents/ab",
        "mesh/manifests/1-ab",
        "mesh/peers/db-0",
        "service/db-notes",
    ]
    assert [each.key for each in handed_out([entry("leader"), entry("lead")], ("leader",))] == ["lead"]
    assert not is_estate("")


def test_pages_hold_so_much_and_follow_one_another() -> None:
    """One that is too great for any comes alone."""
    entries = tuple(EstateEntry(key=key, value="x" * (PAGE // 2), flags=0) for key in "abcd")
    entries = (*entries, EstateEntry(key="e", value="x" * (PAGE + 1), flags=0))
    seen, last, more = [], "", True
    while more:
        found, more = page(entries, last)
        seen.append("".join(each.key for each in found))
        last = found[-1].key
    assert seen == ["a", "b", "c", "d", "e"]
    assert page(entries, "e") == ((), False)
    small = tuple(EstateEntry(key=key, value="", flags=0) for key in "abc")
    assert page(small, "a") == (small[1:], False)


def test_secrets_are_those_that_workloads_have() -> None:
    """Of the rotation that counts, and where they were inherited themselves."""
    turned = dataclasses.replace(FIRST.manifest, rotate=Rotate(secrets={"database": 2}))
    [found] = secrets(KEYS, turned)
    assert (found.rotation, found.text) == (2, workload_secret(KEYS, "db", "database", 2).reveal())
    keys = dataclasses.replace(KEYS, inherited=Inherited(secrets={("db", "database", 2): Secret("old")}))
    assert secrets(keys, turned)[0].text == "old"
