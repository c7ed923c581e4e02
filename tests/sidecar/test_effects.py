from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from dnslib import DNSRecord

from admission.protocol import MeshPeer
from dns.message import Rcode, Transport
from dns.resolver import Answer, Forward
from runtime.secret import Secret
from sidecar import catalog, former
from sidecar.certificate import heard
from sidecar.config import parse
from sidecar.desired import beforehand, desired
from sidecar.effects import Effects
from sidecar.files import Identity
from sidecar.hints import RouteHint
from sidecar.refusing import Refusing
from tests.sidecar.test_desired import CERTIFICATE, KEYS, TO_BANK, dialling, restricted, with_group, world
from tests.sidecar.world import DIGEST, environment, given, health, manifest, route
from vip.filter import Filter
from vip.netlink import VipError
from vip.nftables import RefusalError
from vip.resets import Refusal
from vip.table import Wanted
from xds.server import XdsServer

OWN = Identity(cluster="demo", group="api", peer_id="api-0", address="100.96.0.10")


class FakeVips:
    """Loopback's addresses, without touching this machine's."""

    def __init__(self) -> None:
        self.applied: list[frozenset[str]] = []
        self.refuse = False

    def apply(self, wanted: frozenset[str]) -> None:
        if self.refuse:
            raise VipError("not permitted")
        self.applied.append(wanted)


class FakeRefusals:
    """Refused connections, without touching this machine's; remembers what was published at each call."""

    def __init__(self) -> None:
        self.applied: list[frozenset[Refusal]] = []
        self.lost: frozenset[str] = frozenset()
        self.filter: Filter | None = None
        self.fails = 0
        """How many calls fail from now on."""
        self.seen: Callable[[], object] = lambda: None
        self.order: list[tuple[frozenset[Refusal], object]] = []

    def apply(self, wanted: Wanted) -> None:
        if self.fails:
            self.fails -= 1
            raise RefusalError("not permitted")
        self.applied.append(wanted.resets.refused)
        self.lost = wanted.resets.lost
        self.filter = wanted.filter
        self.order.append((wanted.resets.refused, self.seen()))

    def remove(self) -> None:
        self.apply(Wanted())


class FakeLink:
    def __init__(self) -> None:
        self.peers: tuple[MeshPeer, ...] = ()

    def set_peers(self, peers: tuple[MeshPeer, ...]) -> None:
        self.peers = peers


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.effects = Effects(parse(environment(MESH_RUN_DIR=str(folder / "run"), MESH_STATE_DIR=str(folder))))
        self.vips = self.effects._vips = FakeVips()  # type: ignore[assignment]
        self.refusals = FakeRefusals()
        self.effects.refusing = Refusing(self.refusals)
        self.published = 0
        self.effects.on_publish = self.count
        self.effects.files.prepare()

    def count(self) -> None:
        self.published += 1

    @property
    def hosts(self) -> str:
        return (self.folder / "run/hosts").read_text()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="mesh-test-") as folder:
        it = Rig(Path(folder))
        yield it
        if it.effects.xds is not None:
            await it.effects.xds.stop()


async def test_signed_variables_that_are_refused_are_written_with_a_later_wish(rig: Rig) -> None:
    """Until then there is no file, so nothing starts, and `problems` says why."""
    file, beside = rig.folder / "run/environment", rig.folder / "run/.environment.new"
    rig.effects.keep_environment({"A": "1"})
    assert file.read_text() == "A=1\n"
    beside.mkdir()
    rig.effects.keep_environment({"A": "2"})
    assert not file.exists()
    assert "environment.new" in rig.effects.problems["environment"]
    beside.rmdir()
    await rig.effects.apply(desired(world()), OWN)
    assert file.read_text() == "A=2\n"
    assert rig.effects.problems == {}


