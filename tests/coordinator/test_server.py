"""The HTTP side: limits and forms, against the application without Consul or TLS.

Long because it is a list: each call and each limit is a case of its own, against one application.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import io
import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from admission.protocol import (
    MAX_BODY,
    Code,
    EstatePage,
    EstateRequest,
    ManifestHead,
    ManifestHistory,
    MeshPeer,
)
from coordinator import server as module
from coordinator.bodies import MOST_BYTES
from coordinator.broker import Broker, Clocks, Rules
from coordinator.feed import Feed
from coordinator.forming import UNKNOWN, Standing, StandingRequest
from coordinator.keys import derive
from coordinator.leases import Lease, seal
from coordinator.ledger import Ledger
from coordinator.proposal import shown, stale
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.server import LIMITS, application
from coordinator.slots import Holder
from evidence.bundle import AttestationRequest
from evidence.verify import Evidence
from runtime.consul import ConsulClient
from runtime.http_server import Limits, Server
from runtime.log import STRANGERS, KeyValueFormatter, LimitedHandler
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.coordinator.world import make_manifest, tls_key
from tests.support import eventually
from tests.topology.support import opened
from topology.allowed import image_id


class NoVerifier:
    """Verifies nothing: no test here gets so far."""

    async def verify(self, **_: object) -> Evidence:
        raise RuntimeError("the verifier has a bug")


class Api:
    """A broker without Consul behind the real application."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.feed = Feed(1000, lambda: 0.0)
        registry = Registry(lambda: None)
        self.ledger = Ledger(ConsulClient(), registry, lambda: 100.0, lambda: 100.0)
        keys = derive(Secret("11" * 32), "tests")
        self.lease_key = keys.broker_key
        self.broker = Broker(
            rules=Rules(signed=opened(make_manifest()), adopted_at=0.0),
            verifier=NoVerifier(),
            keys=keys,
            ledger=self.ledger,
            registry=registry,
            feed=self.feed,
            clocks=Clocks(unix=lambda: 100.0, monotonic=lambda: 100.0),
            random=os.urandom,
            offered=self.offered,
        )
        self.broker.not_ready = None
        self.server = Server(
            application(
                self.broker,
                self.feed,
                lambda: self.broker.not_ready,
                self.standing,
                self,
                self.asked,
                estate=self.estate,
            ),
            "127.0.0.1", 0, None, limits,
        )  # fmt: skip
        self.port = 0
        self.open = 0
        self.padding = 0
        self.sibling = ""
        """The lease of another coordinator."""
        self.proposed: list[tuple[str, dict[str, str]]] = []
        self.leaderless = False
        self.handed_over = False
        self.refusal: RefusalError | None = None

    def shown(self) -> ManifestHead:
        """The first manifest."""
        return shown(self.broker.rules.signed)

    def history(self, after: int) -> ManifestHistory:
        """The first manifest alone."""
        return ManifestHistory(manifests=() if after else (self.shown(),), more=False)

    async def propose(self, envelope: str, documents: Mapping[str, str]) -> ManifestHead:
        """Notes what is to be set."""
        self.proposed.append((envelope, dict(documents)))
        if self.refusal is not None:
            raise self.refusal
        return self.shown()

    async def offered(self, envelope: str, _allows: object) -> None:
        """No test here offers a manifest."""
        raise AssertionError(envelope)

    async def standing(self, request: StandingRequest) -> Standing:
        """What a coordinator says to another one."""
        if request.lease != self.sibling:
            self.broker.sibling(request.lease)
        return UNKNOWN

    async def estate(self, request: EstateRequest) -> EstatePage:
        """What a former coordinator hands out, to one that proves a lease."""
        self.broker.sibling(request.lease)
        raise RefusalError(Code.ADMISSION_REJECTED, "no manifest hands the mesh over")

    @contextlib.asynccontextmanager
    async def asked(self, request: AttestationRequest) -> AsyncIterator[bytes]:
        """What a coordinator answers to anyone, or refuses."""
        if request.nonce == "many":
            raise RefusalError(Code.BUSY, "others are being answered")
        self.open += 1
        try:
            yield json.dumps({"nonce": request.nonce, "history": "h" * self.padding}).encode()
        finally:
            self.open -= 1

    async def call(self, method: str, path: str, data: bytes | io.BytesIO | None = None) -> tuple[int, Any]:
        """Status and JSON (None without body)."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", data=data) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if text else None


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    """The API on a free port."""
    made = Api()
    made.port = await made.server.start()
    yield made
    await made.server.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00 garbage",
        b"[]",
        b'{"group": "api"}',
        b'{"group": "api", "instance_id": 5}',
        b'{"group": "api", "instance_id": "i", "more": 1}',
        b'{"group": "api", "instance_id": "i", "instance_id": "j"}',
        b"[" * 100_000,
    ],
    ids=["empty", "bytes", "list", "missing", "type", "unknown", "twice", "deep"],
)
async def test_what_is_not_a_request_is_refused(api: Api, data: bytes) -> None:
    """Garbage, missing, unknown, repeated and mistyped fields are BAD_REQUEST."""
    status, answer = await api.call("POST", "/v1/admission/challenge", data)
    assert (status, answer["code"]) == (400, "BAD_REQUEST")


async def test_unknown_groups_and_peers_are_rejected(api: Api) -> None:
    """A challenge is for slots of the manifest only."""
    for asked in ({"group": "none", "instance_id": "i"}, {"group": "api", "instance_id": "i", "peer_id": "client-0"}):
        status, answer = await api.call("POST", "/v1/admission/challenge", json.dumps(asked).encode())
        assert (status, answer["code"]) == (403, "ADMISSION_REJECTED")


async def test_a_body_over_a_mebibyte_is_refused(api: Api) -> None:
    """By its length, and when it does not say its length."""
    status, answer = await api.call("POST", "/v1/admission/attest", io.BytesIO(b"x" * (MAX_BODY + 1)))
    assert (status, answer["code"]) == (400, "BAD_REQUEST")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65536

    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{api.port}/v1/admission/attest", data=chunks()) as response,
    ):
        assert response.status == 400
        assert (await response.json())["code"] == "BAD_REQUEST"


async def test_a_slow_body_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive in time is answered with BAD_REQUEST and the connection ends."""
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/admission/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert b"400 Bad Request" in answer
    assert b"BAD_REQUEST" in answer
    writer.close()
    await writer.wait_closed()


