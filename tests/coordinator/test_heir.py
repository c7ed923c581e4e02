"""Coordinators of a new app take the mesh over, with real Consul servers, and in memory where something breaks."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import time
from typing import Any

import aiohttp
import pytest

from admission.client import CoordinatorError
from admission.protocol import (
    ESTATE,
    MANIFEST_KEY,
    RECORDS_KEY,
    EstateEntry,
    EstatePage,
    EstateRequest,
    EstateSecret,
)
from coordinator import governance
from coordinator.heir import Heir, former
from coordinator.inheritance import INHERITANCE_KEY, InheritanceError
from coordinator.keys import Inherited, derive
from coordinator.proposal import shown
from coordinator.refusal import RefusalError
from coordinator.siblings import Own
from evidence.bundle import decode
from evidence.outside import Trusted, verify
from runtime.consul import ConsulClient, ConsulError
from runtime.guest import GuestInfo
from runtime.secret import Secret
from tests.coordinator.heirs import APP, HEIR_COMPOSE, beside, moved
from tests.coordinator.setting import proposed
from tests.coordinator.test_app import attested
from tests.coordinator.world import (
    DB_COMPOSE,
    OWNER,
    OWNERS,
    TEE,
    Applicant,
    Running,
    cluster,
    cvm,
    make_boot,
    make_database_manifest,
)
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.handover import Handover

NOW = 1_800_000_000


async def value(running: Running, key: str) -> bytes | None:
    """What the records have under `key`."""
    _, entries = await running.coordinator.consul.get(f"/v1/kv/{key}")
    return base64.b64decode(entries[0]["Value"] or "") if entries else None


async def test_slots_history_keys_and_secrets_come_along() -> None:
    """From an owner's one word, set on the new coordinators. The CVMs that run are known there, and show certificates
    of both while it lasts; what they know stays secret, and the same.
    """
    async with cluster() as mesh, beside(mesh) as heirs:
        mesh.manifest = make_database_manifest(mesh.manifest)
        await mesh.start()
        lead = await mesh.ready()
        api = Applicant(url=lead.url, manifest=mesh.manifest)
        database = Applicant(url=lead.url, manifest=mesh.manifest, group="db", who=cvm(DB_COMPOSE, "db-0"))
        before = {"api-0": await api.admitted(), "db-0": await database.admitted()}
        async with ConsulClient(Secret(before["db-0"]["workload_token"]), socket=lead.consul) as workload:
            await workload.put("/v1/kv/service/db-notes", b"\x00ttl", params={"flags": "7"})
            newest = moved(mesh, heirs, lead.coordinator.head.signed)
            heirs.manifest = newest.manifest
            heir = await heirs.start(given=False, compose=HEIR_COMPOSE)
            await eventually(lambda: heir.coordinator.port != 0, "it waits for a manifest")
            assert (await proposed(heir, newest.envelope))[0] == 200
            await heirs.ready()
            assert not lead.coordinator.document()["ready"]
            assert "handed the mesh over" in str(lead.coordinator.document()["reasons"])
            with pytest.raises(ConsulError, match="403"):
                await workload.put("/v1/kv/service/db-notes", b"late")
        assert heir.coordinator.document()["admitted"] == ["api-0", "db-0"]
        assert await value(heir, "service/db-notes") == b"\x00ttl"
        history = heir.coordinator._chronicle.history  # type: ignore[union-attr]
        assert [each.manifest.epoch for each in history.chain] == [1, 2]
        reader = Trusted(
            manifest=newest.manifest, digest=newest.digest, owners=OWNERS, development_root=TEE.root_der
        )  # fmt: skip
        bundle = decode(await attested(heir, bytes(32)))
        proven = await verify(bundle, reader, nonce=bytes(32), seen=None, now=time.time())
        assert {each.peer_id for each in proven.members} == {"api-0", "db-0"}
        assert len(bundle.history) == 2, "from the first one on, over the handover"
        for who in (api, database):
            who.url, who.manifest = heir.url, newest.manifest
        now = {"api-0": await api.admitted(), "db-0": await database.admitted()}
        assert now["db-0"]["secrets"] == before["db-0"]["secrets"] != {}
        for name, answer in now.items():
            assert answer["peer_id"] == name
            assert answer["authorities_pem"].endswith(before[name]["authorities_pem"])
            assert answer["authorities_pem"] != before[name]["authorities_pem"]
            assert answer["consul"]["ca_pem"] != before[name]["consul"]["ca_pem"]


async def test_former_coordinators_hand_out_also_after_a_restart_and_once() -> None:
    """Their records have the manifest that they go by, whether their disk has it or not. Who comes to the new ones
    later has the records from these; with empty records it gets nothing that has grown old.
    """
    async with cluster() as mesh, beside(mesh, 2) as heirs:
        await mesh.start()
        lead = await mesh.ready()
        api = await Applicant(url=lead.url, manifest=mesh.manifest).admitted()
        newest = moved(mesh, heirs, lead.coordinator.head.signed)
        heirs.manifest = newest.manifest
        assert (await proposed(lead, newest.envelope))[0] == 200
        await mesh.lose(0)
        await mesh.start(given=False)
        for n in range(2):
            running = await heirs.start(n, given=False, compose=HEIR_COMPOSE)
            await eventually(lambda: running.coordinator.port != 0, "it waits for a manifest")  # noqa: B023
            assert (await proposed(running, newest.envelope))[0] == 200
        for n in range(2):
            assert (await heirs.ready(n, 40)).coordinator.document()["admitted"] == ["api-0"]
        taken = await value(heirs.running[0], INHERITANCE_KEY)
        assert taken is not None
        assert api["lease"].encode() not in taken
        for n in range(2):
            await heirs.lose(n)
            heirs.lose_disk(n)
        for n in range(2):
            await heirs.start(n, newest.manifest, compose=HEIR_COMPOSE)
        again = heirs.running[0].coordinator
        await eventually(lambda: "has taken the mesh over" in str(again.document()["reasons"]), "old records stay", 40)
        assert not again.document()["ready"]


async def right(lead: Running) -> str:
    """What the database's workload may do with its keys."""
    _, policies = await lead.coordinator.consul.get("/v1/acl/policies")
    [workload] = [each["ID"] for each in policies if each["Name"] == "mesh-workload_db"]
    _, policy = await lead.coordinator.consul.get(f"/v1/acl/policy/{workload}")
    return str(json.loads(policy["Rules"])["key_prefix"]["service/db"]["policy"])


