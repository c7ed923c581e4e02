"""What follows from an admission, a renewal and a refusal, with the agent's API played.

Long because it is a list: each thing that an answer changes is a case of its own, on one member.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from admission.broker import Renewed, decode_admission, decode_renewal
from admission.offers import Ask
from coordinator.proposal import shown
from runtime.children import Child
from runtime.consul import api_socket
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import identity, sources
from sidecar.catalog import CatalogError, instances
from sidecar.certificate_reading import Given
from sidecar.config import parse
from sidecar.desired import World
from sidecar.membership import Membership
from tests.admission.test_broker import ADMISSION
from tests.sidecar.world import DIGEST, NOW, OWNER, STRANGER, environment, given, health, manifest, peer, route
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed, digest, seal
from topology.owners import Owners, key_of

KEYS = identity.make()
HEAD = opened(manifest(), OWNER)
SAME = given(KEYS.public.leaf, leaf=False)


class FakeHost:
    """Keeps what it is told; starts nothing."""

    def __init__(self) -> None:
        signed = opened(manifest(), OWNER)
        self.world = World(signed=signed, own=signed.manifest.groups["api"], group="api")
        self.phases: list[str] = []
        self.started: list[str] = []
        self.restarts: list[str] = []
        self.secrets: dict[str, str] = {}
        self.full = False
        self.hurries = 0

    def see(self, world: World) -> None:
        self.world = world

    def keep_secrets(self, secrets: Mapping[str, Secret]) -> bool:
        if not self.full:
            self.secrets = {name: secret.reveal() for name, secret in secrets.items()}
        return not self.full

    def wait(self, phase: str, reason: str) -> None:
        self.phases.append(f"{phase}: {reason}")

    def done(self, phase: str) -> None:
        self.phases.append(f"{phase} done")

    def lost(self, phase: str, reason: str) -> None:
        self.phases.append(f"{phase} lost: {reason}")

    def hurry(self) -> None:
        self.hurries += 1

    def restart(self, reason: str) -> None:
        self.restarts.append(reason)

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        work.close()
        self.started.append(name)

    def supervise(self, child: Child) -> None:
        self.started.append(child.spec.name)


@contextlib.asynccontextmanager
async def membership(
    folder: Path, unix: Callable[[], float] = lambda: NOW
) -> AsyncIterator[tuple[Membership, FakeHost]]:
    host = FakeHost()
    async with TaskScope() as scope:
        it = Membership(parse(environment(MESH_STATE_DIR=str(folder))), KEYS, host, scope, userspace=True, unix=unix)
        try:
            yield it, host
        finally:
            await it.close()


def admission(*digests: str, **changes: Any) -> tuple[Any, Given]:
    answer = dataclasses.replace(decode_admission({**ADMISSION, "manifest": ""}, "https://one.test"), **changes)
    return answer, given(KEYS.public.leaf, *digests)


def agent_token(folder: Path) -> str:
    found: str = json.loads((folder / "consul/config/agent.json").read_text())["acl"]["tokens"]["agent"]
    return found


async def test_first_admission_starts_the_mesh(tmp_path: Path) -> None:
    """Address and coordinators are known, the agent's configuration is written, the connection begins."""
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        assert host.world.address == "100.96.0.10"
        assert [one.peer_id for one in host.world.peers] == ["coordinator-0"]
        assert host.started == ["workload", "certificate", "mesh"]
        assert host.phases == ["admission done"]
        assert agent_token(tmp_path) == "s3cret-token"


async def test_an_ended_certificate_is_not_ready_in_between(tmp_path: Path) -> None:
    """A renewal that brings no new one changes nothing: ready does not flicker."""
    now = NOW
    async with membership(tmp_path, lambda: now) as (it, host):
        await it.admitted(*admission())
        now += 9 * 3600
        host.phases.clear()
        await it.renewed(
            decode_renewal({"lease_seconds": 15.0, "manifest_epoch": 3}), given(KEYS.public.leaf, leaf=False)
        )
        assert [phase.split(":")[0] for phase in host.phases] == ["admission lost"]


