"""What a CVM wants of Envoy, DNS, its VIPs and its link, by what it knows.

Long because it is a list: each rule of the one function is a case of its own.
"""

from __future__ import annotations

import dataclasses

import pytest
from cryptography import x509

from dns.zone import SrvTarget
from sidecar import catalog, identity
from sidecar.catalog import Instance
from sidecar.certificate import begun, heard
from sidecar.desired import World, desired
from tests.sidecar.world import DIGEST, backend, given, health, manifest, peer, published, route
from tests.topology.support import opened
from topology.egress import EgressEntry
from topology.manifest import GroupEntry, Manifest, PeerEntry, RouteEntry
from topology.public import Public
from topology.revocation import Revocation
from vip.filter import Filter
from vip.resets import Refusal
from xds.spec import EgressRoute, Endpoint, Ingress, Leaf, Principal, PublicListener, Sole

MANIFEST = manifest()
KEYS = identity.make()
CERTIFICATE = begun(given(KEYS.public.leaf), 0.0, 120.0)
API_0, API_1 = Endpoint(address="100.96.0.10", port=20001), Endpoint(address="100.96.0.11", port=20001)


def world(manifest: Manifest = MANIFEST, **changes: object) -> World:
    base = World(
        signed=opened(manifest),
        own=MANIFEST.groups["api"],
        group="api",
        address="100.96.0.10",
        certificate=CERTIFICATE,
        leaf_key=KEYS.leaf_private_pem,
        catalog={"api": catalog.instances([health("api-0"), health("api-1")])},
        peers=(peer("api-0", "100.96.0.10"), peer("coordinator-0", "100.96.0.9", "coordinator")),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def with_database(*routes: RouteEntry) -> Manifest:
    """The manifest with a group pg of three slots, and `routes` only."""
    database = GroupEntry(
        app_id="55" * 20,
        compose_hashes=("66" * 32,),
        peers=tuple(PeerEntry(peer_id=f"pg-{n}", address=f"100.96.1.{n}") for n in range(3)),
        backends={"pg": backend("pg", owner="workload", sidecar_port=25432)},
    )
    return manifest(groups={**MANIFEST.groups, "pg": database}, routes=routes)


def instance(peer_id: str, *tags: str, index: int = 1) -> Instance:
    return Instance(service_id=f"pg-{peer_id}", peer_id=peer_id, tags=tags, modify_index=index)


def test_egress_has_every_passing_instance_and_demands_the_routes_own_group() -> None:
    """The endpoints are the slots' addresses and the backend's ingress port, our own instance included; the SAN is that
    of the group."""
    spec = desired(world()).spec
    assert spec is not None
    assert spec.egress == (
        EgressRoute(
            name="api",
            vip="127.10.0.1",
            port=8080,
            endpoints=(API_0, API_1),
            identity="api",
            peer_sans=("spiffe://demo/api",),
            generation="",
        ),
    )


def test_one_leaf_is_shown_and_every_authority_that_counts_is_trusted() -> None:
    """The leaf of this CVM, by its group's name; both authorities while a new one is being introduced."""
    following = "e2" * 32
    changed = heard(CERTIFICATE, given(KEYS.public.leaf, following, DIGEST, epoch=4), 0.0, 120.0, 0.0)
    spec = desired(world(certificate=changed)).spec
    assert spec is not None
    assert spec.leaves == (
        Leaf(
            name="api",
            uri="spiffe://demo/api",
            chain_pem=CERTIFICATE.leaf.pem,
            key_pem=KEYS.leaf_private_pem,
        ),
    )
    assert spec.roots_pem == changed.trusted_pem
    assert spec.roots_pem.count("BEGIN CERTIFICATE") == 2
    uri = x509.load_pem_x509_certificates(spec.leaves[0].chain_pem.encode())[0].extensions
    names = uri.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spec.leaves[0].uri]


@pytest.mark.parametrize(
    ("address", "port"), [("nowhere.example", 20001), ("8.8.8.8", 70000), ("127.0.0.1", 8500), ("", 1)]
)
def test_where_an_instance_is_the_manifest_says(address: str, port: int) -> None:
    """A CVM may register what it likes: of what Consul says of address and port nothing counts."""
    found = catalog.instances([health("api-0", address, port=port)])
    wish = desired(world(catalog={"api": found}))
    assert wish.spec is not None
    assert wish.spec.egress[0].endpoints == (API_0,)
    assert wish.services == {"api": (SrvTarget(peer_id="api-0", port=20001),)}


