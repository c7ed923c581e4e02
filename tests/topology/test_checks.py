"""Every plan-time check: what is refused, where the message points, and what it says to do.

Long because it is a list: each check is a case of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.support import COMPOSE, backend, group, only, problems, write
from topology import addresses, cluster


def test_a_variable_in_an_image_reference_is_refused(tmp_path: Path) -> None:
    """Template check 1: images are literal; the message has file and line."""
    write(tmp_path, group("api"), compose=COMPOSE.replace("ghcr.io/example/app:1", "${APP_IMAGE}"))
    only(problems(tmp_path), "compose/app.yaml:10:", "services.app.image", "${APP_IMAGE}", "not measured")


def test_one_route_name_in_two_groups_is_refused(tmp_path: Path) -> None:
    """Template check 2: route names are unique; both entries are named."""
    route = 'web = { backend = "%s", role = null }'
    write(tmp_path, group("api", routes=route % "api"), group("site", routes=route % "site"))
    found = problems(tmp_path)
    assert any(
        "cluster.tf" in p and "workload_groups.site.routes.web" in p and "workload_groups.api.routes.web" in p
        for p in found
    ), found


def test_one_route_name_twice_in_a_group_is_refused(tmp_path: Path) -> None:
    """A key written twice would be dropped silently by Terraform."""
    route = 'api = { backend = "api", role = null }'
    write(tmp_path, group("api", routes=f"{route}\n{route}"))
    only(problems(tmp_path), "workload_groups.api.routes.api", "is written twice")


def test_one_backend_name_with_two_parents_is_refused(tmp_path: Path) -> None:
    """Template check 3: a backend has one parent."""
    first = group("a", backends=backend("db", parent="one"), routes="")
    write(tmp_path, first, group("b", backends=backend("db", parent="two"), routes=""))
    only(problems(tmp_path), "workload_groups.b.backends.db.registration", "'one'", "'two'", "one parent and one owner")


def test_one_backend_name_with_two_owners_is_refused(tmp_path: Path) -> None:
    """Template check 3: a backend has one owner."""
    first = group("a", backends=backend("db"), routes="")
    write(tmp_path, first, group("b", backends=backend("db", owner="workload"), routes=""))
    only(problems(tmp_path), "workload_groups.b.backends.db.registration", "by the workload", "by the platform")


def test_one_parent_with_two_owners_is_refused(tmp_path: Path) -> None:
    """Two backends that share a parent must agree on who keeps it."""
    first = group("a", backends=backend("x", parent="db"), routes="")
    write(tmp_path, first, group("b", backends=backend("y", parent="db", owner="workload"), routes=""))
    only(problems(tmp_path), "workload_groups.b.backends.y.registration.parent", "workload_groups.a.backends.x")


def test_two_backends_of_a_group_with_one_parent_are_refused(tmp_path: Path) -> None:
    """A route could not tell the two ports of one CVM apart."""
    both = backend("x", parent="db") + backend("y", parent="db", port="8081")
    write(tmp_path, group("a", backends=both, routes=""))
    only(problems(tmp_path), "workload_groups.a.backends.y.registration.parent", "backend 'x'")


def test_groups_may_share_a_workload_owned_parent(tmp_path: Path) -> None:
    """The template's shared parent: two groups of one database are one Consul service."""
    first = group("a", backends=backend("x", parent="db", owner="workload"), routes="")
    write(tmp_path, first, group("b", backends=backend("y", parent="db", owner="workload"), routes=""))
    assert [g.backends[0].parent for g in cluster.load(tmp_path).groups] == ["db", "db"]


@pytest.mark.parametrize("replicas", ["0", "-1", "1.5", '"two"', "true", "null", "[2]", "1001"])
def test_replicas_must_be_a_positive_whole_number(tmp_path: Path, replicas: str) -> None:
    """Template check 4: a group has at least one slot."""
    write(tmp_path, group("api", replicas=replicas))
    only(problems(tmp_path), "workload_groups.api.replicas", "whole number from 1 to 1000")