async def test_bodies_under_way_are_bounded_together(api: Api) -> None:
    """Of slow ones that are too many bytes the first are cut off; who comes then is answered, and nothing is left."""
    bodies = api.server._runner.app[module.BODIES]
    slow = []
    for _ in range(MOST_BYTES // MAX_BODY + 8):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"POST /v1/admission/attest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MAX_BODY)
        writer.write(b"x" * (MAX_BODY - 1))
        slow.append((reader, writer))
    await eventually(lambda: sum(reader.at_eof() or bool(reader.exception()) for reader, _ in slow) >= 8, "some end")
    assert 0 < bodies.size <= MOST_BYTES
    status, _ = await api.call("POST", "/v1/admission/attest", b"[]")
    assert status == 400
    for _, writer in slow:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await eventually(lambda: bodies.size == 0, "nothing is held")


async def test_a_packed_body_is_not_unpacked(api: Api) -> None:
    """A few bytes must not cost us as many as they can unpack to."""
    data = gzip.compress(json.dumps({"group": "api", "instance_id": "i"}).encode())
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{api.port}/v1/admission/challenge", data=data, headers={"Content-Encoding": "gzip"}
        ) as response,
    ):
        assert (response.status, (await response.json())["code"]) == (400, "BAD_REQUEST")


async def test_an_instance_id_of_any_length_is_not_remembered(api: Api) -> None:
    """Reservations hold it, and asking for one proves nothing."""
    for length, wanted in ((40, 200), (65, 400)):
        asked = json.dumps({"group": "api", "instance_id": "a" * length}).encode()
        assert (await api.call("POST", "/v1/admission/challenge", asked))[0] == wanted