@pytest.mark.parametrize("node", ["client-0", "coordinator-0", "api-7", "stranger", ""])
def test_who_has_no_slot_of_the_routes_group_is_no_endpoint(node: str) -> None:
    """A CVM of another group that registers the service, or a slot that is gone, leads nobody anywhere."""
    found = catalog.instances([health("api-0"), health(node)])
    wish = desired(world(catalog={"api": found}))
    assert wish.endpoints == {"api": ("api-0",)}
    assert wish.services == {"api": (SrvTarget(peer_id="api-0", port=20001),)}
    assert wish.spec is not None
    assert wish.spec.egress[0].endpoints == (API_0,)


def test_several_registrations_of_one_cvm_are_one_endpoint() -> None:
    """A service has one place in a CVM."""
    twice = health("api-0")
    twice["Service"]["ID"] = "second"
    assert desired(world(catalog={"api": catalog.instances([health("api-0"), twice])})).endpoints == {"api": ("api-0",)}


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
            allowed=(Principal(uri="spiffe://demo/api"), Principal(uri="spiffe://demo/client")),
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


@pytest.mark.parametrize("missing", [{"certificate": None}, {"address": None}])
def test_no_spec_before_the_admission(missing: dict[str, object]) -> None:
    """Half a configuration is not given to Envoy; names are served all the same."""
    wish = desired(world(**missing))
    assert wish.spec is None
    assert wish.names == {"api": "127.10.0.1"}


def test_an_exclusive_route_knows_every_slot_and_leads_to_one() -> None:
    """Nothing but the leader is to be said when it moves; the others' health says nothing to Envoy."""
    routes = (dataclasses.replace(route("m", "api", role="master"), group="api", backend="api"),)
    found = {peer: catalog.instances([health(peer, tags=("master",))]) for peer in ("api-1", "api-0")}
    slots = tuple(Endpoint(address=peer.address, port=20001) for peer in manifest().groups["api"].peers)
    assert slots
    for listed in (found["api-0"], found["api-1"], ()):
        spec = desired(world(manifest=manifest(routes=routes), catalog={"api": listed})).spec
        assert spec is not None
        leader = next(({"api-0": API_0, "api-1": API_1}[one.peer_id] for one in listed), None)
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
    leads = {"api": catalog.instances([health("api-0", tags=("master",))])}
    assert desired(world(manifest=manifest(routes=routes), catalog=leads)).refused == {Refusal("127.10.0.2", 9)}
    nothing = desired(world(manifest=manifest(routes=routes), catalog={}, certificate=None))
    assert nothing.refused == empty | {Refusal("127.10.0.1", 8080)}


def test_the_mesh_reaches_ingress_ports_and_gossip() -> None:
    """Before there is an address, too; never the port where the server itself listens."""
    both = {"api": backend("api"), "admin": backend("admin", port=9000)}
    own = dataclasses.replace(manifest().groups["api"], backends=both)
    wanted = Filter(
        "100.96.0.0/16", "mesh0", frozenset({8301, *(b.sidecar_port for b in both.values())}), frozenset({8301})
    )
    newest = manifest(groups={**MANIFEST.groups, "api": own})
    assert desired(world(newest)).packets == desired(world(newest, address=None)).packets == wanted
    assert not {b.port for b in both.values()} & wanted.tcp
    client = manifest(groups={**MANIFEST.groups, "api": dataclasses.replace(own, backends={})}, routes=())
    assert desired(world(client)).packets.tcp == {8301}


def test_the_newest_manifest_says_which_local_server_answers() -> None:
    """A CVM that the host started with an older one has no other ports, sources or headers than the others."""
    older = dataclasses.replace(backend("api", port=9999), source="127.0.0.1", proxy_protocol=False)
    newer = dataclasses.replace(backend("api", port=8080), source="127.10.0.54", proxy_protocol=True)
    groups = {name: dataclasses.replace(entry, backends={}) for name, entry in MANIFEST.groups.items()}
    own = dataclasses.replace(groups["api"], backends={"api": older, "gone": backend("gone", port=7777)})
    groups["api"] = dataclasses.replace(groups["api"], backends={"api": newer, "new": backend("new", port=6666)})
    spec = desired(world(manifest(groups=groups, routes=()), own=own)).spec
    assert spec is not None
    found = {each.name: (each.target.port, each.source, each.proxy_protocol) for each in spec.ingress}
    assert found == {"api": (8080, "127.10.0.54", True), "new": (6666, newer.source, False)}


def test_client_without_backends_has_the_identity_of_its_group() -> None:
    """A pure client calls as its group and listens nowhere."""
    spec = desired(world(own=manifest().groups["client"], group="client")).spec
    assert spec is not None
    assert spec.ingress == ()
    assert spec.egress[0].identity == "client"
    assert [(one.name, one.uri) for one in spec.leaves] == [("client", "spiffe://demo/client")]