async def test_owners_take_a_handover_back_until_it_was_done() -> None:
    """On a former coordinator, which goes on as before: its workloads write their keys again. Afterwards it is too
    late.
    """
    async with cluster() as mesh, beside(mesh) as heirs:
        mesh.manifest = make_database_manifest(mesh.manifest)
        await mesh.start()
        lead = await mesh.ready()
        newest = moved(mesh, heirs, lead.coordinator.head.signed)
        assert (await proposed(lead, newest.envelope))[0] == 200
        await governance.freeze(lead.coordinator.consul, mesh.manifest)
        assert await right(lead) == "read"
        back = opened(after(newest, coordinators=mesh.manifest.coordinators), OWNER)
        assert (await proposed(lead, back.envelope))[0] == 200
        await mesh.ready()
        while await right(lead) != "write":  # noqa: ASYNC110 - another process: there is no event to wait for
            await asyncio.sleep(0.05)
        newest = moved(mesh, heirs, back)
        heirs.manifest = newest.manifest
        await heirs.start(0, newest.manifest, compose=HEIR_COMPOSE)
        await heirs.ready()
        late = opened(after(newest, coordinators=mesh.manifest.coordinators), OWNER)
        status, refused = await proposed(lead, late.envelope)
        assert (status, refused["code"]) == (422, "MANIFEST_REFUSED")
        assert "have taken the mesh over" in str(refused["reason"])


async def test_who_comes_too_late_takes_nothing_over() -> None:
    """And says what an owner can do."""
    async with cluster() as mesh, beside(mesh) as heirs:
        await mesh.start()
        lead = await mesh.ready()
        newest = moved(mesh, heirs, lead.coordinator.head.signed, seconds=0)
        heirs.manifest = newest.manifest
        heir = await heirs.start(0, newest.manifest, compose=HEIR_COMPOSE)
        await eventually(
            lambda: "sign a manifest with a later" in str(heir.coordinator.document()["reasons"]), "it says so", 20
        )
        assert lead.coordinator.document()["ready"], "nobody took the mesh from the former ones"
        assert await value(heir, INHERITANCE_KEY) is None