def test_a_group_cannot_take_the_coordinators_peer_ids(tmp_path: Path) -> None:
    """Template check 5: peer IDs are unique; `<group>-<n>` can only meet the coordinators'."""
    write(tmp_path, group("coordinator"))
    only(problems(tmp_path), "workload_groups.coordinator", "coordinators", "peer IDs must be unique")


def test_groups_whose_names_nest_have_distinct_peers(tmp_path: Path) -> None:
    """`a` with many replicas and `a-1` never meet: `a-1` is a peer of one and a group of the other."""
    write(tmp_path, group("a", replicas="30"), group("a-1", replicas="30"))
    peers = [peer for found in cluster.load(tmp_path).groups for peer in found.peers()]
    assert len(peers) == len(set(peers)) == 60


def test_two_routes_with_one_vip_are_refused(tmp_path: Path) -> None:
    """Template check 6: VIPs are unique; the message has a free one that then works."""
    taken = addresses.vip_of("api")
    routes = 'site = { backend = "site", role = null, vip = "%s" }'
    write(tmp_path, group("api"), group("site", routes=routes % taken))
    found = problems(tmp_path)
    only(found, "workload_groups.site.routes.site", taken, "route 'api'", "vip = ")
    free = found[0].rpartition('vip = "')[2].partition('"')[0]
    write(tmp_path, group("api"), group("site", routes=routes % free))
    assert cluster.load(tmp_path).vips()["site"] == free


def test_two_cvms_with_one_mesh_address_are_refused(tmp_path: Path) -> None:
    """Mesh addresses are unique too, coordinators included."""
    taken = addresses.mesh_address_of("coordinator-0")
    write(tmp_path, group("api", more=f'mesh_addresses = {{ "api-1" = "{taken}" }}'))
    found = problems(tmp_path)
    only(found, "workload_groups.api", "'api-1'", taken, "'coordinator-0'", "mesh_addresses = ")
    free = found[0].rpartition('" = "')[2].partition('"')[0]
    write(tmp_path, group("api", more=f'mesh_addresses = {{ "api-1" = "{free}" }}'))
    assert cluster.load(tmp_path).mesh_addresses()["api-1"] == free


@pytest.mark.parametrize("vip", ["127.10.0.53", "127.10.0.0", "127.10.255.255", "127.10.0.255", "127.11.1.1", "web"])
def test_a_pinned_vip_must_be_one_that_may_be_given_out(tmp_path: Path, vip: str) -> None:
    """The DNS server's address, the reserved start, the broadcast address and other networks are refused."""
    write(tmp_path, group("api", routes=f'api = {{ backend = "api", role = null, vip = "{vip}" }}'))
    only(problems(tmp_path), "workload_groups.api.routes.api.vip", vip, "127.10.1.0")


def test_a_pinned_mesh_address_must_be_of_the_pool_and_of_a_peer(tmp_path: Path) -> None:
    """Another network and an unknown peer are refused."""
    pins = 'mesh_addresses = { "api-0" = "10.0.0.1", "api-2" = "100.96.9.9" }'
    write(tmp_path, group("api", more=pins))
    found = problems(tmp_path)
    assert len(found) == 2
    assert "mesh_addresses.api-0" in found[0]
    assert "100.96.1.0" in found[0]
    assert "mesh_addresses.api-2" in found[1]
    assert "is no peer of this group" in found[1]


def test_two_backends_on_one_port_are_refused(tmp_path: Path) -> None:
    """Template check 7, the plain case: one CVM, one port, two servers."""
    write(tmp_path, group("a", backends=backend("x") + backend("y"), routes=""))
    only(problems(tmp_path), "workload_groups.a.backends.y.port", "8080", "backend 'x'")