async def test_a_clock_before_the_certificates_begin_is_not_ready(tmp_path: Path) -> None:
    """Calls fail by it; when it is set right, the next renewal makes the CVM ready again."""
    now = NOW
    async with membership(tmp_path, lambda: now) as (it, host):
        await it.admitted(*admission())
        answer = decode_renewal({"lease_seconds": 15.0, "manifest_epoch": 3}), given(KEYS.public.leaf, leaf=False)
        for moment, told in ((NOW - 9 * 3600, "admission lost"), (NOW, "admission done")):
            now = moment
            host.phases.clear()
            await it.renewed(*answer)
            assert [phase.split(":")[0] for phase in host.phases] == [told]


async def test_a_history_that_takes_long_leaves_time_for_the_lease(tmp_path: Path) -> None:
    """It is renewed again before a lease of 15 s ends; what came is kept, and is where that goes on."""
    second = opened(after(HEAD), OWNER)

    async def ask(path: str) -> dict[str, object]:
        if path.endswith("after=3"):
            return {"manifests": [dataclasses.asdict(shown(second))], "more": True}
        await asyncio.Event().wait()
        raise AssertionError

    async with membership(tmp_path) as (it, host), asyncio.timeout(15.0 / 2):
        await it.lead_on(9, ask)
    assert host.world.signed == second
    assert "does not lead on" in it.refused_manifest


async def test_later_admission_renews_in_place_and_holds_what_was_good(tmp_path: Path) -> None:
    """Nothing is started again; the new token and the coordinator's new key count, and no route is emptied."""
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        good = instances([health("api-1", "100.96.0.11")])
        host.see(dataclasses.replace(host.world, catalog={"api": good}))
        rebooted = dataclasses.replace(peer("coordinator-0", "100.96.0.9", "coordinator"), public_key="new")
        await it.admitted(*admission(token=Secret("second"), peers=(rebooted,)))
        assert host.started == ["workload", "certificate", "mesh"]
        assert host.world.peers == (rebooted,)
        assert host.world.held == {"api": good}
        assert agent_token(tmp_path) == "second"
        it._let_go()
        assert host.world.held == {}


class Program:
    """The agent's process."""

    def __init__(self) -> None:
        self.ended = 0

    def end(self) -> None:
        """As Child."""
        self.ended += 1


async def test_coordinators_of_another_app_have_another_consul(tmp_path: Path) -> None:
    """The agent is started anew, with data of its own, and what was good until then is held. The same authority with
    another certificate is no reason.
    """
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        it._child = program = Program()  # type: ignore[assignment]
        host.world = dataclasses.replace(host.world, catalog={"api": instances([health("api-1", "100.96.0.11")])})
        file = tmp_path / "consul/config/agent.json"
        before = json.loads(file.read_text())["data_dir"]
        await it.admitted(*admission(certificate_pem="another"))
        assert (program.ended, json.loads(file.read_text())["data_dir"]) == (0, before)
        sources_of_before, host.world = host.world, sources.let_go(host.world)
        await it.admitted(*admission(ca_pem="another"))
        assert (program.ended, json.loads(file.read_text())["data_dir"] == before) == (1, False)
        assert host.world.held == sources_of_before.held != {}
        assert it.gossip_ring() == ""


async def test_admission_as_another_peer_starts_anew_as_that_one(tmp_path: Path) -> None:
    """Everything here belongs to one peer: nothing of it changes, and the next process claims the new slot."""
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        assert identity.held_slot(tmp_path, KEYS) == "api-0"
        await it.admitted(*admission(peer_id="api-1", address="100.96.0.11", token=Secret("other")))
        assert host.restarts == ["admitted as api-1 after api-0"]
        assert host.world.address == "100.96.0.10"
        assert agent_token(tmp_path) == "s3cret-token"
        assert identity.held_slot(tmp_path, KEYS) == "api-1"


async def test_who_is_no_longer_admitted_is_not_ready_until_it_is_again(tmp_path: Path) -> None:
    """The phase of the admission is lost with its reason, and done with the next admission."""
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        it.not_admitted("one: SLOT_TAKEN: no")
        await it.admitted(*admission())
        assert host.phases == ["admission done", "admission lost: one: SLOT_TAKEN: no", "admission done"]