async def estate_of(lead: Running, lease: str) -> tuple[int, str]:
    """Status and code of what a former coordinator answers to that lease."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.post(f"{lead.url}{ESTATE}", json={"lease": lease}) as answer,
    ):
        return answer.status, str((await answer.json()).get("code"))


async def test_nobody_else_is_handed_anything() -> None:
    """Neither a CVM of the mesh, nor a coordinator of an app that the manifest does not name, nor one with a manifest
    that does not follow the one in force.
    """
    async with cluster() as mesh, beside(mesh) as heirs:
        await mesh.start()
        lead = await mesh.ready()
        head = lead.coordinator.head.signed
        newest = moved(mesh, heirs, head)
        heirs.manifest = newest.manifest
        lease = (await Applicant(url=lead.url, manifest=mesh.manifest).admitted())["lease"]
        other = opened(after(head, leaf_hours=head.manifest.leaf_hours + 1), OWNER)
        assert (await proposed(lead, other.envelope))[0] == 200
        heir = await heirs.start(0, newest.manifest, compose=HEIR_COMPOSE)
        await eventually(
            lambda: "two were signed for one epoch" in str(heir.coordinator.document()["reasons"]), "it is refused", 20
        )
        assert lead.coordinator.document()["ready"]
        newest = moved(mesh, heirs, other)
        assert (await proposed(lead, newest.envelope))[0] == 200
        assert await estate_of(lead, lease) == (401, "LEASE_INVALID")
        foreign = cvm(HEIR_COMPOSE, "heir-0", app_id="66" * 20)
        asks = Applicant(url=lead.url, manifest=newest.manifest, group="coordinator", who=foreign)
        assert (await asks.attest("heir-0"))[0] == 403
        genuine = dataclasses.replace(asks, who=cvm(HEIR_COMPOSE, "heir-0", app_id=APP))
        assert await estate_of(lead, (await genuine.admitted("heir-0"))["lease"]) == (200, "None")


FIRST = opened(make_database_manifest(), OWNER)
INFO = GuestInfo(app_id=APP, instance_id="", compose_hash="")
KEYS = derive(Secret("22" * 32), "tests")


def handed_over(seconds: int = 3600) -> Signed:
    """The manifest that hands FIRST's mesh over."""
    given = Handover(
        from_app_id=FIRST.manifest.coordinators.app_id, until=NOW + seconds, urls=("https://one", "https://two")
    )
    own = dataclasses.replace(FIRST.manifest.coordinators, app_id=APP, handover=given)
    return opened(after(FIRST, coordinators=own), OWNER)


class Records:
    """New records in memory, which may be killed before any of their writes."""

    def __init__(self) -> None:
        self.kv: dict[str, str] = {}
        self.writes_left = 1000

    async def get(self, path: str, **_: object) -> tuple[int, Any]:
        """As ConsulClient; so the next."""
        found = self.kv.get(path.removeprefix("/v1/kv/"))
        return 1, None if found is None else [{"Value": found, "ModifyIndex": 1, "Flags": 0}]

    async def put(self, path: str, body: Any) -> None:
        assert path == "/v1/txn"
        if self.writes_left == 0:
            raise ConsulError(0, "killed")
        self.writes_left -= 1
        check, *sets = [each["KV"] for each in body]
        assert check["Verb"] == "check-not-exists"
        if check["Key"] in self.kv:
            raise ConsulError(409, "it is there")
        self.kv |= {each["Key"]: each["Value"] for each in sets}


class Former:
    """A former coordinator's estate in memory, by pages of one entry, and what it was asked."""

    def __init__(self, entries: tuple[EstateEntry, ...]) -> None:
        self.entries = entries
        self.asked: list[EstateRequest] = []

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """As `admission.broker.Broker`."""
        assert path == ESTATE
        request = EstateRequest(**body)
        self.asked.append(request)
        rest = [entry for entry in self.entries if entry.key > request.after]
        page = EstatePage(
            entries=tuple(rest[:1]),
            more=len(rest) > 1,
            secrets=(EstateSecret(owner="db", name="database", rotation=0, text="ab" * 32),),
            authorities=(),
        )
        return json.loads(json.dumps(dataclasses.asdict(page)))


def heir(records: Records, used: list[Inherited], now: float = NOW) -> Heir:
    """One whose records are `records`."""
    nobody: Any = None
    own = Own(peer_id="heir-0", info=INFO, boot=make_boot(leaf=False))
    return Heir(
        records,  # type: ignore[arg-type]
        own,
        guest=nobody,
        verifier=nobody,
        keys=KEYS,
        use=used.append,
        unix=lambda: now,
    )