def test_two_backends_with_one_sidecar_port_are_refused(tmp_path: Path) -> None:
    """Template check 7: different ports whose sidecar port is the same."""
    both = backend("x", port="1000") + backend("y", port="41000")
    write(tmp_path, group("a", backends=both, routes=""))
    only(problems(tmp_path), "workload_groups.a.backends.y.port", "21000", "backend 'x'")


def test_two_groups_may_use_one_port(tmp_path: Path) -> None:
    """Groups never share a CVM."""
    write(tmp_path, group("a"), group("b"))
    assert len(cluster.load(tmp_path).groups) == 2


@pytest.mark.parametrize("port", sorted(addresses.PLATFORM_PORTS))
def test_a_port_of_the_platform_is_refused(tmp_path: Path, port: int) -> None:
    """What the platform or the mesh holds in every CVM cannot be a backend's port; the holder is named."""
    write(tmp_path, group("a", backends=backend("a", port=str(port))))
    only(problems(tmp_path), "workload_groups.a.backends.a.port", str(port), addresses.PLATFORM_PORTS[port])


@pytest.mark.parametrize("port", [31820, 31821])
def test_a_sidecar_port_of_the_platform_is_refused(tmp_path: Path, port: int) -> None:
    """A port whose sidecar port is WireGuard's or the rendezvous' is refused too."""
    write(tmp_path, group("a", backends=backend("a", port=str(port))))
    only(problems(tmp_path), "workload_groups.a.backends.a.port", str(port + 20000), "sidecar port")


@pytest.mark.parametrize("port", ["0", "65536", "-1", '"http"', "80.5", "null"])
def test_a_port_must_be_one(tmp_path: Path, port: str) -> None:
    """Ports are whole numbers from 1 to 65535."""
    write(tmp_path, group("a", backends=backend("a", port=port), routes=""))
    only(problems(tmp_path), "workload_groups.a.backends.a.port", "whole number from 1 to 65535")


def test_a_role_on_a_platform_owned_backend_is_refused(tmp_path: Path) -> None:
    """Nobody would ever set the tag, so the route would have no endpoint for ever."""
    write(tmp_path, group("a", routes='a = { backend = "a", role = "master" }'))
    only(problems(tmp_path), "workload_groups.a.routes.a.role", "'master'", 'owner = "workload"')


def test_a_role_must_be_a_name(tmp_path: Path) -> None:
    """A role becomes a Consul tag and part of a cluster's name."""
    written = backend("a", owner="workload")
    write(tmp_path, group("a", backends=written, routes='a = { backend = "a", role = "The Master" }'))
    only(problems(tmp_path), "workload_groups.a.routes.a.role", "'The Master'", "DNS label")


def test_a_route_to_another_groups_backend_is_refused(tmp_path: Path) -> None:
    """A route belongs to the group that hosts its backend."""
    write(tmp_path, group("a", routes='r = { backend = "b", role = null }'), group("b"))
    only(problems(tmp_path), "workload_groups.a.routes.r.backend", "backend of group 'b'", "move the route")


def test_a_route_to_no_backend_gets_a_hint(tmp_path: Path) -> None:
    """A misspelt backend is named with the closest one."""
    write(tmp_path, group("api", routes='r = { backend = "aip", role = null }'))
    only(problems(tmp_path), "workload_groups.api.routes.r.backend", "did you mean 'api'?")


@pytest.mark.parametrize("name", ["localhost", "mesh"])
def test_reserved_route_names_are_refused(tmp_path: Path, name: str) -> None:
    """These names are taken inside every CVM."""
    write(tmp_path, group("a", routes=f'{name} = {{ backend = "a", role = null }}'))
    only(problems(tmp_path), f"routes.{name}", "reserved")


def test_reserved_parents_and_workloads_are_refused(tmp_path: Path) -> None:
    """`consul` is Consul's own service, `node` the identity that every CVM has."""
    write(tmp_path, group("a", backends=backend("node", parent="consul"), routes=""))
    found = problems(tmp_path)
    assert len(found) == 2
    assert "backends.node.registration.parent" in found[0]
    assert "backends.node.workload" in found[1]