async def test_names_are_written_once_and_follow_the_wish(rig: Rig) -> None:
    """VIPs, hosts and DNS are set for a new wish, and left alone for the same one."""
    wish = desired(world(certificate=None))
    await rig.effects.apply(wish, None)
    assert rig.vips.applied == [frozenset({"127.10.0.1"})]
    assert rig.refusals.filter == desired(world()).packets
    assert "127.10.0.1 api api.mesh" in rig.hosts
    await rig.effects.apply(wish, None)
    assert len(rig.vips.applied) == 1
    more = manifest(epoch=4, routes=(route("api", "api"), route("extra", "api", vip="127.10.0.2")))
    await rig.effects.apply(desired(world(certificate=None, manifest=more)), OWN)
    assert rig.vips.applied[-1] == frozenset({"127.10.0.1", "127.10.0.2"})
    assert "127.10.0.2 extra" in rig.hosts
    assert "100.96.0.10 api-0.peer.mesh" in rig.hosts
    assert (rig.folder / "run/identity.json").exists()


async def test_a_route_that_is_gone_is_denied_also_after_a_restart(rig: Rig) -> None:
    """Its name, what is below it, and its address; nobody else is asked, whose answer could be anything."""
    first = manifest(epoch=4, routes=(route("api", "api"), route("extra", "api", vip="127.10.0.2")))
    await rig.effects.apply(desired(world(certificate=None, manifest=first)), OWN)
    fewer = desired(world(certificate=None, manifest=manifest(epoch=5, routes=(route("api", "api"),))))
    await rig.effects.apply(fewer, OWN)
    again = Rig(rig.folder)
    await again.effects.apply(fewer, OWN)
    for effects in (rig.effects, again.effects):
        resolver = effects.dns._resolver
        for name in ("extra", "x.extra", "extra.mesh", "2.0.10.127.in-addr.arpa"):
            outcome = resolver.resolve(bytes(DNSRecord.question(name, "ANY").pack()), Transport.UDP)
            assert isinstance(outcome, Answer)
            assert DNSRecord.parse(outcome.wire).header.rcode == Rcode.NXDOMAIN, name
        outcome = resolver.resolve(bytes(DNSRecord.question("example.org").pack()), Transport.UDP)
        assert isinstance(outcome, Forward)


async def test_names_that_cannot_be_noted_are_served_all_the_same(rig: Rig) -> None:
    """Status says it, and the next wish notes them."""
    beside = rig.folder / ".routes.json.new"
    beside.mkdir()
    await rig.effects.apply(desired(world(certificate=None)), OWN)
    assert rig.effects.dns._resolver.zone is not None
    assert "names" in rig.effects.problems
    beside.rmdir()
    await rig.effects.apply(desired(world(certificate=None)), OWN)
    assert (rig.effects.problems, former.read(rig.folder)) == ({}, ("api",))


async def test_a_first_manifest_replaces_what_the_environment_said(rig: Rig) -> None:
    """Its VIPs are set before anything else, and what comes in by the mesh is there; refused VIPs are an error."""
    hints = (RouteHint(name="old", vip="127.10.0.7", port=80, role=None, service="old"),)
    await rig.effects.apply(beforehand(hints), None)
    assert rig.vips.applied == [frozenset({"127.10.0.7"})]
    assert "127.10.0.7 old" in rig.hosts
    assert rig.refusals.filter is None
    wish = desired(world(certificate=None))
    rig.vips.refuse = True
    with pytest.raises(VipError):
        await rig.effects.begin(wish, "127.10.0.0/16")
    assert "127.10.0.7 old" in rig.hosts
    rig.vips.refuse = False
    await rig.effects.begin(wish, "127.10.0.0/16")
    assert rig.vips.applied[1:] == [frozenset({"127.10.0.1"})], "once"
    assert "old" not in rig.hosts
    assert rig.refusals.filter == wish.packets is not None