async def test_unknown_paths_and_methods_are_json_too(api: Api) -> None:
    """404 and 405 keep their status and have the API's body."""
    for method, path, wanted in (("GET", "/", 404), ("GET", "/v1/admission/attest", 405)):
        status, answer = await api.call(method, path)
        assert (status, answer["code"]) == (wanted, "BAD_REQUEST")


async def test_health(api: Api) -> None:
    """204 when ready, else 503 with the reason."""
    assert await api.call("GET", "/healthz") == (204, None)
    api.broker.not_ready = "Consul has no leader"
    status, answer = await api.call("GET", "/healthz")
    assert (status, answer) == (503, {"code": "NOT_READY", "reason": "Consul has no leader"})


async def test_not_ready_is_said_before_a_quote_is_made(api: Api) -> None:
    """A workload learns at the challenge that it must wait."""
    api.broker.not_ready = "Consul has no leader"
    asked = json.dumps({"group": "api", "instance_id": "i"}).encode()
    status, answer = await api.call("POST", "/v1/admission/challenge", asked)
    assert (status, answer["code"]) == (503, "NOT_READY")


async def test_the_manifest_is_shown_and_set(api: Api) -> None:
    """To and by anybody, for its owners have signed it; a refusal has its reason, and a stale one the head."""
    head = dataclasses.asdict(api.shown())
    assert await api.call("GET", "/v1/manifest") == (200, head)
    body = json.dumps({"envelope": "a.b"}).encode()
    assert await api.call("POST", "/v1/manifest", body) == (200, head)
    api.refusal = RefusalError(Code.MANIFEST_REFUSED, "no")
    assert await api.call("POST", "/v1/manifest", body) == (422, {"code": "MANIFEST_REFUSED", "reason": "no"})
    api.refusal = stale(api.broker.rules.signed, "late")
    status, answer = await api.call("POST", "/v1/manifest", body)
    assert (status, answer["code"], answer["head"]) == (409, "MANIFEST_STALE", head)
    for bad in (
        b"",
        b"{}",
        b'{"envelope": 5}',
        b'{"envelope": "a.b", "force": true}',
        b'{"envelope": "", "documents": []}',
    ):
        assert (await api.call("POST", "/v1/manifest", bad))[0] == 400
    api.refusal = None
    with_text = json.dumps({"envelope": "a.b", "documents": {"ab": "{}"}}).encode()
    assert await api.call("POST", "/v1/manifest", with_text) == (200, head)
    assert api.proposed == [*[("a.b", {})] * 3, ("a.b", {"ab": "{}"})]


async def test_the_history_is_shown_in_parts(api: Api) -> None:
    """From the first, or from behind an epoch that is a number."""
    head = dataclasses.asdict(api.shown())
    assert await api.call("GET", "/v1/manifest/history") == (200, {"manifests": [head], "more": False})
    assert await api.call("GET", "/v1/manifest/history?after=1") == (200, {"manifests": [], "more": False})
    for odd in ("-1", "x", "", "9" * 20):
        assert (await api.call("GET", f"/v1/manifest/history?after={odd}"))[0] == 400


async def test_a_coordinator_that_is_not_ready_neither_shows_nor_sets_a_manifest(api: Api) -> None:
    """Its records may know of a newer one. Its history grants nothing, and a rendezvous needs it then."""
    api.broker.not_ready = "Consul has no leader"
    assert (await api.call("GET", "/v1/manifest/history"))[0] == 200
    for method, path, data in (("GET", "", None), ("POST", "", b'{"envelope": "a.b"}')):
        status, answer = await api.call(method, f"/v1/manifest{path}", data)
        assert (status, answer) == (503, {"code": "NOT_READY", "reason": "Consul has no leader"})
    assert api.proposed == []


