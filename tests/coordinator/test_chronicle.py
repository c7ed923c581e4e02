"""What a coordinator remembers of manifests on its disk and in the KV, whenever it was killed."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from admission.protocol import MANIFEST_KEY, MANIFESTS_PREFIX
from coordinator import chronicle as module
from coordinator import governance
from coordinator.chronicle import Chronicle
from coordinator.disk import MANIFESTS, Disk
from coordinator.history import Mesh, name_of
from coordinator.proposal import shown
from runtime.consul import ConsulClient, ConsulError
from tests.coordinator.setting import all_enforce, enforce, proposed, put
from tests.coordinator.test_disk import OWN
from tests.coordinator.test_head import of_newer_program
from tests.coordinator.test_history import MESH, ONE, SECOND, THREE, TWO
from tests.coordinator.world import OWNER, OWNERS, Applicant, Cluster, Running, cluster
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.owners import Owners, key_of
from topology.succession import chain


async def kept(mesh: Cluster, signed: Signed, *numbers: int) -> None:
    """Waits until the manifest is in the KV, as head and in the history, and on the disks of those coordinators."""
    lead = mesh.running[numbers[0]]

    async def everywhere() -> bool:
        consul = lead.coordinator.consul
        _, head = await consul.get(f"/v1/kv/{MANIFEST_KEY}")
        _, entry = await consul.get(f"/v1/kv/{MANIFESTS_PREFIX}{name_of(signed)}")
        files = [mesh.disk(n) / MANIFESTS / name_of(signed) for n in numbers]
        return (
            governance.held(head).envelope == signed.envelope
            and bool(entry)
            and base64.b64decode(entry[0]["Value"]).decode() == signed.envelope
            and all(file.exists() and file.read_text() == signed.envelope for file in files)
        )

    found = False
    while not found:
        await eventually(lambda: enforce([lead], signed.digest), "it is enforced")
        # On a busy machine Consul's leader may change.
        with contextlib.suppress(ConsulError):
            found = await everywhere()


async def history(lead: Running, after_epoch: int = 0) -> list[dict[str, object]]:
    """What the coordinator shows."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.get(f"{lead.url}/v1/manifest/history?after={after_epoch}") as response,
    ):
        answer = await response.json()
        assert (response.status, answer["more"]) == (200, False)
        found: list[dict[str, object]] = answer["manifests"]
        return found


async def test_every_coordinator_keeps_and_shows_the_whole_history() -> None:
    """Also one whose disk is new: it has the rest from the KV."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n) for n in range(3)]
        chain = [leads[0].coordinator.head.signed]
        for lead in leads[:2]:
            chain.append(opened(after(chain[-1], leaf_hours=20), OWNER))
            await put(lead, chain[-1].envelope)
        wanted = [dataclasses.asdict(shown(signed)) for signed in chain]
        await all_enforce(leads, chain[-1].digest)
        await kept(mesh, chain[-1], 0, 1, 2)
        await mesh.lose(2)
        mesh.lose_disk(2)
        await mesh.start(2)
        again = await mesh.ready(2, 40.0)
        await kept(mesh, chain[-1], 2)
        await eventually(lambda: len(list((mesh.disk(2) / MANIFESTS).iterdir())) == 3, "the older ones are kept, too")
        for lead in (*leads[:2], again):
            assert await history(lead) == wanted
            assert await history(lead, 2) == wanted[2:]


async def test_a_gap_is_said_and_closed_by_whoever_has_what_is_missing() -> None:
    """A coordinator begins with a manifest whose predecessor it never saw. It goes by it, and says that its history
    begins late; the predecessor alone closes the gap, whoever brings it, for the next one names its digest.
    """
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = lead.coordinator.head.signed
        await kept(mesh, first, 0)
        second = opened(after(first, leaf_hours=9), OWNER)
        third = opened(after(second), OWNER)
        await mesh.lose(0)
        again = await mesh.start(0, third.manifest)
        await mesh.ready()
        said = "the history begins with epoch 3"
        assert said in str(again.coordinator.document()["manifest_notes"])
        assert [each["epoch"] for each in await history(again)] == [3]
        for other in (first, opened(after(first, leaf_hours=10), OWNER)):
            assert (await proposed(again, other.envelope))[0] == 422
        assert await proposed(again, second.envelope) == (200, dataclasses.asdict(shown(third)))
        wanted = [dataclasses.asdict(shown(signed)) for signed in (first, second, third)]
        assert await history(again) == wanted
        assert said not in str(again.coordinator.document()["manifest_notes"])
        await kept(mesh, third, 0)
        await eventually((mesh.disk(0) / MANIFESTS / name_of(second)).exists, "what closed the gap is kept, too")
        await mesh.lose(0)
        await mesh.start(0, third.manifest)
        assert await history(await mesh.ready()) == wanted


async def test_a_gap_is_closed_by_what_another_coordinator_has_put_into_the_records() -> None:
    """Without a restart."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = lead.coordinator.head.signed
        await kept(mesh, first, 0)
        second = opened(after(first, leaf_hours=9), OWNER)
        await mesh.lose(0)
        again = await mesh.start(0, after(second))
        await mesh.ready()
        await again.coordinator.consul.put(f"/v1/kv/{MANIFESTS_PREFIX}{name_of(second)}", second.envelope.encode())
        await eventually(lambda: again.coordinator.document()["manifest_notes"] == [], "the gap is closed", 60)
        assert [each["epoch"] for each in await history(again)] == [1, 2, 3]


