"""Fields, types and optional parts of a workload group."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.support import backend, group, only, problems, write
from topology import addresses, cluster
from topology.manifest import Permissions


@pytest.mark.parametrize(
    ("written", "field", "hint"),
    [
        (group("a", more="replica = 2"), "workload_groups.a.replica", "replicas"),
        (group("a", backends=backend("a", more="prt = 1")), "backends.a.prt", "port"),
        (group("a", backends=backend("a").replace("owner =", "owned =")), "registration.owned", "owner"),
        (group("a", backends=backend("a", more="consul_permission = {}")), ".consul_permission", "consul_permissions"),
        (
            group("a", backends=backend("a", more="consul_permissions = { sesion_write = true }")),
            "consul_permissions.sesion_write",
            "session_write",
        ),
        (group("a", routes='a = { backend = "a", rule = null }'), "routes.a.rule", "role"),
    ],
)
def test_an_unknown_field_gets_a_hint(tmp_path: Path, written: str, field: str, hint: str) -> None:
    """A misspelt field is refused where Terraform would pass over it, with the name that was meant."""
    write(tmp_path, written)
    found = [problem for problem in problems(tmp_path) if "unknown field" in problem]
    only(found, "cluster.tf:", field, f"did you mean {hint!r}?")


@pytest.mark.parametrize("field", ["replicas", "compose"])
def test_a_group_without_a_required_field_is_refused(tmp_path: Path, field: str) -> None:
    """The message names the group and what it lacks."""
    lines = group("a").splitlines()
    write(tmp_path, "\n".join(line for line in lines if not line.strip().startswith(field)) + "\n")
    only(problems(tmp_path), "workload_groups.a", f"lacks {field}")


@pytest.mark.parametrize("field", ["port", "workload", "registration"])
def test_a_backend_without_a_required_field_is_refused(tmp_path: Path, field: str) -> None:
    """The message names the backend and what it lacks."""
    lines = [line for line in backend("a").splitlines() if not line.strip().startswith(field)]
    write(tmp_path, group("a", backends="\n".join(lines), routes=""))
    only(problems(tmp_path), "workload_groups.a.backends.a", f"lacks {field}")


@pytest.mark.parametrize("owner", ["Platform", "me", ""])
def test_an_owner_is_platform_or_workload(tmp_path: Path, owner: str) -> None:
    """No third owner exists."""
    write(tmp_path, group("a", backends=backend("a", owner=owner), routes=""))
    only(problems(tmp_path), "registration.owner")


def test_a_list_of_parents_is_refused(tmp_path: Path) -> None:
    """A backend has exactly one parent service."""
    written = backend("a").replace('parent = "a"', 'parent = ["a", "b"]')
    write(tmp_path, group("a", backends=written, routes=""))
    only(problems(tmp_path), "registration.parent", "a list", "one text")


def test_the_optional_parts_may_be_left_out_or_null(tmp_path: Path) -> None:
    """A group of pure clients needs no backend, route, environment or permissions."""
    text = 'a = {\n replicas = 1\n compose = "${path.module}/compose/app.yaml"\n compose_env = null\n}\n'
    write(tmp_path, text)
    (found,) = cluster.load(tmp_path).groups
    assert (found.backends, found.routes, found.compose_env, found.mesh_addresses) == ((), (), {}, {})


def test_permissions_are_read(tmp_path: Path) -> None:
    """The template's `consul_permissions` of a workload-owned database."""
    more = 'consul_permissions = { key_prefixes = ["service/${var.cluster_name}"], session_write = true }'
    written = backend("db", owner="workload", parent="var.cluster_name", more=more)
    routes = 'db-master = { backend = "db", role = "master" }'
    write(tmp_path, group("db", backends=written, routes=routes))
    (found,) = cluster.load(tmp_path).groups
    assert found.backends[0].permissions == Permissions(key_prefixes=("service/demo",), session_write=True)
    assert found.backends[0].parent == "demo"
    assert found.routes[0].role == "master"


@pytest.mark.parametrize(
    ("written", "entry"),
    [
        ('consul_permissions = { key_prefixes = ["/"] }', "key_prefixes"),
        ('consul_permissions = { key_prefixes = ["service/x"] , session_write = "yes" }', "session_write"),
        ('consul_permissions = { key_prefixes = "service/x" }', "key_prefixes"),
        ("consul_permissions = { key_prefixes = [1] }", "key_prefixes"),
        ("consul_permissions = true", "consul_permissions"),
    ],
)
def test_permissions_of_a_wrong_kind_are_refused(tmp_path: Path, written: str, entry: str) -> None:
    """A prefix that means every key, or a value that is not of its type."""
    write(tmp_path, group("a", backends=backend("a", more=written)))
    only(problems(tmp_path), entry)