@pytest.mark.parametrize("name", ["API", "a_b", "-a", "a-", "1a", "a.b", "a" * 64, "ä"])
def test_names_must_be_dns_labels(tmp_path: Path, name: str) -> None:
    """Group, backend, route, workload and parent become parts of host names and identities."""
    write(tmp_path, group(name))
    found = problems(tmp_path)
    entries = [f"workload_groups.{name}: ", f"backends.{name}: ", f"routes.{name}: ", ".workload: ", ".parent: "]
    for entry in entries:
        assert any(entry in p and "DNS label" in p and repr(name) in p for p in found), (entry, found)


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    """One run, all mistakes, each with its own line."""
    broken = group("a", replicas="0", backends=backend("a", port="8090"), routes='a = { backend = "b", role = null }')
    write(tmp_path, group("ok"), broken.replace("compose  =", "kompose ="), compose=COMPOSE.replace("host", "bridge"))
    found = problems(tmp_path)
    assert [p for p in found if "replicas" in p]
    assert [p for p in found if "kompose" in p and "did you mean 'compose'" in p]
    assert [p for p in found if "network_mode" in p]
    assert all(str(tmp_path) in p for p in found)


PERMISSIONS = 'consul_permissions = { key_prefixes = ["service/pg"], session_write = true }'
MASTER = '"pg-master" = { backend = "pg", role = "master" }'


def database(*, routes: str = MASTER, permissions: str = PERMISSIONS, more: str = "", name: str = "pg") -> str:
    """A group with a workload-owned backend, as a Patroni cluster has it."""
    return group(name, backends=backend("pg", owner="workload", more=permissions), routes=routes, more=more)


@pytest.mark.parametrize(
    ("route", "field", "words"),
    [
        ('role = "leader"', "role", ("'leader'", "no instance", "master, replica", "registration.roles")),
        ('role = "mastr"', "role", ("'mastr'", "no instance", "did you mean 'master'?")),
        ('role = "replica", fallback = "mater"', "fallback", ("'mater'", "no instance", "did you mean 'master'?")),
        ('role = null, fallback = "master"', "fallback", ("'master'", "asks for no role")),
        ('role = "replica", fallback = "replica"', "fallback", ("'replica'", "the role of the route itself")),
        ('role = "master", fallback = "replica"', "fallback", ("'replica'", "'master' is a role of one instance")),
        ('role = "replica", fallback = "The Master"', "fallback", ("'The Master'", "no instance")),
        ('role = "replica", fallback = 1', "fallback", ("1", "expected one text")),
    ],
)
def test_roles_that_lead_nowhere_are_refused(tmp_path: Path, route: str, field: str, words: tuple[str, ...]) -> None:
    """A role or fallback that no instance can have, or that no caller should be given."""
    write(tmp_path, database(routes=f'r = {{ backend = "pg", {route} }}'))
    only(problems(tmp_path), f"workload_groups.pg.routes.r.{field}", *words)


def test_a_fallback_on_a_platform_owned_backend_is_refused(tmp_path: Path) -> None:
    """The platform sets no roles, so the fallback would have no endpoint either."""
    write(tmp_path, group("a", routes='a = { backend = "a", role = null, fallback = "master" }'))
    found = problems(tmp_path)
    assert all("workload_groups.a.routes.a.fallback" in problem for problem in found)
    assert any("owned by the platform" in problem for problem in found)