STATES = {
    "killed before anything was kept": (True, False, False),
    "killed before the KV's history": (True, False, True),
    "killed before the disk": (True, True, False),
    "records that went back": (False, False, True),
    "records and disk that went back": (False, True, False),
}
"""What a coordinator may find of the second manifest at its start: it is the KV's head, in its history, on the disk."""


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
async def test_whatever_a_kill_leaves_the_newest_counts_and_is_everywhere_again(state: tuple[bool, ...]) -> None:
    """The environment has the first all the time, and loses."""
    is_head, in_history, on_disk = state
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = lead.coordinator.head.signed
        second = opened(after(first, leaf_hours=9), OWNER)
        await put(lead, second.envelope)
        await kept(mesh, second, 0)
        consul = lead.coordinator.consul
        if not is_head:
            await consul.put(f"/v1/kv/{MANIFEST_KEY}", first.envelope.encode())
        if not in_history:
            await consul.delete(f"/v1/kv/{MANIFESTS_PREFIX}{name_of(second)}")
        await mesh.lose(0)
        if not on_disk:
            (mesh.disk(0) / MANIFESTS / name_of(second)).unlink()
        await mesh.start()
        await mesh.ready()
        await kept(mesh, second, 0)


async def test_a_damaged_or_forged_file_is_named_and_not_obeyed() -> None:
    """The next manifest can be set, which mends it."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = lead.coordinator.head.signed
        second = opened(after(first, leaf_hours=9), OWNER)
        await kept(mesh, first, 0)
        await mesh.lose(0)
        folder = mesh.disk(0) / MANIFESTS
        (folder / name_of(second)).write_text(second.envelope[:-20])
        (folder / f"7-{'0' * 64}").write_text(second.envelope)
        await mesh.start()
        lead = await mesh.ready()
        assert enforce([lead], first.digest)
        notes = "\n".join(lead.coordinator.document()["manifest_notes"])  # type: ignore[arg-type]
        assert f"kept manifest {name_of(second)} " in notes
        assert f"kept manifest 7-{'0' * 64} holds {name_of(second)}" in notes
        await put(lead, second.envelope)
        await kept(mesh, second, 0)


async def test_all_coordinators_on_an_old_disk_take_the_newest_from_a_cvm() -> None:
    """Nothing else remembers it; afterwards the disk does."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        second = opened(after(lead.coordinator.head.signed, leaf_hours=9), OWNER)
        await kept(mesh, lead.coordinator.head.signed, 0)
        await mesh.lose(0)
        old = mesh.root / "old"
        shutil.copytree(mesh.disk(0), old)
        await mesh.start()
        await put(await mesh.ready(), second.envelope)
        await kept(mesh, second, 0)
        await mesh.lose(0)
        mesh.lose_disk(0)
        shutil.copytree(old, mesh.disk(0))
        await mesh.start()
        lead = await mesh.ready()
        assert lead.coordinator.document()["manifest_epoch"] == 1
        asker = Applicant(url=lead.url, manifest=mesh.manifest, offers=second.envelope)
        assert (await asker.admitted())["manifest_digest"] == second.digest
        await kept(mesh, second, 0)


async def test_what_a_newer_program_has_kept_is_not_gone_below() -> None:
    """A coordinator of an older version, on that disk, enforces nothing and says why."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        envelope = of_newer_program(after(lead.coordinator.head.signed), version=3)
        await kept(mesh, lead.coordinator.head.signed, 0)
        await mesh.lose(0)
        (mesh.disk(0) / MANIFESTS / f"2-{'0' * 64}").write_text(envelope)
        again = await mesh.start()
        await eventually(
            lambda: "cannot read" in str(again.coordinator.document()["reasons"]), "it says that it cannot read it"
        )
        assert again.coordinator.document()["ready"] is False


def chronicle(folder: Path, *manifests: Signed) -> Chronicle:
    """That of a disk that has those."""
    disk = Disk(folder, OWN)
    disk.claim()
    for signed in manifests:
        disk.keep_manifest(name_of(signed), signed.envelope)
    disk.settle()
    return Chronicle(disk, ConsulClient(), MESH)


def test_a_long_history_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer has at least one, and says whether there are more."""
    found = chronicle(tmp_path, ONE, TWO, THREE)
    assert found.page(0).manifests == tuple(map(shown, (ONE, TWO, THREE)))
    monkeypatch.setattr(module, "PAGE", len(ONE.envelope) + len(TWO.envelope))
    first = found.page(0)
    assert (first.manifests, first.more) == ((shown(ONE), shown(TWO)), True)
    last = found.page(first.manifests[-1].epoch)
    assert (last.manifests, last.more) == ((shown(THREE),), False)
    monkeypatch.setattr(module, "PAGE", 1)
    assert found.page(1).manifests == (shown(TWO),)
    assert found.page(3).manifests == ()