ENTRIES = tuple(EstateEntry(key=f"service/{n}", value=base64.b64encode(b"%d" % n).decode(), flags=n) for n in range(4))


async def test_whatever_ends_it_it_is_done_again() -> None:
    """Killed before each of its writes, it begins anew, and the records come out the same; what is used is what they
    have.
    """
    whole: dict[str, str] = {}
    for kills in range(20):
        records, former = Records(), Former(ENTRIES)
        records.writes_left = kills
        try:
            await heir(records, [])._read(former, Secret("lease"), NOW + 5)  # type: ignore[arg-type]
        except ConsulError:
            assert INHERITANCE_KEY not in records.kv
            assert not any(each.done for each in former.asked)
            records.writes_left = 1000
            await heir(records, [])._read(former, Secret("lease"), NOW + 5)  # type: ignore[arg-type]
        assert former.asked[-1].done
        kept = {key: text for key, text in records.kv.items() if key not in (INHERITANCE_KEY, RECORDS_KEY)}
        whole = whole or kept
        assert kept == whole
        used: list[Inherited] = []
        await heir(records, used).take(handed_over())
        assert [each.secrets["db", "database", 0].reveal() for each in used] == ["ab" * 32]
        if kills > len(ENTRIES) + 1:
            break
    assert {entry.key for entry in ENTRIES} < whole.keys()


async def test_one_that_is_slower_writes_nothing_over_what_the_others_have_made_of_it() -> None:
    """The records have been the mesh's since the last write."""
    records = Records()
    await heir(records, [])._read(Former(ENTRIES), Secret("lease"), NOW)  # type: ignore[arg-type]
    records.kv["service/0"] = "changed"
    with pytest.raises(RefusalError, match="another coordinator was faster"):
        await heir(records, [])._read(Former(ENTRIES), Secret("lease"), NOW)  # type: ignore[arg-type]
    assert records.kv["service/0"] == "changed"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((EstateEntry(key="coordinator/rotation", value="", flags=0),), "is not handed over"),
        ((EstateEntry(key="mesh/manifest", value="", flags=0),), "is not handed over"),
        ((EstateEntry(key="a", value="!", flags=0),), "not base64"),
        ((EstateEntry(key="a", value="", flags=-1),), "is not handed over"),
    ],
)
async def test_what_is_no_estate_is_refused(entries: tuple[EstateEntry, ...], words: str) -> None:
    """A former coordinator decided about the mesh, and not about what only these records decide."""
    records = Records()
    with pytest.raises(InheritanceError, match=words):
        await heir(records, [])._read(Former(entries), Secret("lease"), NOW)  # type: ignore[arg-type]
    assert INHERITANCE_KEY not in records.kv


async def test_records_that_have_begun_and_manifests_without_a_handover_take_nothing() -> None:
    """Without a word to anybody."""
    records = Records()
    records.kv[MANIFEST_KEY] = base64.b64encode(b"begun").decode()
    await heir(records, []).take(handed_over())
    await heir(Records(), []).take(FIRST)
    with pytest.raises(RefusalError, match="ended before it was done"):
        await heir(Records(), [], NOW + 3600).take(handed_over())


async def test_a_former_coordinator_is_judged_by_the_manifest_that_the_owners_named() -> None:
    """By its digest, over any number of later ones; whatever else its history shows counts nothing."""
    newest = handed_over()
    later = opened(after(newest, leaf_hours=9), OWNER)
    app = FIRST.manifest.coordinators.app_id
    for signed, history in ((newest, (FIRST,)), (newest, (FIRST, newest)), (later, (FIRST, newest, later))):

        async def ask(path: str, history: tuple[Signed, ...] = history) -> Any:
            epoch = int(path.rpartition("=")[2])
            shows = [dataclasses.asdict(shown(each)) for each in history if each.manifest.epoch > epoch]
            return {"manifests": shows, "more": False}

        assert await former(ask, signed, app) == FIRST
    forged = opened(dataclasses.replace(FIRST.manifest, leaf_hours=9), OWNER)
    for history in ((forged,), ()):

        async def lies(_: str, history: tuple[Signed, ...] = history) -> Any:
            return {"manifests": [dataclasses.asdict(shown(each)) for each in history], "more": False}

        with pytest.raises(CoordinatorError, match="its history lacks the manifest of epoch 1"):
            await former(lies, newest, app)