async def test_who_has_no_certificate_any_more_is_not_ready(tmp_path: Path) -> None:
    """From the moment at which it ends until there is a new one, whether coordinators answer or not."""
    unix = [NOW]
    async with membership(tmp_path, lambda: unix[0]) as (it, host), TaskScope() as scope:
        await it.admitted(*admission())
        assert it.certificate_problem() == ""
        unix[0] = NOW + 7 * 3600
        assert "ends in 1.0 h" in it.certificate_problem()
        unix[0] = NOW + 8 * 3600 - 0.05
        task = scope.start("age", it._age())
        await asyncio.sleep(0)
        unix[0] = NOW + 8 * 3600
        await eventually(lambda: "admission lost" in host.phases[-1], "it is lost")
        assert "calls fail" in host.phases[-1]
        await it.renewed(Renewed(lease_seconds=15, token=None, token_expires_at=None, manifest_epoch=3), SAME)
        assert "admission lost" in host.phases[-1], "an answer without a certificate is none"
        new = given(KEYS.public.leaf)
        assert new.leaf is not None
        later = dataclasses.replace(new, leaf=dataclasses.replace(new.leaf, expires_at=int(NOW) + 16 * 3600))
        await it.renewed(Renewed(lease_seconds=15, token=None, token_expires_at=None, manifest_epoch=3), later)
        assert host.phases[-1] == "admission done"
        task.cancel()


async def test_a_slot_that_cannot_be_noted_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk: the admission counts, and the log says what a restart will cost."""
    async with membership(tmp_path) as (it, host):
        (tmp_path / identity.SLOT_FILE).mkdir()
        await it.admitted(*admission())
        assert host.phases == ["admission done"]
        assert "slot not noted" in caplog.text


async def test_renewed_token_reaches_the_agents_file(tmp_path: Path) -> None:
    """A renewal with a token rewrites the configuration, so a restarted agent has it; one without changes nothing."""
    async with membership(tmp_path) as (it, _):
        await it.admitted(*admission())
        plain = Renewed(lease_seconds=15, token=None, token_expires_at=None, manifest_epoch=3)
        await it.renewed(plain, SAME)
        assert agent_token(tmp_path) == "s3cret-token"
        await it.renewed(dataclasses.replace(plain, token=Secret("third"), token_expires_at=9), SAME)
        assert agent_token(tmp_path) == "third"
        assert it.admission is not None
        assert it.admission.token == Secret("third")


async def test_a_renewed_agent_certificate_is_read_again_by_the_agent(tmp_path: Path) -> None:
    """Also where it was away when the certificate came: then with the next token. Another token alone is no reason."""
    asked: list[str] = []
    away = {"/v1/agent/reload"}

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=500 if request.path in away else 200)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    async with membership(tmp_path) as (it, _):
        await it.admitted(*admission())
        await web.UnixSite(runner, str(api_socket(tmp_path))).start()
        plain = Renewed(lease_seconds=15, token=Secret("second"), token_expires_at=9, manifest_epoch=3)
        await it.renewed(plain, SAME)
        assert asked == ["/v1/agent/token/agent"]
        await it.renewed(dataclasses.replace(plain, agent_pem="NEW"), SAME)
        assert asked[1:] == ["/v1/agent/reload", "/v1/agent/token/agent"]
        assert (tmp_path / "consul" / "certificate.pem").read_text() == "NEW"
        away.clear()
        for _ in range(2):
            await it.renewed(plain, SAME)
        assert asked[3:] == ["/v1/agent/reload", "/v1/agent/token/agent", "/v1/agent/token/agent"]
        assert (tmp_path / "consul" / "certificate.pem").read_text() == "NEW"
    await runner.cleanup()


async def test_secrets_and_workload_token_follow_admission_and_renewals(tmp_path: Path) -> None:
    """What is granted is there, what a renewal brings replaces it, what it withdraws goes."""
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        assert host.secrets == {"database": "s3cret-database", "consul-token": "s3cret-workload"}
        plain = Renewed(lease_seconds=15, token=None, token_expires_at=None, manifest_epoch=3)
        await it.renewed(plain, SAME)
        assert host.secrets == {"database": "s3cret-database", "consul-token": "s3cret-workload"}
        await it.renewed(dataclasses.replace(plain, token=Secret("t"), workload_token=Secret("second")), SAME)
        assert host.secrets == {"database": "s3cret-database", "consul-token": "second"}
        await it.renewed(dataclasses.replace(plain, secrets={"other": Secret("o")}), SAME)
        assert host.secrets == {"other": "o", "consul-token": "second"}
        await it.renewed(dataclasses.replace(plain, token=Secret("t"), workload_token=Secret(""), secrets={}), SAME)
        assert host.secrets == {}


async def test_nothing_starts_without_its_secrets(tmp_path: Path) -> None:
    """A folder that cannot be written holds up the admission phase, says so, and is tried again."""
    async with membership(tmp_path) as (it, host):
        host.full = True
        await it.admitted(*admission())
        assert "admission done" not in host.phases
        assert "the secrets cannot be written" in host.phases[-1]
        host.full = False
        await it.renewed(Renewed(lease_seconds=15, token=None, token_expires_at=None, manifest_epoch=3), SAME)
        assert host.phases[-1] == "admission done"
        assert host.secrets["database"] == "s3cret-database"


async def test_manifest_of_the_admission_is_taken_if_its_owner_signed_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer one replaces the routes; a forged one is refused and logged, and the admission goes on."""
    newer = after(HEAD, routes=(route("api", "api"), route("extra", "api", vip="127.10.0.2")))
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission(envelope=seal(newer, STRANGER)))
        assert host.world.manifest.epoch == 3
        assert "manifest refused" in caplog.text
        assert "signed by 0 of the owner keys" in it.refused_manifest
        assert it.why_not_enforced(4, digest(newer), seal(newer, STRANGER)) is not None
        await it.admitted(*admission(envelope=seal(newer, OWNER)))
        assert (host.world.manifest.epoch, it.newest_envelope()) == (4, seal(newer, OWNER))
        assert it.refused_manifest == ""
        assert it.why_not_enforced(3, "00" * 32, "") == "rolled back: enforces epoch 3, this CVM holds epoch 4"