def test_what_is_in_force_counts_before_the_disk_has_it(tmp_path: Path) -> None:
    """A disk may hang."""
    found = chronicle(tmp_path, ONE)
    found.keep(TWO)
    assert found.history.newest == TWO
    assert not (tmp_path / MANIFESTS / name_of(TWO)).exists()


def test_another_meshs_disk_is_no_memory(tmp_path: Path) -> None:
    """A folder that was mounted by mistake."""
    chronicle(tmp_path, ONE, TWO)
    other = Chronicle(
        Disk(tmp_path, OWN), ConsulClient(), Mesh(cluster="other", app_id=MESH.app_id, owners=MESH.owners)
    )
    assert other.history.newest is None
    assert len(other.notes) == 2


class Values:
    """Consul's KV, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def get(self, path: str, params: dict[str, str] | None = None) -> tuple[int, Any]:
        """See `runtime.consul.ConsulClient`."""
        key = path.removeprefix("/v1/kv/")
        if params is not None:
            return 1, [each for each in self.kept if each.startswith(key)]
        return 1, [{"Value": base64.b64encode(self.kept[key]).decode()}] if key in self.kept else None

    async def put(self, path: str, body: bytes, params: dict[str, str] | None = None) -> bool:
        """Likewise."""
        key = path.removeprefix("/v1/kv/")
        if params == {"cas": "0"} and key in self.kept:
            return False
        self.kept[key] = body
        return True


def told(found: Chronicle) -> list[str]:
    """The envelopes that it shows."""
    return [each.envelope for each in found.page(0).manifests]


def remembers(folder: Path, values: Values, *manifests: Signed) -> Chronicle:
    """That of a disk that has those, in a mesh whose KV is `values`."""
    found = chronicle(folder, *manifests)
    found._client = values  # type: ignore[assignment]
    return found


HANDED = opened(after(TWO, owners=Owners(keys=(key_of(SECOND),))), OWNER)
"""Names other owners."""
LAST = opened(after(HANDED), SECOND)


@pytest.mark.parametrize("rest", [".", ".AAAA", ".AAAA" * 17, "." + "A" * (1 << 19)])
async def test_what_is_missing_is_taken_with_its_owners_signatures_only(tmp_path: Path, rest: str) -> None:
    """Its payload is public. What is longer than the records take would never reach them."""
    values = Values()
    found = remembers(tmp_path, values, TWO, HANDED, LAST)
    for forged in (ONE.envelope.partition(".")[0] + rest, ONE.envelope + rest * (len(rest) > 10)):
        assert forged == ONE.envelope or found.lacked(forged) is None
    lacked = found.lacked(ONE.envelope)
    assert lacked == ONE
    assert await found.fill(lacked)
    assert chain(OWNERS, told(found))[-1] == LAST


async def test_signatures_that_prove_nothing_are_replaced_wherever_they_were_put(tmp_path: Path) -> None:
    """Who signed a manifest is known once the one before it is there: until then a stranger's envelope may stand for
    it, and then it is lacked again; on each coordinator's disk, and in the records.
    """
    values = Values()
    poison = opened(TWO.manifest)
    first = remembers(tmp_path / "first", values, HANDED, LAST)
    lacked = first.lacked(poison.envelope)
    assert lacked is not None
    assert await first.fill(lacked)
    await first.spread()
    other = remembers(tmp_path / "other", values)
    await other.gather()
    for each in (first, other):
        assert each.history.chain == (poison, HANDED, LAST)
        assert any("is not signed by those that had to" in note for note in each.notes)
        assert each.lacked(poison.envelope) is None
    for good in (TWO, ONE):
        lacked = first.lacked(good.envelope)
        assert lacked == good
        assert await first.fill(lacked)
    await first.spread()
    first._disk.settle()
    assert [note for note in first.notes if "signed" in note] == []
    assert chain(OWNERS, told(first))[-1] == LAST
    assert (tmp_path / "first" / MANIFESTS / name_of(TWO)).read_text() == TWO.envelope
    await other.gather()
    assert told(other) == told(first)
    fresh = remembers(tmp_path / "fresh", values)
    await fresh.gather()
    assert told(fresh) == told(first)