@pytest.mark.parametrize(
    ("permissions", "words"),
    [
        ("", ("lacks key_prefixes", "and session_write = true")),
        ("consul_permissions = {}", ("lacks key_prefixes", "and session_write = true")),
        ("consul_permissions = { session_write = true }", ("lacks key_prefixes",)),
        ('consul_permissions = { key_prefixes = ["service/pg"] }', ("lacks session_write = true",)),
    ],
)
@pytest.mark.parametrize("route", [MASTER, '"pg-replica" = { backend = "pg", role = "replica", fallback = "master" }'])
def test_a_parent_without_what_its_workload_needs_is_refused(
    tmp_path: Path, permissions: str, words: tuple[str, ...], route: str
) -> None:
    """An exclusive role is held by a lock: without its key and a session nobody would ever lead."""
    write(tmp_path, database(routes=route, permissions=permissions))
    name = route.partition('"')[2].partition('"')[0]
    entry = "workload_groups.pg.backends.pg.consul_permissions"
    only(problems(tmp_path), entry, *words, f"workload_groups.pg.routes.{name}.", "'master'")


def test_a_role_that_is_not_exclusive_needs_no_permissions(tmp_path: Path) -> None:
    """Replicas need no lock."""
    write(tmp_path, database(routes='r = { backend = "pg", role = "replica" }', permissions=""))
    assert cluster.load(tmp_path).groups[0].routes[0].role == "replica"


@pytest.mark.parametrize("prefix", ["mesh", "mesh/", "mesh/peers", "coordinator", "coordinator/slots/x", "/service/pg"])
def test_a_key_prefix_below_a_reserved_one_is_refused(tmp_path: Path, prefix: str) -> None:
    """The coordinators would leave it out of the rights, silently; a slash at the start matches no key at all."""
    permissions = f'consul_permissions = {{ key_prefixes = ["{prefix}"], session_write = true }}'
    write(tmp_path, database(permissions=permissions))
    only(problems(tmp_path), "backends.pg.consul_permissions.key_prefixes", repr(prefix))


@pytest.mark.parametrize("prefix", ["meshed", "service/mesh", "coordinators/x"])
def test_a_key_prefix_beside_a_reserved_one_is_fine(tmp_path: Path, prefix: str) -> None:
    """Only the mesh's own keys are taken."""
    write(
        tmp_path, database(permissions=f'consul_permissions = {{ key_prefixes = ["{prefix}"], session_write = true }}')
    )
    assert cluster.load(tmp_path).groups[0].backends[0].permissions.key_prefixes == (prefix,)


@pytest.mark.parametrize(
    ("written", "entry", "words"),
    [
        ("word = {}", "secrets.word.grant", ("granted to nobody", "'pg'")),
        ("word = { grant = [] }", "secrets.word.grant", ("granted to nobody",)),
        ('word = { grant = ["pg"] }', "secrets.word.grant", ("'pg' only", "GetKey")),
        ('word = { grant = ["web", "wob"] }', "secrets.word.grant", ("'wob'", "did you mean 'web'?")),
        ('word = { grant = ["coordinator"] }', "secrets.word.grant", ("'coordinator'", "no workload group")),
        ("word = { grant = [1] }", "secrets.word.grant", ("1", "a list of groups")),
        ('word = { grants = ["web"] }', "secrets.word.grants", ("unknown field", "did you mean 'grant'?")),
        ('"consul-token" = { grant = ["web"] }', "secrets.consul-token", ("Consul token", "choose another")),
        ('"../word" = { grant = ["web"] }', "secrets.../word", ("DNS label",)),
        ('"a.b" = { grant = ["web"] }', "secrets.a.b", ("DNS label",)),
        ('word = ["web"]', "secrets.word", ("a list", "expected a map")),
    ],
)
def test_secrets_that_cannot_be_are_refused(tmp_path: Path, written: str, entry: str, words: tuple[str, ...]) -> None:
    """Granted to nobody, to the owner only, to an unknown group, or by a name that is no file of its own."""
    write(tmp_path, database(more=f"secrets = {{ {written} }}"), group("web"))
    found = [problem for problem in problems(tmp_path) if f"workload_groups.pg.{entry}:" in problem]
    assert any(all(word in problem for word in words) for problem in found), problems(tmp_path)