def test_compose_env_is_read_and_its_names_are_checked(tmp_path: Path) -> None:
    """Text goes through; a MESH_ name, a name that no shell takes, one that shells use up and a number are refused."""
    write(tmp_path, group("a", more='compose_env = { DERIVE_PASSWORDS = "1" }'))
    assert cluster.load(tmp_path).groups[0].compose_env == {"DERIVE_PASSWORDS": "1"}
    write(tmp_path, group("a", more='compose_env = { MESH_X = "1", mesh_x = "1", "A-B" = "2", PS4 = "", C = 3 }'))
    found = problems(tmp_path)
    entries = [f"compose_env.{name}: " for name in ("C", "MESH_X", "mesh_x", "A-B", "PS4")]
    assert [[entry in problem for entry in entries].index(True) for problem in found] == [0, 1, 2, 3, 4]


def test_groups_and_routes_must_be_maps(tmp_path: Path) -> None:
    """A list where a map belongs is named as such."""
    write(tmp_path, 'a = "x"\n')
    assert any("workload_groups.a" in p and "expected a map" in p for p in problems(tmp_path))
    write(tmp_path, group("a").replace("routes = {", "routes = [] \n other = {"))
    assert any("workload_groups.a.routes" in p and "a list" in p for p in problems(tmp_path))


def test_roles_fallback_and_secrets_are_read(tmp_path: Path) -> None:
    """Roles are Patroni's unless the registration says others; the rest is as written."""
    more = 'consul_permissions = { key_prefixes = ["service/db"], session_write = true }'
    written = backend("db", owner="workload", more=more)
    routes = 'db-replica = { backend = "db", role = "replica", fallback = "master" }'
    secrets = 'secrets = { "db-word" = { grant = ["web"] } }'
    write(tmp_path, group("db", backends=written, routes=routes, more=secrets), group("web"))
    db, web = cluster.load(tmp_path).groups
    assert db.backends[0].roles == ("master", "replica")
    assert (db.routes[0].role, db.routes[0].fallback) == ("replica", "master")
    assert [(secret.name, secret.grant) for secret in db.secrets] == [("db-word", ("web",))]
    assert (web.secrets, web.backends[0].roles, web.routes[0].fallback) == ((), (), None)
    routes = 'db = { backend = "db", role = "arbiter" }'
    roles = written.replace('parent = "db"', 'parent = "db", roles = ["primary", "arbiter"]')
    write(tmp_path, group("db", backends=roles, routes=routes))
    assert cluster.load(tmp_path).groups[0].backends[0].roles == ("primary", "arbiter")


@pytest.mark.parametrize(
    ("roles", "words"),
    [('["The Master"]', ("'The Master'", "DNS label")), ("[1]", ("1", "a list of roles")), ("true", ("a list of",))],
)
def test_roles_of_a_wrong_kind_are_refused(tmp_path: Path, roles: str, words: tuple[str, ...]) -> None:
    """Roles become tags."""
    written = backend("db", owner="workload").replace('parent = "db"', f'parent = "db", roles = {roles}')
    write(tmp_path, group("db", backends=written, routes=""))
    only(problems(tmp_path), "workload_groups.db.backends.db.registration.roles", *words)


def test_roles_of_a_platform_owned_backend_are_refused(tmp_path: Path) -> None:
    """Nobody would set them."""
    written = backend("db").replace('parent = "db"', 'parent = "db", roles = ["master"]')
    write(tmp_path, group("db", backends=written, routes=""))
    only(problems(tmp_path), "workload_groups.db.backends.db.registration.roles", "the platform sets no roles")


def test_callers_source_and_members_are_read(tmp_path: Path) -> None:
    """What is written is what the cluster has; left out or null it is nothing, the default source, one name."""
    more = 'callers = ["web", "db"]\nsource_address = "127.0.0.1"\nproxy_protocol = true'
    routes = 'db = { backend = "db", members = true }'
    nulls = "callers = null\nsource_address = null\nproxy_protocol = null"
    rest = group("web", backends=backend("web", more=nulls), routes='web = { backend = "web", members = null }')
    write(tmp_path, group("db", backends=backend("db", more=more), routes=routes), rest, group("plain"))
    db, *others = cluster.load(tmp_path).groups
    assert (db.backends[0].callers, db.backends[0].source, db.backends[0].proxy_protocol) == (
        ("web", "db"), "127.0.0.1", True,
    )  # fmt: skip
    assert db.routes[0].members is True
    for other in others:
        one = other.backends[0]
        assert (one.callers, one.source, one.proxy_protocol) == (None, addresses.INGRESS_SOURCE, False)
        assert other.routes[0].members is False