async def test_a_former_coordinator_shows_where_the_mesh_is(api: Api) -> None:
    """Though it is not ready; and its owners may take the handover back. What it keeps is for who proves a lease."""
    api.broker.not_ready, api.handed_over = "the owners have handed the mesh over", True
    status, shows = await api.call("GET", "/v1/manifest")
    assert (status, shows["digest"]) == (200, api.shown().digest)
    await api.call("POST", "/v1/manifest", b'{"envelope": "a.b"}')
    assert api.proposed == [("a.b", {})]
    status, refused = await api.call("POST", "/v1/coordinators/estate", b'{"lease": "none"}')
    assert (status, refused["code"]) == (401, "LEASE_INVALID")


async def test_the_rendezvous_feed(api: Api) -> None:
    """A poll gives keys and addresses, waits for news, and refuses a version that is none."""
    api.feed.publish((MeshPeer(peer_id="api-0", public_key="k", address="100.96.0.1", kind="workload"),))
    status, news = await api.call("GET", "/v1/rendezvous/keys?seen=0")
    assert (status, news["peers"]) == (200, [{"public_key": "k", "address": "100.96.0.1"}])
    assert news["manifest"] == api.broker.rules.signed.digest
    async with TaskScope() as scope:
        poll = scope.start("poll", api.call("GET", f"/v1/rendezvous/keys?seen={news['version']}"))
        api.feed.publish(())
        assert (await poll)[1]["peers"] == []
    assert (await api.call("GET", "/v1/rendezvous/keys?seen=-1"))[0] == 400


async def test_anyone_may_ask_for_an_attestation(api: Api) -> None:
    """The answer, or 429 when there are too many; and nobody counts as open afterwards."""
    assert await api.call("POST", "/v1/attest", b'{"nonce": "ab"}') == (200, {"nonce": "ab", "history": ""})
    status, answer = await api.call("POST", "/v1/attest", b'{"nonce": "many"}')
    assert (status, answer) == (429, {"code": "BUSY", "reason": "others are being answered"})
    assert (await api.call("POST", "/v1/attest", b"{}"))[0] == 400
    assert api.open == 0


async def test_who_does_not_read_the_answer_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as open for no longer than an answer takes."""
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    api.padding = 32 << 20
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n" + b'{"nonce": "ab"}')
    await reader.readexactly(12)
    await eventually(lambda: api.open == 0, "the asker is no longer open")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_who_shows_a_lease_keeps_its_place_and_comes_in_again() -> None:
    """However many strangers hold connections on which they have asked: these give their places up, and that of who
    proved to be in the mesh does not, for as long as it is.
    """
    async with crowded() as it:
        known = await it.connect()
        assert await it.renews(known, it.lease()) == 200
        await it.flood()
        assert await it.renews(known, it.lease()) == 200
        assert await it.renews(await it.connect(), it.lease()) == 200
        # Who shows none is a stranger.
        other = await it.connect()
        assert await it.renews(other, "another") != 200
        await it.flood()
        assert await other[0].read() == b""
        assert await it.renews(known, it.lease()) == 200
        it.hold(released=True)
        assert await it.renews(known, it.lease()) == 401
        await it.flood()
        assert await known[0].read() == b""


async def test_another_coordinator_keeps_its_place() -> None:
    """It asks how things stand, as often as it starts."""
    async with crowded() as it:
        it.made.sibling = it.lease("coordinator-0", "coordinator")
        known = await it.connect()
        body = {"lease": it.made.sibling, "server_id": "", "empty": False}
        assert await posts(known, "/v1/coordinators/standing", body) == 200
        await it.flood()
        assert await posts(known, "/v1/coordinators/standing", body) == 200


async def test_a_cvm_keeps_two_places_however_it_comes() -> None:
    """With one lease, and with those of its boots one after the other: what a boot kept that is over is its next one's,
    and nobody else is left without.
    """
    async with crowded(connections=12, kept=8) as it:
        held = []
        for boot in "abcdefgh":
            it.hold(boot)
            for _ in range(3):
                held.append(await it.connect())
                assert await it.renews(held[-1], it.lease(boot_key=boot)) == 200
        await it.flood()
        for reader, _ in (*held[:21], held[23]):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        for connection in held[21:23]:
            assert await it.renews(connection, it.lease(boot_key="h")) == 200


class Crowded:
    """The API, and who holds connections to it."""

    def __init__(self, made: Api) -> None:
        self.made = made
        self.open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.hold()

    def hold(self, boot_key: str = "boot", *, released: bool = False) -> None:
        """That boot has api-0, or had it."""
        manifest = self.made.broker.rules.manifest
        image = manifest.references[0].os_images[0]
        self.made.ledger.slots["api-0"] = Holder(
            peer_id="api-0", group="api", instance_id="i", boot_key=boot_key, leaf_key=tls_key(),
            compose_hash=manifest.groups["api"].compose_hashes[0],
            app_id=manifest.groups["api"].app_id, address=manifest.groups["api"].peers[0].address,
            image=image_id(image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2),
            renewed_at=100.0, token_expires_at=1e9, released=released,
        )  # fmt: skip

    def lease(self, peer_id: str = "api-0", group: str = "api", boot_key: str = "boot") -> str:
        """As a coordinator seals it."""
        lease = Lease(peer_id=peer_id, group=group, instance_id="i", boot_key=boot_key)
        return seal(lease, self.made.lease_key).reveal()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One more connection."""
        self.open.append(await asyncio.open_connection("127.0.0.1", self.made.port))
        return self.open[-1]

    async def renews(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], lease: str) -> int:
        """The status of a renewal on this connection."""
        return await posts(connection, "/v1/admission/renew", {"lease": lease})

    async def flood(self) -> None:
        """Strangers come, more than there are places, and ask."""
        for _ in range(20):
            reader, writer = await self.connect()
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"204" in await reader.readuntil(b"\r\n\r\n")