def test_one_secret_name_in_two_groups_is_refused(tmp_path: Path) -> None:
    """A CVM that is granted both could keep one of them only."""
    more = 'secrets = { word = { grant = ["web"] } }'
    write(tmp_path, database(more=more), group("api", more=more), group("web"))
    only(problems(tmp_path), "workload_groups.api.secrets.word", "workload_groups.pg.secrets.word", "unique")


def other(prefix: str, parent: str = "other") -> str:
    """Another group with a key prefix."""
    more = f'consul_permissions = {{ key_prefixes = ["{prefix}"] }}'
    return group("other", backends=backend("other", owner="workload", parent=parent, more=more), routes="")


@pytest.mark.parametrize("prefix", ["service/pg", "service/pg/", "service", "s", "service/pg/leader"])
def test_a_key_prefix_that_reaches_anothers_leader_key_is_refused(tmp_path: Path, prefix: str) -> None:
    """Whoever writes it says who leads."""
    write(tmp_path, database(), other(prefix))
    entry = "workload_groups.other.backends.other.consul_permissions.key_prefixes"
    only(problems(tmp_path), entry, repr(prefix), "'service/pg/leader'", "workload_groups.pg.routes.pg-master")


@pytest.mark.parametrize(
    ("prefix", "parent"), [("service/pg2", "other"), ("service/p/", "other"), ("service/pg", "pg")]
)
def test_a_key_prefix_beside_anothers_or_of_the_same_service_is_fine(tmp_path: Path, prefix: str, parent: str) -> None:
    """Two groups of one service share its lock; a name that only begins the same is another's."""
    write(tmp_path, database(), other(prefix, parent))
    assert len(cluster.load(tmp_path).groups) == 2


def member_route(name: str = "r", more: str = "") -> str:
    """A route of group `a` to each of its CVMs."""
    return f'"{name}" = {{ backend = "a", members = true{more} }}'


@pytest.mark.parametrize(
    ("callers", "words"),
    [
        ('["*", "web"]', ("'*'", "everybody", "alone")),
        ('["wob"]', ("'wob'", "no workload group", "did you mean 'web'?")),
        ('["web", "web"]', ("'web'", "more than once")),
        ('["coordinator"]', ("'coordinator'", "no workload group")),
    ],
)
def test_callers_that_cannot_be_are_refused(tmp_path: Path, callers: str, words: tuple[str, ...]) -> None:
    """An unknown group, everybody beside somebody, one group twice."""
    write(tmp_path, group("a", backends=backend("a", more=f"callers = {callers}")), group("web"))
    only(problems(tmp_path), "cluster.tf:", "workload_groups.a.backends.a.callers", *words)


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ('["menber"]', ("'menber'", "no route", "did you mean 'member'?")),
        ('["store"]', ("'store'", "a group and no route", "write some of its routes: db, member")),
        ('["member-1"]', ("'member-1'", "one name of the route 'member'", "write 'member'")),
        ('["*"]', ("'*'", "no route", "expected one of db, member, web")),
        ('["db", "db"]', ("'db'", "more than once")),
        ('["web"]', ("'web'", "workload_groups.web.backends.web.callers does not hold 'web'", "add it there")),
    ],
)
def test_calls_that_cannot_be_are_refused(tmp_path: Path, calls: str, words: tuple[str, ...]) -> None:
    """An unknown route, a group, one name of a member route, one route twice, a backend that names other callers."""
    routes = 'db = { backend = "store" }\nmember = { backend = "store", members = true }'
    web = group("web", backends=backend("web", more='callers = ["store"]'), more=f"calls = {calls}")
    write(tmp_path, group("store", backends=backend("store", port="5432"), routes=routes), web)
    only(problems(tmp_path), "cluster.tf:", "workload_groups.web.calls: ", *words)


def test_a_call_to_a_group_that_is_broken_is_no_second_problem(tmp_path: Path) -> None:
    """Its routes and its name are written, so neither is unknown."""
    web = group("web", backends=backend("web", more='callers = ["db"]'), more='calls = ["db"]')
    write(tmp_path, group("db", replicas="0"), web)
    only(problems(tmp_path), "workload_groups.db.replicas", "is 0")


