"""Clusters, good and broken: what `topology` takes and refuses, and whether Terraform takes what it takes.

Long because it is a list: each mistake is a case of its own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.topology import egress_cases, public_cases
from tests.topology.support import COMPOSE, backend, group, write
from topology import addresses

Write = Callable[[Path], object]


def _groups(*groups: str, compose: str = COMPOSE, extra: str = "", variables: str = "") -> Write:
    return lambda folder: write(folder, *groups, compose=compose, extra=extra, variables=variables)


def _compose(old: str, new: str) -> Write:
    assert old in COMPOSE, old
    return _groups(group("api"), compose=COMPOSE.replace(old, new, 1))


_DATABASE = """
    "db" = {
      replicas = 3
      compose  = "${path.module}/compose/app.yaml"
      compose_env = { DERIVE_PATRONI_PASSWORDS = "1", TEXT = "a \\"b\\" <c> & d" }
      backends = {
        postgres = {
          port = 5432
          workload = "postgres"
          registration = { owner = "workload", parent = var.cluster_name }
          consul_permissions = { key_prefixes = ["service/${var.cluster_name}"], session_write = true }
        }
      }
      routes = {
        "postgres-replica" = { backend = "postgres", role = "replica", fallback = "master", vip = "127.10.77.7" }
        "postgres-master"  = { backend = "postgres", role = "master" }
      }
      mesh_addresses = { "db-1" = "100.96.9.9" }
      secrets        = { word = { grant = ["web", "db", "web"] }, other = { grant = ["web"] } }
    }