async def test_parts_wait_for_link_and_xds_and_then_get_the_newest_wish(rig: Rig) -> None:
    """Before they are there nothing is lost: the next apply gives them everything."""
    wish = desired(world())
    await rig.effects.apply(wish, OWN)
    assert rig.published == 0
    link = FakeLink()
    rig.effects.link = link  # type: ignore[assignment]
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    await rig.effects.xds.start()
    await rig.effects.apply(wish, OWN)
    assert [peer.peer_id for peer in link.peers] == ["coordinator-0"]
    assert rig.published == 1
    assert rig.effects.endpoints == {"api": ("api-0", "api-1")}


async def test_refusals_begin_before_envoy_hears_and_end_after_it_has(rig: Rig) -> None:
    """The last endpoint that goes: refused first. One that comes: published first, lifted when Envoy has it."""
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    await rig.effects.xds.start()
    rig.refusals.seen = lambda: rig.published
    full, empty = desired(world()), desired(world(catalog={}))
    place = frozenset({Refusal("127.10.0.1", 8080)})
    assert (full.refused, empty.refused) == (frozenset(), place)
    versions = []
    for wish in (empty, full, empty):
        await rig.effects.apply(wish, OWN)
        assert rig.effects.snapshot is not None
        versions.append(rig.effects.snapshot.version)
        if wish is full:
            assert rig.refusals.applied == [place], "it is refused until Envoy has it"
            await rig.effects.refusing.envoy_has(versions[0])
            assert rig.refusals.applied == [place], "what Envoy had before lifts nothing"
        await rig.effects.refusing.envoy_has(versions[-1])
    assert rig.refusals.order == [(place, 0), (frozenset(), 2), (place, 2)]
    assert rig.published == 3


async def test_a_refusal_ends_though_nothing_new_is_published(rig: Rig) -> None:
    """An empty route whose snapshot was refused, and which is filled again: Envoy has had it all the time."""
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    await rig.effects.xds.start()
    held = world()
    await rig.effects.apply(desired(held), OWN)
    await rig.effects.apply(desired(dataclasses.replace(held, catalog={}, certificate=None)), OWN)
    assert len(rig.refusals.applied[-1]) == 1
    await rig.effects.apply(desired(held), OWN)
    assert rig.published == 2, "whoever waits for Envoy is told to look again"
    assert rig.effects.snapshot is not None
    await rig.effects.refusing.envoy_has(rig.effects.snapshot.version)
    assert rig.refusals.applied[-1] == frozenset()


def test_secrets_that_cannot_be_written_are_named_until_they_can(rig: Rig) -> None:
    """The folder's error is told without what was to be in it."""
    (rig.folder / "run/secrets").rmdir()
    assert not rig.effects.keep_secrets({"database": Secret("s3cret")})
    assert "secrets" in rig.effects.problems
    assert "s3cret" not in rig.effects.problems["secrets"]
    (rig.folder / "run/secrets").mkdir()
    assert rig.effects.keep_secrets({"database": Secret("s3cret")})
    assert rig.effects.problems == {}
    assert (rig.folder / "run/secrets/database").read_text() == "s3cret"