def test_an_instance_whose_slot_left_the_manifest_is_not_held_on_to() -> None:
    """From 3 to 2 replicas, with coordinators that forgot: the CVM of the slot that went is no endpoint any more."""
    held = {"api": catalog.instances([health("api-0"), health("api-2")])}
    assert desired(world(catalog={"api": ()}, held=held)).endpoints == {"api": ("api-0",)}


def test_held_instances_stay_endpoints_until_they_are_listed_again() -> None:
    """A catalog that lost everything does not empty a route; what is listed again counts as listed."""
    held = {"api": catalog.instances([health("api-0"), health("api-1")])}
    assert desired(world(catalog={"api": ()}, held=held)).endpoints == {"api": ("api-0", "api-1")}
    spec = desired(world(catalog={"api": catalog.instances([health("api-1", index=99)])}, held=held)).spec
    assert spec is not None
    assert spec.egress[0].endpoints == (API_0, API_1)


def test_role_that_is_listed_is_never_joined_by_one_that_is_remembered() -> None:
    """After a recovery the old leader's greater index must not beat the new leader's claim."""
    old = (instance("pg-0", "master", index=900),)
    new = (instance("pg-1", "master", index=3),)
    routes = (route("m", "pg", role="master"),)
    both = world(manifest=with_database(*routes), catalog={"pg": new}, held={"pg": old})
    assert desired(both).endpoints == {"m": ("pg-1",)}
    assert desired(dataclasses.replace(both, catalog={"pg": ()})).endpoints == {"m": ("pg-0",)}


def restricted(*callers: str) -> GroupEntry:
    """The group `api`, whose backend only CVMs of `callers` may call."""
    return dataclasses.replace(manifest().groups["api"], backends={"api": backend("api", callers=callers)})


def callers_of(found: World) -> list[str]:
    """The groups that the ingresses admit."""
    spec = desired(found).spec
    assert spec is not None
    return [one.uri.removeprefix("spiffe://demo/") for ingress in spec.ingress for one in ingress.allowed]


@pytest.mark.parametrize(
    ("callers", "admitted"),
    [
        (("client",), ["client"]),
        (("client", "api"), ["api", "client"]),
        (("stranger",), []),
        ((), []),
        (("*",), ["api", "client"]),
    ],
)
def test_a_backend_admits_the_groups_that_the_manifest_lists(callers: tuple[str, ...], admitted: list[str]) -> None:
    """Each by its own identity, and nobody whom the manifest does not know."""
    own = restricted(*callers)
    assert callers_of(world(own=own, manifest=with_group(own))) == admitted


def with_group(own: GroupEntry) -> Manifest:
    """The manifest with `own` as its group `api`."""
    return manifest(groups={**manifest().groups, "api": own})


def test_callers_of_the_newest_manifest_count() -> None:
    """A caller that a newer manifest withdraws or adds counts without a restart of the CVM that it calls."""
    started, newest = restricted("client"), restricted("api")
    assert callers_of(world(own=started, manifest=with_group(newest))) == ["api"]
    assert callers_of(world(own=manifest().groups["api"], manifest=with_group(newest))) == ["api"]
    assert callers_of(world(own=started, manifest=manifest())) == ["api", "client"]
    assert callers_of(world(own=started, manifest=with_group(restricted()))) == [], "nobody"
    without = manifest(groups={"client": manifest().groups["client"]})
    gone = world(own=started, manifest=without)
    assert callers_of(gone) == [], "nobody: what it started with came by the host's hands"
    assert desired(gone).packets.tcp == frozenset({8301})


def test_routes_that_the_group_may_not_call_are_named() -> None:
    """The caller's side of the same list: whoever is refused would only see a reset."""
    assert desired(world()).barred == ()
    for own, barred in ((restricted("client"), ("api",)), (restricted("api"), ()), (restricted(), ("api",))):
        assert desired(world(manifest=with_group(own))).barred == barred
    without = manifest(groups={"client": manifest().groups["client"]})
    assert desired(world(manifest=without)).barred == ("api",), "nobody has the backend"


def test_a_group_that_comes_or_goes_is_one_caller_more_or_less() -> None:
    """What the others are named does not change with it: their connections go on."""
    both = callers_of(world())
    without = manifest(groups={"api": manifest().groups["api"]})
    assert set(both) - set(callers_of(world(manifest=without))) == {"client"}


def test_a_member_route_leads_to_its_slot_whatever_consul_lists() -> None:
    """Its endpoint is the slot's mesh address and the backend's ingress port of the manifest, and status shows it."""
    routes = tuple(dataclasses.replace(route(f"m-{n}", "api", vip=f"127.10.1.{n}"), peer=f"api-{n}") for n in (0, 1))
    elsewhere = {"api": catalog.instances([health("api-1", port=9)])}
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
    """Each backend keeps its own port and callers, and all show the CVM's one leaf."""
    own = dataclasses.replace(
        manifest().groups["api"],
        backends={"api": backend("api"), "admin": backend("admin", port=8081, sidecar_port=20002)},
    )
    spec = desired(world(with_group(own))).spec
    assert spec is not None
    assert [(one.name, one.port, one.target.port, one.identity) for one in spec.ingress] == [
        ("admin", 20002, 8081, "api"),
        ("api", 20001, 8080, "api"),
    ]