@contextlib.asynccontextmanager
async def crowded(connections: int = 8, kept: int = 6) -> AsyncIterator[Crowded]:
    """An API of few places."""
    made = Api(dataclasses.replace(LIMITS, connections=connections, kept=kept))
    made.port = await made.server.start()
    it = Crowded(made)
    try:
        yield it
    finally:
        for _, writer in it.open:
            writer.close()
        await made.server.stop()


async def posts(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str, asked: Mapping[str, object]
) -> int:
    """The status of the answer on this connection."""
    reader, writer = connection
    body = json.dumps(asked)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length"))
    await reader.readexactly(length)
    return int(head.split()[1])


async def test_refusals_do_not_fill_the_log(api: Api) -> None:
    """A stranger's requests cost a few short lines, however many and long they are, and whatever comes of them."""
    text = io.StringIO()
    handler = LimitedHandler(text)
    handler.setFormatter(KeyValueFormatter())
    module.log.addHandler(handler)
    try:
        for _ in range(3 * STRANGERS.at_once):
            await api.call("POST", "/v1/admission/challenge?" + "x" * 5_000, b"[]")
            await api.call("GET", "/v1/rendezvous/keys?seen=" + "9" * 5_000)
    finally:
        module.log.removeHandler(handler)
    lines = text.getvalue().splitlines()
    assert len(lines) <= STRANGERS.at_once + 1
    assert max(map(len, lines)) < 1_000
    assert handler.unsaid >= 5 * STRANGERS.at_once - 1


async def test_our_own_failure_is_no_refusal(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A bug answers 502 without particulars, is in the log, and the API goes on."""
    from tests.coordinator.world import Applicant, encode

    applicant = Applicant(url=f"http://127.0.0.1:{api.port}", manifest=make_manifest())
    _, challenge = await applicant.challenge()
    body = applicant.evidence(encode(applicant.binding(challenge["peer_id"])), challenge["nonce"])
    status, answer = await applicant.post("attest", body)
    assert (status, answer["code"]) == (502, "VERIFIER_FAILED")
    assert "bug" not in answer["reason"]
    assert "the verifier has a bug" in caplog.text
    assert (await api.call("GET", "/healthz"))[0] == 204