"""

_LOCK = 'consul_permissions = { key_prefixes = ["service/pg"], session_write = true }'


def _roles(route: str, *, roles: str | None = None, permissions: str = _LOCK) -> str:
    """A group with a workload-owned backend and one route."""
    written = backend("pg", owner="workload", more=permissions)
    if roles is not None:
        written = written.replace('parent = "pg"', f'parent = "pg", roles = {roles}')
    return group("pg", backends=written, routes=f'r = {{ backend = "pg", {route} }}')


def _reaching(prefix: str, *, parent: str = "other") -> str:
    """Another group, which may write below `prefix`."""
    more = f'consul_permissions = {{ key_prefixes = ["{prefix}"], session_write = true }}'
    return group("other", backends=backend("other", owner="workload", parent=parent, more=more), routes="")


def _members(more: str, *, replicas: str = "2", name: str = "r") -> str:
    """Group `a` whose only route is `name`, with `more` in it."""
    return group("a", replicas=replicas, routes=f'"{name}" = {{ backend = "a", {more} }}')


def _caller(callers: str, *, name: str = "a", port: str = "8080") -> str:
    """A backend that only `callers` may call."""
    return backend(name, port=port, more=f"callers = {callers}")


def _calling(calls: str, *, callers: str = "null") -> Write:
    """Group `a`, whose backend `callers` may call, and `web`, which calls `calls`."""
    own = group("a", backends=backend("a", more=f"callers = {callers}"), more="calls = null")
    return _groups(own, group("web", backends="", routes="", more=f"calls = {calls}"))


def _clashing(pool: str = addresses.VIP_POOL) -> str:
    """The name of a route one of whose first two members would have the VIP of the route `api`."""
    numbers = (f"r{number}" for number in range(1 << 20))
    taken = addresses.vip_of("api", pool)
    return next(name for name in numbers if taken in {addresses.vip_of(f"{name}-{index}", pool) for index in (0, 1)})


def _with_environment(text: str) -> str:
    """The compose file, whose application has `text` as its environment."""
    return COMPOSE.replace(
        '    command: ["/app/app"]\n', f'    command: ["/app/app"]\n    environment:\n      {text}\n'
    )


_MEMBERS = 'db = { backend = "db", members = true }\none = { backend = "db" }'

GOOD: dict[str, Write] = {
    "one": _groups(group("a")),
    "no-entries": _groups(group("a", backends="", routes="")),
    "database": _groups(group("web"), _DATABASE),
    "other-order": _groups(group("zeta"), group("alpha"), group("mid", replicas="11")),
    "two-backends": _groups(
        group("a", backends=backend("x") + backend("y", port="45000"), routes='r = { backend = "y" }')
    ),
    "shared-parent": _groups(
        group("a", backends=backend("x", parent="db", owner="workload"), routes=""),
        group("b", backends=backend("y", parent="db", owner="workload"), routes=""),
    ),
    "own-roles": _groups(_roles('role = "arbiter", fallback = "primary"', roles='["primary", "arbiter", "primary"]')),
    "keys-beside": _groups(_roles('role = "master"'), _reaching("service/pg2")),
    "keys-of-one-service": _groups(_roles('role = "master"'), _reaching("service/pg", parent="pg")),
    "members": _groups(
        _members("members = true", replicas="12"),
        group("b", routes='"b-12" = { backend = "b", members = false }'),
    ),
    "callers": _groups(
        group("a", backends=_caller('["web", "a"]') + _caller('["web"]', name="x", port="8081"), routes=""),
        group("web", backends="", routes=""),
    ),
    "callers-nobody": _groups(group("a", backends=_caller("[]")), group("web")),
    "callers-everybody": _groups(group("a", backends=_caller('["*"]')), group("web")),
    "calls": _groups(
        group(
            "a",
            backends=backend("a") + backend("x", port="8081"),
            routes='a = { backend = "a" }\nx = { backend = "x" }',
        ),
        group("db", backends=backend("db", port="5432"), routes=_MEMBERS, more='calls = ["db", "a"]'),
        group("web", backends="", routes="", more='calls = ["db", "x"]'),
        group("zoo", more="calls = []"),
    ),
    "calls-nobody": _groups(group("a", more="calls = []"), group("web", more="calls = null")),
    "calls-and-callers": _calling('["a"]', callers='["web"]'),
    "calls-and-everybody": _calling('["a"]', callers='["*"]'),
    "calls-of-one-service": _groups(
        group("a"),
        *(group(name, backends=backend(name, parent="db"), more='calls = ["a"]', routes="") for name in ("x", "y")),
    ),
    "sources": _groups(
        group("a", backends=backend("a", more='source_address = "127.0.0.1"\nproxy_protocol = true')),
        group("b", backends=backend("b", more='source_address = "127.10.0.99"\nproxy_protocol = false')),
    ),
    **egress_cases.GOOD,
    **public_cases.GOOD,
    "nulls": _groups(
        group(
            "a",
            backends=backend(
                "a", more="consul_permissions = null\ncallers = null\nsource_address = null\nproxy_protocol = null"
            ),
            routes='a = { backend = "a", members = null, vip = null }',
            more="compose_env = null\nmesh_addresses = null",
        )
    ),
    "variables": _groups(
        group("a", replicas="var.n", more="compose_env = local.shared"),
        group("b", replicas="2.0", more="compose_env = local.shared"),
        extra='shared = { CLUSTER = "${var.cluster_name}-x", EMPTY = "" }',
        variables='variable "n" {\n  type    = number\n  default = 4\n}\n',
    ),
    **{
        f"signed-{i}": _groups(group("a", more=f'compose_env = {{ X = "{value}" }}'), compose=_with_environment(text))
        for i, (value, text) in enumerate(
            [
                ("on", "X: $X"),
                ("on", "X: ${X}"),
                ("on", 'X: "${X:-off}"'),
                ("", 'X: "${X-off}"'),
                ("", 'X: "${X:-}"'),
                ("on", 'X: "${X:?must be set}"'),
                ("on", 'Y: "a ${X} b"'),
                ("on", "XY: ${XY}"),
            ]
        )
    },
    "environment-list": _compose(
        '    environment:\n      MESH_OWNERS: "REPLACE_WITH_YOUR_OWNER_KEY"\n',
        '    environment: ["MESH_OWNERS=abc", PLAIN]\n',
    ),
    "long-volume": _compose(
        "      - /tmp/dstack-runtime/mesh:/run/mesh:ro\n",
        "      - { type: bind, source: /tmp/dstack-runtime/mesh, target: /run/mesh, read_only: true }\n",
    ),
    "text-entrypoint": _compose(
        '    entrypoint: ["/run/mesh/exec.sh"]\n    command: ["/app/app"]\n',
        "    entrypoint: /run/mesh/exec.sh /app/app\n",
    ),
}

_PIN = 'site = { backend = "site", role = null, vip = "%s" }'
_HEALTH = re.compile(r"    healthcheck: .*\n")
BROKEN: dict[str, Write] = {
    **public_cases.BROKEN,
    **{
        f"signed-{i}": _groups(group("a", more=f'compose_env = {{ X = "{value}" }}'), compose=_with_environment(text))
        for i, (value, text) in enumerate(
            [
                ("on", 'X: "on"'),
                ("on", "X: ${Y}"),
                ("on", 'X: "${X}x"'),
                ("on", 'X: "${X:+off}"'),
                ("", 'X: "${X:-off}"'),
                ("", 'X: "${X:?must be set}"'),
                ("1", "X: 1"),
                ("on", "X:"),
                ("on", "- X"),
            ]
        )
    },
    # check 1: literal images
    "image-variable": _compose("ghcr.io/example/app:1", "${APP_IMAGE}"),
    "image-default": _compose("ghcr.io/example/sidecar:1", "ghcr.io/example/${NAME:-sidecar}:1"),
    "image-missing": _compose("    image: ghcr.io/example/app:1\n", ""),
    # check 2: unique route names
    "route-twice": _groups(group("a", routes='web = { backend = "a" }'), group("b", routes='web = { backend = "b" }')),
    # check 3: one parent and owner per backend
    "two-parents": _groups(
        group("a", backends=backend("db", parent="one"), routes=""),
        group("b", backends=backend("db", parent="two"), routes=""),
    ),
    "two-owners": _groups(
        group("a", backends=backend("db"), routes=""), group("b", backends=backend("db", owner="workload"), routes="")
    ),
    "parent-two-owners": _groups(
        group("a", backends=backend("x", parent="db"), routes=""),
        group("b", backends=backend("y", parent="db", owner="workload"), routes=""),
    ),
    "parent-twice": _groups(
        group("a", backends=backend("x", parent="db") + backend("y", parent="db", port="8081"), routes="")
    ),
    # check 4: at least one slot
    **{
        f"slots-{i}": _groups(group("a", replicas=text), group("b"))
        for i, text in enumerate(["0", "-1", "1.5", '"2"', "true", "null", "[2]", "1001", "{}"])
    },
    # check 5: unique peer IDs
    "coordinator-group": _groups(group("coordinator"), group("a")),
    "pin-of-nobody": _groups(group("a", more='mesh_addresses = { "a-7" = "100.96.9.9", "b-0" = "100.96.9.8" }')),
    # check 6: unique VIPs
    "vip-twice": _groups(group("api"), group("site", routes=_PIN % addresses.vip_of("api"))),
    "vip-pins": _groups(
        group("a", routes='a = { backend = "a", vip = "127.10.9.9" }'),
        group("b", routes='b = { backend = "b", vip = "127.10.9.9" }'),
    ),
    "mesh-twice": _groups(
        group("api", more=f'mesh_addresses = {{ "api-1" = "{addresses.mesh_address_of("coordinator-0")}" }}')
    ),
    **{
        f"vip-{i}": _groups(group("site", routes=_PIN % text))
        for i, text in enumerate(
            [
                "127.10.0.53",
                "127.10.0.0",
                "127.10.255.255",
                "127.10.0.255",
                "127.11.1.1",
                "web",
                "127.10.01.1",
                "127.10.1",
                "127.10.256.1",
            ]
        )
    },
    "mesh-pins": _groups(group("a", more='mesh_addresses = { "a-0" = "10.0.0.1", "a-1" = "100.96.0.9" }')),
    # check 7: unique producer ports
    "port-twice": _groups(group("a", backends=backend("x") + backend("y"), routes="")),
    "sidecar-port-twice": _groups(
        group("a", backends=backend("x", port="1000") + backend("y", port="41000"), routes="")
    ),
    **{
        f"port-{port}": _groups(group("a", backends=backend("a", port=str(port))))
        for port in (*addresses.PLATFORM_PORTS, 31820, 31821)
    },
    **{
        f"port-bad-{i}": _groups(group("a", backends=backend("a", port=text)))
        for i, text in enumerate(["0", "65536", "-1", '"http"', "80.5", "null", "[80]"])
    },
    # fields
    "unknown-field": _groups(group("a", more="kompose = 1").replace("replicas", "replicas = 2\n      kind")),
    "unknown-backend-field": _groups(group("a", backends=backend("a", more="prot = 1"))),
    "unknown-route-field": _groups(group("a", routes='a = { backend = "a", rolle = "x" }')),
    "unknown-registration-field": _groups(group("a").replace('parent = "a"', 'parent = "a", ttl = 5')),
    "unknown-permission": _groups(group("a", backends=backend("a", more="consul_permissions = { root = true }"))),
    "no-compose": _groups(group("a").replace("compose  =", "compost  ="), group("b")),
    "no-port": _groups(group("a").replace("port = 8080", ""), group("b")),
    "no-registration": _groups(group("a").replace("registration =", "enrolment ="), group("b")),
    "no-owner": _groups(group("a").replace('owner = "platform", ', ""), group("b")),
    "no-route-backend": _groups(group("a", routes="a = { role = null }"), group("b")),
    "wrong-owner": _groups(group("a", backends=backend("a", owner="operator"))),
    "not-maps": _groups('a = 5\n b = "x"\n c = null\n d = [1]', group("z")),
    "not-maps-inside": _groups(
        group("a", more="compose_env = [1]\nmesh_addresses = 5").replace("routes = {", "roots = {")
    ),
    "backends-list": _groups(
        'a = { replicas = 1, compose = "${path.module}/compose/app.yaml", backends = [1], routes = "x" }'
    ),
    "registration-text": _groups(
        'a = { replicas = 1, compose = "${path.module}/compose/app.yaml", '
        'backends = { b = { port = 1, workload = "b", registration = "x" } } }'
    ),
    "wrong-texts": _groups(
        group(
            "a",
            backends=backend("a", more="consul_permissions = 5").replace('workload = "a"', "workload = 5"),
            compose="7",
        )
    ),
    "empty-texts": _groups(
        group(
            "a",
            backends=backend("a").replace('workload = "a"', 'workload = ""'),
            routes='a = { backend = "", role = "", vip = "" }',
        )
    ),
    "wrong-env": _groups(
        group(
            "a",
            more=r'compose_env = {"a-b" = "", MESH_X = "", mesh_x = "", IFS = "", LD_AUDIT = "", COMPOSE_FILE = "", '
            r'DOCKER_HOST = "", N = 5, B = true, L = [1], Z = null, S = "\\" }',
        )
    ),
    "wrong-permissions": _groups(
        group(
            "a",
            backends=backend(
                "a", more='consul_permissions = { key_prefixes = ["", "/", 5, "ok"], session_write = "yes" }'
            ),
        )
    ),
    **{
        f"prefixes-{i}": _groups(
            group("a", backends=backend("a", more=f"consul_permissions = {{ key_prefixes = {text} }}"))
        )
        for i, text in enumerate(['"service/x"', '{ a = "service/x" }', "5"])
    },
    "null-permissions": _groups(
        group("a", backends=backend("a", more="consul_permissions = { key_prefixes = null, session_write = null }"))
    ),
    **{f"name-{i}": _groups(group(name)) for i, name in enumerate(["API", "a_b", "-a", "a-", "1a", "a.b", "a" * 64])},
    # routes
    "route-elsewhere": _groups(group("a", routes='r = { backend = "b" }'), group("b")),
    "route-nowhere": _groups(group("a", routes='r = { backend = "c" }'), group("b")),
    "route-role": _groups(group("a", routes='a = { backend = "a", role = "master" }')),
    "route-bad-role": _groups(
        group("a", backends=backend("a", owner="workload"), routes='a = { backend = "a", role = "The Master" }')
    ),
    "route-reserved": _groups(group("a", routes='localhost = { backend = "a" }\nmesh = { backend = "a" }')),
    "reserved-words": _groups(group("a", backends=backend("node", parent="consul"), routes="")),
    "role-nobody-has": _groups(_roles('role = "leader"'), group("web")),
    "fallback-nobody-has": _groups(_roles('role = "replica", fallback = "mater"')),
    "fallback-alone": _groups(_roles('role = null, fallback = "master"')),
    "fallback-same": _groups(_roles('role = "replica", fallback = "replica"')),
    "fallback-of-master": _groups(_roles('role = "master", fallback = "replica"')),
    "fallback-no-label": _groups(_roles('role = "replica", fallback = "The Master"')),
    "fallback-number": _groups(_roles('role = "replica", fallback = 1')),
    "fallback-platform": _groups(group("a", routes='a = { backend = "a", role = null, fallback = "master" }')),
    "lock-lacking": _groups(_roles('role = "master"', permissions="consul_permissions = { session_write = true }")),
    "session-lacking": _groups(
        _roles('role = "replica", fallback = "master"', permissions='consul_permissions = { key_prefixes = ["a"] }')
    ),
    # routes to members
    "member-name-taken": _groups(_members("members = true"), group("b", routes='"r-1" = { backend = "b" }')),
    "member-name-taken-within": _groups(
        group("a", routes='"r-0" = { backend = "a" }\nr = { backend = "a", members = true }')
    ),
    "members-twice": _groups(
        _members("members = true"), group("b", routes='r = { backend = "b", members = true }'), group("c")
    ),
    "member-name-too-long": _groups(_members("members = true", replicas="11", name="r" * 61)),
    "member-vip": _groups(_members('members = true, vip = "127.10.9.9"')),
    "member-vip-taken": _groups(
        group("api"), group("b", routes=f'{_clashing()} = {{ backend = "b", members = true }}')
    ),
    "member-role": _groups(_roles('members = true, role = "replica", fallback = "master"')),
    "member-fallback": _groups(_roles('members = true, fallback = "replica"')),
    "member-elsewhere": _groups(group("a", routes='r = { backend = "c", members = true }')),
    **{
        f"members-{i}": _groups(_members(f"members = {text}")) for i, text in enumerate(['"true"', "1", "[true]", "{}"])
    },
    **egress_cases.BROKEN,
    # callers and sources
    **{
        f"callers-{i}": _groups(group("a", backends=_caller(text)), group("web"))
        for i, text in enumerate(
            [
                '["wob"]',
                '["web", "*"]',
                '["web", "web"]',
                '["coordinator"]',
                "true",
                "[1, null]",
                '["web", ""]',
                "{}",
                '"wob"',
                '"web"',
            ]
        )
    },
    **{
        f"calls-{i}": _calling(text)
        for i, text in enumerate(
            ['["b"]', '["a-0"]', '["web"]', '["a", "a"]', '["*"]', '"a"', "true", "[1, null]", '[""]', "{}"]
        )
    },
    "calls-and-no-caller": _calling('["a"]', callers="[]"),
    "calls-and-another-caller": _calling('["a"]', callers='["a"]'),
    "calls-a-broken-group": _groups(
        group("a", replicas="0"), group("web", backends=_caller('["a"]', name="web"), more='calls = ["a"]')
    ),
    "calls-one-member": _groups(
        group("a", backends=backend("a"), routes='r = { backend = "a", members = true }', more='calls = ["r-0"]')
    ),
    **{
        f"source-{i}": _groups(group("a", backends=backend("a", more=f"source_address = {text}")))
        for i, text in enumerate(
            [
                '"128.0.0.1"',
                '"127.0.0.0"',
                '"127.255.255.255"',
                '"127.10.0.53"',
                '"127.10.1.0"',
                '"127.10.255.255"',
                '"127.0.0.01"',
                '"localhost"',
                '"::1"',
                '""',
                "5",
                '["127.0.0.1"]',
            ]
        )
    },
    **{
        f"proxy-{i}": _groups(group("a", backends=backend("a", more=f"proxy_protocol = {text}")))
        for i, text in enumerate(['"true"', "2", "[true]"])
    },
    "new-fields-without-registration": _groups(
        group(
            "a",
            backends=_caller("[]").replace("registration =", "enrolment ="),
            more="",
        ),
        group("b"),
    ),
    "roles-no-label": _groups(_roles('role = "a"', roles='["a", "The Master", 5]')),
    "roles-no-list": _groups(_roles('role = "a"', roles="true")),
    "roles-one-text": _groups(_roles("role = null", roles='"master"')),
    "roles-map": _groups(_roles("role = null", roles='{ a = "master" }')),
    "fields-mistyped": _groups(
        group(
            "a",
            backends=backend("a", more='caller = ["a"]\nproxy_protocl = true'),
            routes='a = { backend = "a", member = true }',
        )
    ),
    "roles-platform": _groups(_roles("role = null", roles='["a"]').replace('"workload"', '"platform"')),
    "reserved-keys": _groups(
        _roles(
            "role = null", permissions='consul_permissions = { key_prefixes = ["mesh/x", "coordinator", "/a", "ok"] }'
        )
    ),
    **{
        f"leader-key-{i}": _groups(_roles('role = "master"'), _reaching(prefix), group("web"))
        for i, prefix in enumerate(["service/pg", "service/pg/", "service", "s", "service/pg/leader"])
    },
    "leader-key-of-fallback": _groups(_roles('role = "replica", fallback = "master"'), _reaching("service/pg")),
    "leader-keys-of-each-other": _groups(
        _roles('role = "master"'),
        _reaching("service/pg").replace("routes = {", 'routes = {\nother = { backend = "other", role = "master" }'),
    ),
    **{
        f"secret-{i}": _groups(group("pg", more=f"secrets = {{ {text} }}"), group("web"))
        for i, text in enumerate(
            [
                "word = {}",
                "word = { grant = [] }",
                'word = { grant = ["pg", "pg"] }',
                'word = { grant = ["web", "wob"] }',
                'word = { grant = ["coordinator"] }',
                "word = { grant = [1, null] }",
                "word = { grant = null }",
                'word = { grant = "web" }',
                'word = { grant = { a = "web" } }',
                'word = { grants = ["web"] }',
                '"consul-token" = { grant = ["web"] }',
                '"a.b" = { grant = ["web"] }',
                'word = ["web"]',
                "word = null",
            ]
        )
    },
    "secrets-list": _groups(group("a", more="secrets = [1]")),
    "secret-twice": _groups(
        group("a", more='secrets = { word = { grant = ["b"] } }'),
        group("b", more='secrets = { word = { grant = ["a"] } }'),
    ),
    # compose files
    "compose-missing": _groups(group("a", compose='"${path.module}/compose/none.yaml"')),
    "compose-no-yaml": _groups(group("a"), compose="services: [\n"),
    "compose-no-services": _groups(group("a"), compose="volumes: {}\n"),
    "compose-no-sidecar": _compose("  sidecar:\n    image", "  other:\n    image"),
    "compose-typo": _compose(
        "    network_mode: host\n    volumes", "    network_mode: host\n    enviroment: {A: b}\n    volumes"
    ),
    "compose-bridge": _compose("    network_mode: host\n    volumes", "    network_mode: bridge\n    volumes"),
    "compose-no-network": _compose("    network_mode: host\n    volumes", "    volumes"),
    "compose-no-exec": _compose('    entrypoint: ["/run/mesh/exec.sh"]\n', ""),
    "compose-misspelled-command": _compose('    command: ["/app/app"]\n', '    comand: ["/app/app"]\n'),
    "compose-no-command": _compose('    command: ["/app/app"]\n', ""),
    "compose-no-mount": _compose("/run/mesh:ro", "/elsewhere:ro"),
    "compose-no-wait": _compose("        condition: service_healthy\n", "        condition: service_started\n"),
    "compose-wait-list": _compose(
        "    depends_on:\n      sidecar:\n        condition: service_healthy\n", "    depends_on: [sidecar]\n"
    ),
    "compose-owner-key": _compose('"REPLACE_WITH_YOUR_OWNER_KEY"', "${MESH_OWNERS}"),
    "compose-owner-list": _compose(
        '    environment:\n      MESH_OWNERS: "REPLACE_WITH_YOUR_OWNER_KEY"\n', "    environment: [MESH_OWNERS]\n"
    ),
    "compose-insecure": _compose("      MESH_OWNERS:", "      MESH_INSECURE_DEV_ROOT: ${ROOT:-}\n      MESH_OWNERS:"),
    "compose-env-file": _compose("    environment:\n", "    env_file: .env\n    environment:\n"),
    "compose-dollar": _compose('command: ["/app/app"]', 'command: ["/app/app", "$5"]'),
    "compose-bool": _compose("      MESH_OWNERS:", "      DEBUG: true\n      MESH_OWNERS:"),
    "compose-build": _compose("    image: ghcr.io/example/app:1\n", "    image: ghcr.io/example/app:1\n    build: .\n"),
    "compose-shared-volume": _groups(
        group("api"),
        compose=COMPOSE.replace("    environment:", "    volumes: [data:/data]\n    environment:").replace(
            "/run/mesh:ro\n", "/run/mesh:ro\n      - data:/srv\n"
        ),
    ),
    "compose-no-health": _groups(group("api"), compose=_HEALTH.sub("", COMPOSE)),
    **{
        f"compose-health-{i}": _groups(group("api"), compose=_HEALTH.sub(f"    healthcheck: {text}\\n", COMPOSE))
        for i, text in enumerate(
            [
                "{ interval: 2s, retries: 150 }",
                "{ interval: 2s, start_period: 23h59m59s }",
                "{ start_period: 24 }",
                "{ start_period: 24d }",
                "{ interval: soon, start_period: 24h }",
                "{ retries: 0, start_period: 24h }",
                '{ retries: "5", start_period: 24h }',
                "{ disable: true }",
                "[CMD]",
                "check",
            ]
        )
    },
    "compose-volumes": _compose("    volumes:\n      - /tmp/dstack-runtime/mesh:/run/mesh:ro\n", "    volumes: 5\n"),
}


def random_clusters(count: int, seed: int) -> Iterator[tuple[str, Write]]:
    """`count` clusters that nobody chose, without a mistake in them."""
    chance = random.Random(seed)
    for number in range(count):
        names = chance.sample(["a", "bee", "c-3", "delta", "e5e", "fox-trot", "golf", "hotel-9"], chance.randint(1, 5))
        yield f"random-{number}", _groups(*(_random_group(chance, name) for name in names))


def _random_group(chance: random.Random, name: str) -> str:
    """Routes that it calls are its own: of another group it cannot know whether it is there."""
    backends, routes = [], []
    for index in range(chance.randint(0, 3)):
        own = f"{name}-b{index}"
        owner = chance.choice(["platform", "workload"])
        permissions = f'consul_permissions = {{ key_prefixes = ["x/{own}", "y"], session_write = true }}'
        if owner == "platform":
            permissions = chance.choice(["", "consul_permissions = {}", permissions])
        backends.append(backend(own, port=str(chance.randint(9200, 40999) + index * 3), owner=owner, more=permissions))
        for role in chance.sample([None, "master", "replica"], chance.randint(0, 2)):
            if owner == "workload" or role is None:
                text = "null" if role is None else f'"{role}"'
                routes.append(f'"{own}-{role or "any"}" = {{ backend = "{own}", role = {text} }}')
    replicas = chance.randint(1, 12)
    more = f'compose_env = {{ X{chance.randint(0, 9)} = "{chance.choice(["", "v", "a b", "ä€", "$x"])}" }}'
    if chance.random() < 0.3:
        more += f'\nmesh_addresses = {{ "{name}-{chance.randrange(replicas)}" = "100.96.1.{chance.randint(0, 255)}" }}'
    if chance.random() < 0.6:
        names = [text.split('"')[1] for text in chance.sample(routes, chance.randint(0, len(routes)))]
        more += f"\ncalls = {json.dumps(names)}"
    return group(name, replicas=str(replicas), backends="".join(backends), routes="\n".join(routes), more=more)