def test_a_revoked_slot_is_no_endpoint_and_is_denied() -> None:
    """Whatever Consul lists, and whatever certificate its CVM has yet."""
    revoked = (Revocation(peer_id="api-1"), Revocation(compose_hash="99" * 32))
    wish = desired(world(manifest(revoked=revoked)))
    assert wish.endpoints == {"api": ("api-0",)}
    assert wish.spec is not None
    assert wish.spec.ingress[0].denied == ("100.96.0.11",)


TO_API = EgressEntry(name="a", listen="127.137.0.1:8081", remote="api:8080")
TO_BANK = EgressEntry(name="bank", listen="127.137.0.1:443", remote="bank.example.com:443", tls="web")


def dialling(*egress: EgressEntry, group: str = "api") -> Manifest:
    """The manifest, in which `group` has `egress`."""
    entry = dataclasses.replace(MANIFEST.groups[group], egress=egress)
    return manifest(groups={**MANIFEST.groups, group: entry})


def test_an_egress_to_a_route_is_a_door_of_the_route() -> None:
    """Beside the VIP, to the same endpoints and by the same certificates; several, sorted; of our own group's alone."""
    again = dataclasses.replace(TO_API, name="b", listen="127.0.0.1:9000")
    spec = desired(world(dialling(TO_API, again))).spec
    assert spec is not None
    plain = desired(world()).spec
    assert plain is not None
    doors = (Endpoint("127.0.0.1", 9000), Endpoint("127.137.0.1", 8081))
    assert spec.egress == (dataclasses.replace(plain.egress[0], doors=doors),)
    assert desired(world(dialling(TO_API, group="client"))).spec == plain


def test_a_door_of_a_route_without_endpoints_refuses_as_its_vip_does() -> None:
    """Programs see a closed port at both."""
    found = desired(world(dialling(TO_API), catalog={"api": ()})).refused
    assert found == {Refusal("127.10.0.1", 8080), Refusal("127.137.0.1", 8081)}
    assert desired(world(dialling(TO_API))).refused == frozenset()


PUBLIC = Public(port=443, sans=("web.example",), alpn=("h2",))


def reached(ingress: str, public: Public | None = None) -> Manifest:
    """The manifest, whose api is reached so."""
    group = MANIFEST.groups["api"]
    callers = () if ingress == "off" else group.backends["api"].callers
    entry = dataclasses.replace(group.backends["api"], ingress=ingress, public=public, callers=callers)
    routes = () if ingress == "off" else MANIFEST.routes
    groups = {**MANIFEST.groups, "api": dataclasses.replace(group, backends={"api": entry})}
    return manifest(groups=groups, routes=routes)


def test_a_public_listener_leads_to_the_ingress_server_with_a_certificate_of_its_own() -> None:
    """Beside the ingress, on every address, once there is a certificate for it. Nobody calls it by the mesh."""
    found = reached("tls", PUBLIC)
    early = desired(world(manifest=found))
    assert early.spec is not None
    assert early.spec.public == ()
    pem = published(KEYS.public.public)
    certificate = begun(
        given(KEYS.public.leaf, public_key=KEYS.public.public, public_pems={"api": pem, "gone": pem}), 0.0, 120.0
    )
    wish = desired(world(manifest=found, certificate=certificate, public_key=KEYS.public_private_pem))
    assert wish.spec is not None
    assert wish.spec.public == (
        PublicListener(name="api", address="0.0.0.0", port=443, identity="public/api", ingress="api", alpn=("h2",)),
    )
    assert wish.spec.leaves[1:] == (Leaf(name="public/api", uri=None, chain_pem=pem, key_pem=KEYS.public_private_pem),)
    assert (wish.spec.ingress, wish.packets) == (early.spec.ingress, early.packets)
    assert wish.packets is not None
    assert 443 not in wish.packets.tcp
    mtls = desired(world(manifest=reached("mtls"), certificate=certificate)).spec
    assert mtls is not None
    assert (mtls.public, len(mtls.leaves)) == ((), 1)


def test_a_backend_that_is_off_is_served_to_nobody() -> None:
    """No ingress, and no port that is open to the mesh."""
    wish = desired(world(manifest=reached("off")))
    assert wish.spec is not None
    assert wish.spec.ingress == ()
    assert wish.packets is not None
    assert wish.packets.tcp == frozenset({8301})