@pytest.mark.parametrize(
    "source", ["127.10.0.53", "127.10.1.0", "127.0.0.0", "127.255.255.255", "10.0.0.1", "::1", "localhost"]
)
def test_a_source_address_is_a_loopback_address_that_nobody_dials(tmp_path: Path, source: str) -> None:
    """The DNS server's, VIPs, the ends of 127.0.0.0/8 and everything outside of it are refused."""
    write(tmp_path, group("a", backends=backend("a", more=f'source_address = "{source}"')))
    only(problems(tmp_path), "cluster.tf:", "backends.a.source_address", source, "127.0.0.0/8", "leave it out")


def test_the_default_source_address_is_one_that_may_be_written() -> None:
    """It is the mesh's own: not 127.0.0.1, which is allowed and the owner's choice, not the DNS server's, no VIP."""
    assert addresses.why_no_source(addresses.INGRESS_SOURCE) is None
    assert addresses.why_no_source("127.0.0.1") is None
    assert addresses.INGRESS_SOURCE not in ("127.0.0.1", addresses.DNS_ADDRESS)
    assert addresses.why_not(addresses.INGRESS_SOURCE, addresses.VIP_POOL) is not None


@pytest.mark.parametrize(
    ("more", "field", "word"),
    [(', vip = "127.10.9.9"', "vip", "a VIP for each slot"), (', fallback = "x"', "members", "asks for a role")],
)
def test_a_member_route_has_neither_vip_nor_role(tmp_path: Path, more: str, field: str, word: str) -> None:
    """One address cannot be that of several names, and a slot does not move with a role."""
    write(tmp_path, group("a", routes=member_route(more=more)))
    found = [problem for problem in problems(tmp_path) if word in problem]
    only(found, "cluster.tf:", f"workload_groups.a.routes.r.{field}")


def test_names_of_members_are_unique_among_all_routes(tmp_path: Path) -> None:
    """A plain route, another member route and a route of the same group may have none of them."""
    b = group("b", routes='"r-1" = { backend = "b" }')
    write(tmp_path, group("a", routes=member_route()), b)
    only(problems(tmp_path), "workload_groups.b.routes.r-1", "workload_groups.a.routes.r", "'r-1'", "rename one")
    write(tmp_path, group("a", routes=f'"r-0" = {{ backend = "a" }}\n{member_route()}'))
    only(problems(tmp_path), "workload_groups.a.routes.r-0", "workload_groups.a.routes.r ", "rename one")
    write(tmp_path, group("a", routes=member_route()), group("b", routes='"r-2" = { backend = "b" }'))
    assert set(cluster.load(tmp_path).vips()) == {"r-0", "r-1", "r-2"}


def test_names_of_members_must_be_dns_labels(tmp_path: Path) -> None:
    """The number makes a name longer: 63 characters are allowed, the last member's is the longest."""
    write(tmp_path, group("a", replicas="11", routes=member_route("r" * 61)))
    only(problems(tmp_path), f"workload_groups.a.routes.{'r' * 61}", "DNS label", "shorter name")
    write(tmp_path, group("a", replicas="10", routes=member_route("r" * 61)))
    assert len(cluster.load(tmp_path).vips()) == 10


def test_a_vip_clash_of_a_member_is_reported_at_its_route(tmp_path: Path) -> None:
    """A member's VIP cannot be pinned, so the way out is another name."""
    taken = addresses.vip_of("api")
    name = next(f"r{n}" for n in range(1 << 20) if taken in {addresses.vip_of(f"r{n}-{i}") for i in (0, 1)})
    write(tmp_path, group("api"), group("a", routes=member_route(name)))
    only(problems(tmp_path), f"workload_groups.a.routes.{name}", taken, "route 'api'", "rename one of the routes")