async def test_a_group_that_files_cannot_be_given_to_is_refused_at_the_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a user namespace only some groups exist; the message names the variable."""

    def chown(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "chown", chown)
    config = parse(environment(MESH_RUN_DIR=str(rig.folder / "run"), MESH_SECRETS_GID="4294967290"))
    with pytest.raises(OSError, match=r"MESH_SECRETS_GID .*4294967290.*group_add"):
        await Effects(config).start(desired(world()))


async def test_equal_wishes_publish_nothing_and_changes_publish_once(rig: Rig) -> None:
    """Envoy hears of an endpoint that went, and of nothing that stayed."""
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    await rig.effects.xds.start()
    first = world()
    await rig.effects.apply(desired(first), OWN)
    await rig.effects.apply(desired(first), OWN)
    assert rig.published == 1
    fewer = catalog.instances([health("api-1", "100.96.0.11")])
    await rig.effects.apply(desired(dataclasses.replace(first, catalog={"api": fewer})), OWN)
    assert rig.published == 2
    assert rig.effects.xds.status().version == rig.effects.snapshot.version  # type: ignore[union-attr]


async def test_refused_part_keeps_its_last_state_and_is_named(rig: Rig) -> None:
    """A VIP that cannot be set, a name that cannot be served and a spec that does not fit cost only themselves."""
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    await rig.effects.xds.start()
    good = world()
    await rig.effects.apply(desired(good), OWN)
    before = rig.effects.snapshot
    bad = manifest(epoch=4, routes=(route("api", "api"), route("bad name", "api", vip="127.10.0.1")))
    # No manifest gets so far any more; what it would do is bounded all the same.
    signed = dataclasses.replace(good.signed, manifest=bad)
    rig.vips.refuse = True
    await rig.effects.apply(
        dataclasses.replace(desired(dataclasses.replace(good, signed=signed)), vips=frozenset()), OWN
    )
    assert sorted(rig.effects.problems) == ["envoy", "names", "vips"]
    assert rig.effects.snapshot is before
    assert "bad name" not in rig.hosts
    rig.vips.refuse = False
    await rig.effects.apply(desired(good), OWN)
    assert rig.effects.problems == {}


async def test_a_role_that_moves_is_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The moment at which connections to an old leader are cut is in the log, with both names; nothing else is."""
    caplog.set_level("INFO", logger="sidecar.effects")
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    await rig.effects.xds.start()
    first = world(manifest=manifest(routes=(route("api-master", "api", role="master"),)))
    for leader in ("api-0", "api-0", "api-1", ""):
        own = [health(f"api-{n}", f"100.96.0.1{n}", tags=("master",) if leader == f"api-{n}" else ()) for n in range(2)]
        await rig.effects.apply(desired(dataclasses.replace(first, catalog={"api": catalog.instances(own)})), OWN)
    told = [(r.__dict__["was"], r.__dict__["now"]) for r in caplog.records if r.getMessage() == "role moves"]
    assert told == [("api-0", "api-1"), ("api-1", "nobody")]


async def test_routes_that_the_group_may_not_call_are_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """At the start and when they change: the application sees a reset, and who serves them a stranger."""
    caplog.set_level("INFO", logger="sidecar.effects")
    barred = with_group(restricted("client"))
    for wish in (world(), world(manifest=barred), world(manifest=barred), world()):
        await rig.effects.apply(desired(wish), OWN)
    told = [r.__dict__["routes"] for r in caplog.records if r.getMessage().startswith("routes that this group may not")]
    assert told == [["api"]]


async def test_other_authorities_are_told_though_envoy_needs_none(rig: Rig) -> None:
    """A CVM without routes and backends has to say, too, that it trusts a new authority."""
    client = manifest().groups["client"]
    rig.effects.xds = XdsServer(rig.folder / "xds.sock")
    first = world(manifest=manifest(routes=()), own=client, group="client")
    await rig.effects.apply(desired(first), None)
    assert (rig.published, rig.effects.trusted_pem) == (1, CERTIFICATE.trusted_pem)
    changed = heard(CERTIFICATE, given(KEYS.public.leaf, "e2" * 32, DIGEST, epoch=4), 0.0, 120.0, 0.0)
    await rig.effects.apply(desired(dataclasses.replace(first, certificate=changed)), None)
    assert (rig.published, rig.effects.trusted_pem) == (2, changed.trusted_pem)


async def test_an_egress_without_roots_is_named_once_and_until_there_are_some(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """In `problems`, which status shows; everything else is carried out."""
    for _ in range(2):
        await rig.effects.apply(desired(world(dialling(TO_BANK))), OWN)
    assert rig.effects.problems["egress"].startswith("bank: there are no public authorities' certificates here")
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "refused, the last good state stays"
    ]
    await rig.effects.apply(desired(world(dialling(TO_BANK), roots_file="/roots.crt")), OWN)
    assert "egress" not in rig.effects.problems
