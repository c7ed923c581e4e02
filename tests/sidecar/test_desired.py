from __future__ import annotations

import dataclasses

import pytest

from dns.zone import SrvTarget
from sidecar import catalog
from sidecar.catalog import Instance, Rule
from sidecar.desired import World, desired, own_services, principals
from tests.sidecar.world import ROOTS, backend, health, leaf, manifest, peer, route
from tests.topology.support import opened
from topology.manifest import GroupEntry, Manifest
from vip.filter import Filter
from vip.resets import Refusal
from xds.spec import EgressRoute, Endpoint, Ingress, Principal, Sole

MANIFEST = manifest()
TRUST = "11111111-2222-3333-4444-555555555555.consul"


def world(manifest: Manifest = MANIFEST, **changes: object) -> World:
    base = World(
        signed=opened(manifest),
        own=MANIFEST.groups["api"],
        group="api",
        address="100.96.0.10",
        datacenter="demo",
        roots=catalog.roots(ROOTS),
        leaves={"api": catalog.leaf(leaf())},
        catalog={"api": catalog.instances([health("api-0", "100.96.0.10"), health("api-1", "100.96.0.11")])},
        rules={"api": (Rule(source="*", allow=True),)},
        peers=(peer("api-0", "100.96.0.10"), peer("coordinator-0", "100.96.0.9", "coordinator")),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def instance(peer_id: str, *tags: str, index: int = 1) -> Instance:
    return Instance(
        service="pg",
        proxy_id=f"pg-{peer_id}",
        peer_id=peer_id,
        address="100.96.0.77",
        port=1,
        tags=tags,
        modify_index=index,
    )


def test_egress_has_every_passing_instance_and_demands_the_routes_own_service() -> None:
    """The endpoints are mesh addresses and ingress ports, our own instance included; the SAN is the service's."""
    spec = desired(world()).spec
    assert spec is not None
    assert spec.egress == (
        EgressRoute(
            name="api",
            vip="127.10.0.1",
            port=8080,
            endpoints=(Endpoint(address="100.96.0.10", port=20001), Endpoint(address="100.96.0.11", port=20001)),
            identity="api",
            peer_sans=(f"spiffe://{TRUST}/ns/default/dc/demo/svc/api",),
            generation="",
        ),
    )
    assert spec.roots_pem == "ROOT-A\nROOT-B\n"


@pytest.mark.parametrize(
    ("node", "address", "port"),
    [("api-1", "nowhere.example", 20001), ("api-1", "100.96.0.11", 70000), ("api-1", "127.0.0.1", 8500), ("x", "", 1)],
    ids=["name", "port", "loopback", "nothing"],
)
def test_what_a_cvm_registers_outside_the_mesh_is_no_endpoint(node: str, address: str, port: int) -> None:
    """A CVM may register its services as it likes; one bad entry must not stop the snapshot, nor lead elsewhere."""
    found = catalog.instances([health("api-0", "100.96.0.10"), health(node, address, port=port)])
    wish = desired(world(catalog={"api": found}))
    assert wish.spec is not None
    assert wish.spec.egress[0].endpoints == (Endpoint(address="100.96.0.10", port=20001),)
    assert wish.services == {"api": (SrvTarget(peer_id="api-0", port=20001),)}


def test_ingress_of_each_backend_leads_to_loopback() -> None:
    """Other CVMs reach the backend's port on 127.0.0.1 through the ingress port on the mesh address, and come from an
    address that is not 127.0.0.1."""
    spec = desired(world()).spec
    assert spec is not None
    assert spec.ingress == (
        Ingress(
            name="api",
            address="100.96.0.10",
            port=20001,
            identity="api",
            target=Endpoint(address="127.0.0.1", port=8080),
            source="127.10.0.54",
            allowed=(Principal(uri=f"spiffe://{TRUST}/ns/default/dc/demo/svc/", prefix=True),),
        ),
    )


def test_names_addresses_and_peers_follow_manifest_and_registry() -> None:
    """VIPs and names come from routes, peer names from every slot, links from the registry without ourselves."""
    wish = desired(world())
    assert wish.vips == frozenset({"127.10.0.1"})
    assert wish.names == {"api": "127.10.0.1"}
    assert wish.peer_addresses == {
        "api-0": "100.96.0.10",
        "api-1": "100.96.0.11",
        "client-0": "100.96.0.12",
        "coordinator-0": "100.96.0.9",
    }
    assert wish.services == {"api": (SrvTarget(peer_id="api-0", port=20001), SrvTarget(peer_id="api-1", port=20001))}
    assert [one.peer_id for one in wish.peers] == ["coordinator-0"]
    assert wish.endpoints == {"api": ("api-0", "api-1")}


@pytest.mark.parametrize("missing", [{"roots": None}, {"leaves": {}}, {"address": None}])
def test_no_spec_before_roots_leaves_and_address_are_there(missing: dict[str, object]) -> None:
    """Half a configuration is not given to Envoy; names are served all the same."""
    wish = desired(world(**missing))
    assert wish.spec is None
    assert wish.names == {"api": "127.10.0.1"}


def test_an_exclusive_route_knows_every_slot_and_leads_to_one() -> None:
    """Nothing but the leader is to be said when it moves; the others' health says nothing to Envoy."""
    routes = (dataclasses.replace(route("m", "api", role="master"), group="api", backend="api"),)
    found = {
        peer: catalog.instances([health(peer, f"100.96.0.1{peer[-1]}", tags=("master",))])
        for peer in ("api-1", "api-0")
    }
    slots = tuple(Endpoint(address=peer.address, port=20001) for peer in manifest().groups["api"].peers)
    assert slots
    for listed in (found["api-0"], found["api-1"], ()):
        spec = desired(world(manifest=manifest(routes=routes), catalog={"api": listed})).spec
        assert spec is not None
        leader = next((Endpoint(address=one.address, port=one.port) for one in listed), None)
        assert spec.egress[0].sole == Sole(endpoint=leader)
        assert set(spec.egress[0].endpoints) == {*slots, leader} - {None}


def test_route_without_instances_has_no_endpoints() -> None:
    """An unknown or empty service gives an empty route, not an error."""
    spec = desired(world(catalog={})).spec
    assert spec is not None
    assert spec.egress[0].endpoints == ()


def test_routes_with_nobody_behind_them_refuse() -> None:
    """Every VIP and port without an endpoint, exclusive roles without a holder included, and no other."""
    routes = (
        route("api", "api"),
        route("gone", "gone", vip="127.10.0.2", port=9),
        dataclasses.replace(route("m", "api", vip="127.10.0.3", role="master"), group="api", backend="api"),
        dataclasses.replace(route("one", "api", vip="127.10.0.4"), peer="api-1"),
    )
    empty = {Refusal("127.10.0.2", 9), Refusal("127.10.0.3", 8080)}
    assert desired(world(manifest=manifest(routes=routes))).refused == empty
    leads = {"api": catalog.instances([health("api-0", "100.96.0.10", tags=("master",))])}
    assert desired(world(manifest=manifest(routes=routes), catalog=leads)).refused == {Refusal("127.10.0.2", 9)}
    nothing = desired(world(manifest=manifest(routes=routes), catalog={}, roots=None))
    assert nothing.refused == empty | {Refusal("127.10.0.1", 8080)}


def test_the_mesh_reaches_ingress_ports_and_gossip() -> None:
    """Before there is an address, too; never the port where the server itself listens."""
    both = {"api": backend("api"), "admin": backend("admin", port=9000)}
    own = dataclasses.replace(manifest().groups["api"], backends=both)
    wanted = Filter(
        "100.96.0.0/16", "mesh0", frozenset({8301, *(b.sidecar_port for b in both.values())}), frozenset({8301})
    )
    assert desired(world(own=own)).packets == desired(world(own=own, address=None)).packets == wanted
    assert not {b.port for b in both.values()} & wanted.tcp
    client = dataclasses.replace(own, backends={})
    assert desired(world(own=client)).packets.tcp == {8301}


def test_client_without_backends_has_the_identity_of_its_group() -> None:
    """A pure client calls as its group and listens nowhere."""
    client = manifest().groups["client"]
    assert own_services("client", client) == ("client",)
    spec = desired(world(own=client, group="client", leaves={"client": catalog.leaf(leaf("client"))})).spec
    assert spec is not None
    assert spec.ingress == ()
    assert spec.egress[0].identity == "client"


def test_own_services_are_granted_by_the_coordinator() -> None:
    """The services that a sidecar asks leaves for are those that its token covers."""
    from coordinator.tokens import services

    for group, entry in manifest().groups.items():
        assert own_services(group, entry) == services(group, entry)


def test_an_instance_whose_slot_left_the_manifest_is_not_held_on_to() -> None:
    """From 3 to 2 replicas, with coordinators that forgot: the CVM of the slot that went is no endpoint any more."""
    held = {"api": catalog.instances([health("api-0", "100.96.0.10"), health("api-2", "100.96.0.13")])}
    assert desired(world(catalog={"api": ()}, held=held)).endpoints == {"api": ("api-0",)}


def test_held_instances_stay_endpoints_until_they_are_listed_again() -> None:
    """A catalog that lost everything does not empty a route; what is listed again counts as listed."""
    held = {"api": catalog.instances([health("api-0", "100.96.0.10"), health("api-1", "100.96.0.11")])}
    assert desired(world(catalog={"api": ()}, held=held)).endpoints == {"api": ("api-0", "api-1")}
    moved = {"api": catalog.instances([health("api-1", "100.96.0.99")])}
    spec = desired(world(catalog=moved, held=held)).spec
    assert spec is not None
    assert [endpoint.address for endpoint in spec.egress[0].endpoints] == ["100.96.0.10", "100.96.0.99"]


def test_role_that_is_listed_is_never_joined_by_one_that_is_remembered() -> None:
    """After a recovery the old leader's greater index must not beat the new leader's claim."""
    old = (instance("pg-0", "master", index=900),)
    new = (instance("pg-1", "master", index=3),)
    routes = (route("m", "pg", role="master"),)
    both = world(manifest=manifest(routes=routes), catalog={"pg": new}, held={"pg": old})
    assert desired(both).endpoints == {"m": ("pg-1",)}
    assert desired(dataclasses.replace(both, catalog={"pg": ()})).endpoints == {"m": ("pg-0",)}


def allowed(*rules: Rule) -> list[str]:
    return [
        f"{p.uri.rpartition('/')[2]}{'*' if p.prefix else ''}" for p in principals(rules, TRUST, "demo", ("api", "web"))
    ]


def test_principals_follow_the_strength_of_intentions() -> None:
    """Without a rule nobody may call; a wildcard lets all in, but not past a stronger refusal."""
    assert allowed() == []
    assert allowed(Rule(source="web", allow=True)) == ["web"]
    assert allowed(Rule(source="*", allow=True)) == ["*"]
    assert allowed(Rule(source="web", allow=True), Rule(source="*", allow=True)) == ["*"]
    assert allowed(Rule(source="web", allow=False), Rule(source="*", allow=True)) == ["api"]
    assert allowed(Rule(source="web", allow=True), Rule(source="*", allow=False)) == ["web"]
    assert allowed(Rule(source="web", allow=False), Rule(source="web", allow=True)) == []


def restricted(*callers: str) -> GroupEntry:
    """The group `api`, whose backend only CVMs of `callers` may call."""
    return dataclasses.replace(manifest().groups["api"], backends={"api": backend("api", callers=callers)})


def callers_of(found: World) -> list[str]:
    """The services that the ingress of `api` admits; `*` is all."""
    spec = desired(found).spec
    assert spec is not None
    return ["*" if one.prefix else one.uri.rpartition("/")[2] for one in spec.ingress[0].allowed]


@pytest.mark.parametrize(
    ("rules", "admitted"),
    [
        ((Rule(source="*", allow=True),), ["client"]),
        ((Rule(source="client", allow=True), Rule(source="api", allow=True)), ["client"]),
        ((Rule(source="client", allow=False), Rule(source="*", allow=True)), []),
        ((Rule(source="api", allow=True),), []),
        ((Rule(source="stranger", allow=True),), []),
        ((), []),
    ],
    ids=["wildcard", "named", "refused by Consul", "another", "unknown to the manifest", "no rule"],
)
def test_intentions_admit_nobody_whom_the_manifest_does_not_list_as_caller(
    rules: tuple[Rule, ...], admitted: list[str]
) -> None:
    """A backend with callers admits those that the manifest lists and Consul allows: Consul withholds, never grants."""
    own = restricted("client")
    assert callers_of(world(own=own, manifest=with_group(own), rules={"api": rules})) == admitted


def with_group(own: GroupEntry) -> Manifest:
    """The manifest with `own` as its group `api`."""
    return manifest(groups={**manifest().groups, "api": own})


def test_callers_of_the_newest_manifest_count() -> None:
    """A caller that a newer manifest withdraws or adds counts without a restart of the CVM that it calls."""
    started, newest = restricted("client"), restricted("api")
    assert callers_of(world(own=started, manifest=with_group(newest))) == ["api"]
    assert callers_of(world(own=manifest().groups["api"], manifest=with_group(newest))) == ["api"]
    assert callers_of(world(own=started, manifest=manifest())) == ["*"]
    assert callers_of(world(own=started, manifest=with_group(restricted()))) == [], "nobody"
    without = manifest(groups={"client": manifest().groups["client"]})
    assert callers_of(world(own=started, manifest=without)) == ["client"], "its own word, where there is no newer one"


def test_every_service_of_a_callers_group_may_call() -> None:
    """A group is known by the services of its backends, or without backends by its own name."""
    own = restricted("api", "client")
    both = dataclasses.replace(own, backends={**own.backends, "admin": backend("admin", sidecar_port=20002)})
    assert callers_of(world(own=own, manifest=with_group(both))) == ["admin", "api", "client"]


def test_a_member_route_leads_to_its_slot_whatever_consul_lists() -> None:
    """Its endpoint is the slot's mesh address and the backend's ingress port of the manifest, and status shows it."""
    routes = tuple(dataclasses.replace(route(f"m-{n}", "api", vip=f"127.10.1.{n}"), peer=f"api-{n}") for n in (0, 1))
    elsewhere = {"api": catalog.instances([health("api-1", "100.96.0.77", port=9)])}
    for listed in ({}, {"api": ()}, elsewhere):
        wish = desired(world(manifest=manifest(routes=routes), catalog=listed))
        assert wish.endpoints == {"m-0": ("api-0",), "m-1": ("api-1",)}
        assert wish.names == {"m-0": "127.10.1.0", "m-1": "127.10.1.1"}
        assert wish.spec is not None
        assert [one.endpoints for one in wish.spec.egress] == [
            (Endpoint(address="100.96.0.10", port=20001),),
            (Endpoint(address="100.96.0.11", port=20001),),
        ]
        assert all(one.sole is None for one in wish.spec.egress), "no change of a role may cut its connections"


def test_a_member_route_whose_slot_the_manifest_lacks_is_empty() -> None:
    """A manifest that is inconsistent empties one route and ends nothing."""
    whole = dataclasses.replace(route("m", "api"), peer="api-0")
    for one in (
        dataclasses.replace(whole, peer="api-7"),
        dataclasses.replace(whole, group="gone"),
        dataclasses.replace(whole, backend="gone"),
    ):
        wish = desired(world(manifest=manifest(routes=(one,))))
        assert wish.endpoints == {"m": ()}, one


def test_two_backends_of_a_group_have_an_ingress_each() -> None:
    """Each backend keeps its own port, service and rules."""
    own = dataclasses.replace(
        manifest().groups["api"],
        backends={"api": backend("api"), "admin": backend("admin", port=8081, sidecar_port=20002)},
    )
    leaves = {name: catalog.leaf(leaf(name)) for name in ("api", "admin")}
    spec = desired(world(own=own, leaves=leaves)).spec
    assert spec is not None
    assert [(one.name, one.port, one.target.port, bool(one.allowed)) for one in spec.ingress] == [
        ("admin", 20002, 8081, False),
        ("api", 20001, 8080, True),
    ]