async def test_who_missed_several_manifests_is_led_on_by_a_coordinators_history(tmp_path: Path) -> None:
    """One after the other, also through a change of owners; a history that leads elsewhere changes nothing. Consul's
    word that there is a later one has a coordinator asked at once.
    """
    second = opened(after(HEAD, owners=Owners(keys=(key_of(STRANGER),))), OWNER)
    third = opened(after(second), STRANGER)
    fork = opened(after(HEAD, leaf_hours=10), OWNER)
    asked: list[str] = []

    def history(*manifests: Signed) -> Ask:
        async def ask(path: str) -> dict[str, object]:
            asked.append(path)
            return {"manifests": [dataclasses.asdict(shown(each)) for each in manifests], "more": False}

        return ask

    async with membership(tmp_path) as (it, host):
        for epoch in (2, 3, 4):
            await it.lead_on(epoch, history(second))
        assert asked == [], "Consul brings the next one"
        await it.lead_on(5, history(opened(after(fork), OWNER)))
        assert host.world.signed == HEAD
        assert "does not lead on" in it.refused_manifest
        await it.lead_on(5, history(second, third))
        assert (host.world.signed, it.refused_manifest) == (third, "")
        assert asked == ["/v1/manifest/history?after=3"] * 2
        assert it.successors_of(3) == (second.envelope, third.envelope)
        it._watch_failed(CatalogError("it has no value"))
        assert host.hurries == 0
        it._watch_failed(sources.BehindError("some are missing"))
        assert host.hurries == 1


async def test_a_new_certificate_waits_for_envoy_and_for_the_others(tmp_path: Path) -> None:
    """Its authority counts at once; that Envoy has it is said at once; it is shown when all have said so."""
    following = "e2" * 32
    async with membership(tmp_path) as (it, host):
        await it.admitted(*admission())
        assert it.certificate() == (host.world.certificate, "")
        assert host.world.leaf_key == KEYS.leaf_private_pem
        shown = host.world.certificate
        assert shown is not None
        it.envoy_trusts(shown.trusted_pem)
        assert (it.certificate()[1], host.hurries) == (DIGEST, 0)
        plain = Renewed(lease_seconds=15, token=None, token_expires_at=None, manifest_epoch=4)
        await it.renewed(plain, given(KEYS.public.leaf, following, DIGEST, epoch=4))
        now = host.world.certificate
        assert now is not None
        assert (now.leaf, now.digest) == (shown.leaf, following)
        it.envoy_trusts(shown.trusted_pem)
        assert (it.certificate()[1], host.hurries) == (DIGEST, 0)
        it.envoy_trusts(now.trusted_pem)
        assert (it.certificate()[1], host.hurries) == (following, 1)
        await it.renewed(plain, given(KEYS.public.leaf, following, DIGEST, epoch=4, leaf=False, all_trust=True))
        assert host.world.certificate is not None
        assert host.world.certificate.leaf.digest == following