def test_calls_are_read(tmp_path: Path) -> None:
    """As written; an empty list says that it calls nobody, left out and null say nothing."""
    texts = {"a": 'calls = ["b", "a"]', "b": "calls = []", "c": "calls = null", "d": ""}
    write(tmp_path, *(group(name, more=text) for name, text in texts.items()))
    assert [it.calls for it in cluster.load(tmp_path).groups] == [("b", "a"), (), None, None]


@pytest.mark.parametrize(
    ("text", "words"),
    [('"a"', "is 'a', expected a list of routes"), ("5", "is 5"), ("[5]", "holds 5"), ("{}", "is a map")],
)
def test_calls_of_a_wrong_kind_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """By file, line and entry, with what was expected."""
    write(tmp_path, group("a", more=f"calls = {text}"))
    only(problems(tmp_path), "cluster.tf:", "workload_groups.a.calls", words, 'such as ["worker"]')


@pytest.mark.parametrize(
    ("more", "field", "words"),
    [
        ("callers = 5", "callers", ("is 5", 'such as ["api"]')),
        ('callers = "a"', "callers", ("is 'a'", 'expected a list of groups, such as ["api"]')),
        ("callers = [true]", "callers", ("holds true", 'such as ["api"]')),
        ("source_address = 5", "source_address", ("is 5", "text in quotes")),
        ('proxy_protocol = "yes"', "proxy_protocol", ("is 'yes'", "expected true or false")),
    ],
)
def test_new_fields_of_a_wrong_kind_are_refused(tmp_path: Path, more: str, field: str, words: tuple[str, ...]) -> None:
    """By file, line and entry."""
    write(tmp_path, group("a", backends=backend("a", more=more)))
    found = problems(tmp_path)
    assert all("cluster.tf:" in problem and f"workload_groups.a.backends.a.{field}" in problem for problem in found)
    assert any(all(word in problem for word in words) for problem in found), found


def test_members_is_true_or_false(tmp_path: Path) -> None:
    """Terraform would take the text "true" for a boolean; a typo must not change what a name means."""
    write(tmp_path, group("a", routes='a = { backend = "a", members = "true" }'))
    only(problems(tmp_path), "cluster.tf:", "workload_groups.a.routes.a.members", "'true'", "expected true or false")


@pytest.mark.parametrize(
    ("written", "entry", "words"),
    [
        (backend("a", more='callers = "a"'), "backends.a.callers", ("is 'a'", "a list of groups")),
        (
            backend("a", more='consul_permissions = { key_prefixes = "x" }'),
            "backends.a.consul_permissions.key_prefixes",
            ("is 'x'", "a list of key prefixes"),
        ),
        (
            backend("a", owner="workload").replace('parent = "a"', 'parent = "a", roles = "x"'),
            "backends.a.registration.roles",
            ("is 'x'", "a list of roles"),
        ),
    ],
)
def test_one_text_where_a_list_belongs_is_refused(
    tmp_path: Path, written: str, entry: str, words: tuple[str, ...]
) -> None:
    """By file, line and entry, with what was expected."""
    write(tmp_path, group("a", backends=written))
    only(problems(tmp_path), "cluster.tf:", f"workload_groups.a.{entry}: ", *words)


def test_one_text_where_a_secrets_groups_belong_is_refused(tmp_path: Path) -> None:
    """The same as in a backend; a secret that nobody is granted would be a second problem with one cause."""
    write(tmp_path, group("a", more='secrets = { word = { grant = "web" } }'), group("web"))
    only(problems(tmp_path), "cluster.tf:", "workload_groups.a.secrets.word.grant", "is 'web'", "a list of groups")


@pytest.mark.parametrize(
    ("backends", "route", "entry", "meant"),
    [
        ('caller = ["a"]', "", "backends.a.caller", "callers"),
        ('cals = ["a"]', "", "backends.a.cals", "callers"),
        ("proxy_protocl = true", "", "backends.a.proxy_protocl", "proxy_protocol"),
        ("", "member = true", "routes.a.member", "members"),
    ],
)
def test_a_typo_in_a_field_is_refused_with_the_field_that_was_meant(
    tmp_path: Path, backends: str, route: str, entry: str, meant: str
) -> None:
    """Ignored, it would leave a backend open to everybody, or a route without its meaning."""
    routes = f'a = {{ backend = "a", {route} }}'
    write(tmp_path, group("a", backends=backend("a", more=backends), routes=routes))
    only(problems(tmp_path), "cluster.tf:", f"workload_groups.a.{entry}: ", "unknown field", f"did you mean {meant!r}?")
