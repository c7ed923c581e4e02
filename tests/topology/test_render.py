"""What a cluster becomes: manifest, environment, app-compose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support import ROOT
from tests.topology.support import REFERENCE, group, write
from topology import addresses, cluster, compose, envelope, manifest, owners, render, trees
from topology.owners import Owners, key_of, text_of
from topology.owners import parse as parse_owners
from topology.problems import ClusterError

STARTER = ROOT / "clusters" / "starter"
LINK_KEY = "A" * 43 + "="
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
P256 = ec.derive_private_key(7, ec.SECP256R1())
OWNERS = Owners(keys=(key_of(KEY),))
OWNER_KEY = text_of(OWNERS)
URLS = ("https://a-8787s.example",)


def starter() -> cluster.Cluster:
    """The committed starter."""
    return cluster.load(STARTER)


def facts(digit: str) -> render.AppFacts:
    """The facts of one app."""
    return render.AppFacts(app_id=digit * 40, compose_hashes=(digit * 64,))


def deployment() -> render.Deployment:
    """A deployment of the starter."""
    return render.Deployment(
        references=(REFERENCE,),
        coordinator=facts("c"),
        groups={"api": facts("a"), "worker": facts("b")},
        coordinator_urls=URLS,
        rendezvous=(manifest.Rendezvous(public_key=LINK_KEY, endpoint="1.2.3.4:51820", address="100.96.0.1"),),
        owners=OWNERS,
        epoch=7,
        previous="07" * 32,
    )


def test_the_manifest_has_what_the_cluster_says() -> None:
    """Peers, backends, routes and the facts of the deployment, each at its place."""
    found = render.manifest(starter(), deployment())
    assert (found.version, found.epoch, found.cluster) == (2, 7, "starter")
    assert [p.peer_id for p in found.groups["worker"].peers] == ["worker-0", "worker-1"]
    assert found.groups["worker"].peers[1].address == "100.96.201.77"
    assert found.groups["worker"].app_id == "b" * 40
    backend = found.groups["worker"].backends["worker"]
    assert (backend.port, backend.sidecar_port, backend.service) == (9090, 29090, "worker")
    assert (backend.identity, backend.owner) == ("spiffe://starter/worker", "platform")
    assert found.coordinators.peers[0] == manifest.CoordinatorPeer(
        peer_id="coordinator-0", address="100.96.34.161", url=URLS[0]
    )
    route = found.routes[1]
    assert (route.name, route.group, route.backend, route.service, route.port) == (
        "worker", "worker", "worker", "worker", 9090,
    )  # fmt: skip
    assert found.identities("worker") == ("spiffe://starter/node", "spiffe://starter/worker")


DATABASE = """
      backends = { db = {
        port = 5432
        workload = "db"
        registration = { owner = "workload", parent = "db" }
        consul_permissions = { key_prefixes = ["service/demo/", "other"], session_write = true }
      } }
      routes = {
        db-master  = { backend = "db", role = "master" }
        db-replica = { backend = "db", role = "replica", fallback = "master" }
        db-any     = { backend = "db", role = null }
        db-spare   = { backend = "db", role = "replica" }
      }
      secrets = { word = { grant = ["web", "db", "web"] } }
"""


def test_leader_keys_and_secrets_get_into_the_manifest(tmp_path: Path) -> None:
    """Each route that may lead to the one leader has the key of its lock; a secret names its owner and the others."""
    groups = f'db = {{\n replicas = 2\n compose = "${{path.module}}/compose/app.yaml"\n{DATABASE}}}\n'
    write(tmp_path, groups, group("web"))
    facts_of = {"db": facts("a"), "web": facts("b")}
    made = render.manifest(cluster.load(tmp_path), dataclasses.replace(deployment(), groups=facts_of))
    found = {route.name: (route.role, route.fallback, route.leader_key) for route in made.routes}
    assert found == {
        "db-master": ("master", None, "service/demo/leader"),
        "db-replica": ("replica", "master", "service/demo/leader"),
        "db-any": (None, None, None),
        "db-spare": ("replica", None, None),
        "web": (None, None, None),
    }
    assert made.leader_keys() == ("service/demo/leader",)
    assert made.secrets == {"word": manifest.SecretEntry(owner="db", groups=("web",))}
    assert [made.secrets_of(group) for group in ("db", "web", "other")] == [("word",), ("word",), ()]
    assert manifest.decode(manifest.encode(made)) == made


MEMBERS = """
      backends = {
        db   = { port = 5432, workload = "db", registration = { owner = "platform", parent = "db" } }
        rest = {
          port           = 8008
          workload       = "rest"
          registration   = { owner = "platform", parent = "rest" }
          callers        = ["web", "db"]
          source_address = "127.0.0.7"
          proxy_protocol = true
        }
      }
      routes = {
        member = { backend = "rest", members = true }
        all    = { backend = "db" }
      }
"""


def test_a_member_route_becomes_one_route_a_slot(tmp_path: Path) -> None:
    """Each has the name, the VIP and the peer of its slot, in the manifest."""
    groups = f'db = {{\n replicas = 11\n compose = "${{path.module}}/compose/app.yaml"\n{MEMBERS}}}\n'
    write(tmp_path, groups, group("web"))
    loaded = cluster.load(tmp_path)
    found = render.routes(loaded)
    assert [(it.name, it.peer) for it in found] == [
        ("all", None), *((f"member-{index}", f"db-{index}") for index in range(11)), ("web", None),
    ]  # fmt: skip
    assert all(it.vip == addresses.vip_of(it.name) for it in found)
    assert {(it.service, it.backend, it.port, it.role) for it in found[1:12]} == {("rest", "rest", 8008, None)}


def test_callers_and_source_get_into_the_manifest(tmp_path: Path) -> None:
    """As they are written, callers sorted; a backend without them has nobody and the default."""
    groups = f'db = {{\n replicas = 2\n compose = "${{path.module}}/compose/app.yaml"\n{MEMBERS}}}\n'
    write(tmp_path, groups, group("web"))
    facts_of = {"db": facts("a"), "web": facts("b")}
    made = render.manifest(cluster.load(tmp_path), dataclasses.replace(deployment(), groups=facts_of))
    found = made.groups["db"].backends
    assert (found["rest"].callers, found["rest"].source, found["rest"].proxy_protocol) == (
        ("db", "web"), "127.0.0.7", True,
    )  # fmt: skip
    assert (found["db"].callers, found["db"].source, found["db"].proxy_protocol) == (
        (), addresses.INGRESS_SOURCE, False,
    )  # fmt: skip
    assert manifest.decode(manifest.encode(made)) == made


def test_a_manifest_of_before_callers_and_members_is_read() -> None:
    """Fields that an older manifest does not have mean the default; of callers that is nobody."""
    made = render.manifest(starter(), deployment())
    tree = json.loads(manifest.encode(made))
    for group_tree in tree["groups"].values():
        for entry in group_tree["backends"].values():
            del entry["callers"], entry["source"], entry["proxy_protocol"]
    for entry in tree["routes"]:
        del entry["peer"]
    found = manifest.decode(json.dumps(tree).encode())
    assert found.routes == made.routes
    assert [it.callers for group in found.groups.values() for it in group.backends.values()] == [(), ()]
    tree["groups"]["api"]["backends"]["api"]["callers"] = None
    with pytest.raises(trees.ManifestError, match=r"groups\.api\.backends\.api\.callers must be a list, not None"):
        manifest.decode(json.dumps(tree).encode())


def test_load_render_sign_and_open_is_a_round_trip() -> None:
    """What a CVM opens is what was rendered; the text has no form but the canonical one."""
    made = render.manifest(starter(), deployment())
    assert manifest.decode(manifest.encode(made)) == made
    assert envelope.open_envelope(envelope.seal(made, KEY), OWNERS).manifest == made
    assert envelope.open_envelope(envelope.seal(made), None).manifest == made


def test_phalas_prefix_of_an_app_id_is_dropped() -> None:
    """The quote has the bare 40 digits, Phala's API puts `app_` before them."""
    with_prefix = dataclasses.replace(facts("a"), app_id="app_" + "a" * 40)
    given = dataclasses.replace(deployment(), groups={"api": with_prefix, "worker": facts("b")})
    assert render.manifest(starter(), given).groups["api"].app_id == "a" * 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coordinator_urls": ()}, ("has 0 coordinator URLs", "expected 1")),
        ({"groups": {"api": facts("a")}}, ("lacks group 'worker'",)),
        ({"groups": {"api": facts("a"), "worker": facts("b"), "x": facts("d")}}, ("has group 'x'",)),
        ({"coordinator": render.AppFacts(app_id="C" * 40, compose_hashes=("c" * 64,))}, ("app ID", "coordinator")),
        ({"coordinator": render.AppFacts(app_id="c" * 40, compose_hashes=())}, ("compose hashes", "at least one")),
        ({"coordinator": render.AppFacts(app_id="c" * 40, compose_hashes=("0x",))}, ("compose hashes", "'0x'")),
        (
            {
                "rendezvous": (
                    manifest.Rendezvous(public_key=LINK_KEY, endpoint="1.2.3.4:51820", address="100.96.34.161"),
                )
            },
            ("rendezvous 0", "coordinator-0"),
        ),
    ],
)
def test_a_deployment_that_does_not_fit_is_refused(change: dict[str, object], words: tuple[str, ...]) -> None:
    """Missing or foreign groups, malformed facts, taken addresses."""
    with pytest.raises(ClusterError) as caught:
        render.manifest(starter(), dataclasses.replace(deployment(), **change))  # type: ignore[arg-type]
    assert len(caught.value.problems) == 1
    assert all(word in caught.value.problems[0] for word in words), caught.value.problems


def environment(peer_id: str | None = "api-1", group: str = "api") -> dict[str, str]:
    """The environment of one CVM of the starter."""
    return render.sidecar_environment(starter(), group, peer_id, owners=None, coordinator_urls=URLS)


def test_the_environment_of_a_workload_cvm() -> None:
    """Identity and coordinators, and no policy: neither manifest nor routes, so that no change of them restarts it."""
    assert environment() == {
        "MESH_CLUSTER": "starter",
        "MESH_GROUP": "api",
        "MESH_PEER_ID": "api-1",
        "MESH_COORDINATORS": json.dumps(list(URLS), separators=(",", ":")),
    }


def test_the_slot_may_be_left_to_the_coordinator() -> None:
    """Without a peer ID the variable is absent, and the owner key is there where asked for."""
    assert "MESH_PEER_ID" not in environment(None)
    found = render.coordinator_environment(starter(), None, owners=OWNERS, coordinator_urls=URLS)
    assert found["MESH_OWNERS"] == OWNER_KEY
    assert (found["MESH_GROUP"], "MESH_ROUTES_JSON" in found) == ("coordinator", False)


def test_compose_env_is_passed_through() -> None:
    """The group's own variables reach the environment, the measured names, and the manifest with their values."""
    whole = starter()
    group = dataclasses.replace(whole.groups[0], compose_env={"DERIVE": "1"})
    found = render.sidecar_environment(whole, group, None, owners=None, coordinator_urls=URLS)
    assert found["DERIVE"] == "1"
    assert "DERIVE" in render.environment_names(group)
    signed = dataclasses.replace(whole, groups=(group, *whole.groups[1:]))
    made = render.manifest(signed, deployment())
    assert {name: it.env for name, it in made.groups.items()} == {"api": {"DERIVE": "1"}, "worker": {}}
    assert manifest.decode(manifest.encode(made)) == made


@pytest.mark.parametrize("peer_id", ["api-2", "worker-0", "api"])
def test_a_peer_of_another_group_is_refused(peer_id: str) -> None:
    """A slot that the group does not have."""
    with pytest.raises(ClusterError, match="is not of group 'api'"):
        environment(peer_id)
    with pytest.raises(ClusterError, match="is not a coordinator"):
        render.coordinator_environment(starter(), peer_id, owners=None, coordinator_urls=URLS)


@pytest.mark.parametrize(("value", "words"), [("x" * (1 << 18), "dstack takes"), ("a\\b", "backslash")])
def test_values_that_dstack_would_not_carry_are_refused(value: str, words: str) -> None:
    """Too great, or corrupted by the environment file."""
    whole = starter()
    group = dataclasses.replace(whole.groups[0], compose_env={"BIG": value})
    with pytest.raises(ClusterError, match=f"BIG.*{words}"):
        render.sidecar_environment(whole, group, None, owners=None, coordinator_urls=URLS)


@pytest.mark.parametrize("name", ["api", "worker", "coordinator"])
def test_the_compose_file_takes_exactly_the_names_that_are_measured(name: str) -> None:
    """No variable of the file is unset, no name is measured for nothing."""
    group = None if name == "coordinator" else starter().group(name)
    text = (STARTER / "compose" / f"{name}.yaml").read_text()
    assert compose.variables(text) == render.environment_names(group)


def test_the_environment_has_only_measured_names() -> None:
    """dstack drops what is not in allowed_envs. Routes may be given, and are not: a new one would restart CVMs."""
    assert set(environment()) | {"MESH_ROUTES_JSON"} == set(render.environment_names(starter().group("api")))


def test_app_compose_is_canonical_and_hashes_as_the_sdk_does() -> None:
    """The bytes are the deployer's canonical form, so the SDK's own hash of the same document agrees."""
    from dstack_sdk import get_compose_hash

    file = compose.load(STARTER / "compose" / "api.yaml")
    text = render.app_compose("starter-api", file, ("B", "A", "A"), owners=OWNERS)
    tree = json.loads(text)
    assert render.compose_hash(text) == get_compose_hash(tree)
    assert tree["allowed_envs"] == ["A", "B"]
    assert tree["docker_compose_file"] == render.with_owners(file.text, OWNERS)
    assert (tree["kms_enabled"], tree["no_instance_id"], tree["name"]) == (True, False, "starter-api")
    assert render.compose_hash(render.app_compose("other", file, ("A", "B"), owners=OWNERS)) != (
        render.compose_hash(text)
    )


def test_the_owner_key_changes_one_line() -> None:
    """Only the literal line differs, comments included; doing it twice changes nothing more."""
    text = (STARTER / "compose" / "api.yaml").read_text()
    keyed = render.with_owners(text, OWNERS)
    changed = [(a, b) for a, b in zip(text.splitlines(), keyed.splitlines(), strict=True) if a != b]
    assert changed == [
        ('      MESH_OWNERS: "REPLACE_WITH_YOUR_OWNER_KEY"', f'      MESH_OWNERS: "{OWNER_KEY}"'),
    ]
    assert render.with_owners(keyed, OWNERS) == keyed
    file = compose.parse(text, Path("api.yaml"))
    assert render.keyed(file, OWNERS).sidecar.environment["MESH_OWNERS"] == OWNER_KEY


@pytest.mark.parametrize(
    "line", ["MESH_OWNERS: {}", "MESH_OWNERS: '{}'  # mine", "- MESH_OWNERS={}", '- "MESH_OWNERS={}"']
)
def test_every_spelling_of_the_literal_is_found(line: str) -> None:
    """Map or list form, quoted or not, with a comment."""
    before = line.format(owners.OWNER_KEY_PLACEHOLDER)
    assert render.with_owners(f"a\n  {before}\nb\n", OWNERS) == f"a\n  {line.format(OWNER_KEY)}\nb\n"


@pytest.mark.parametrize(
    "text", ["", "MESH_OWNERS: ${MESH_OWNERS}", "# MESH_OWNERS: abc", "MESH_OWNERS: a\nMESH_OWNERS: b"]
)
def test_a_file_without_one_literal_key_is_refused(text: str) -> None:
    """None, a variable, a comment, or two."""
    with pytest.raises(ValueError, match=r"literal lines MESH_OWNERS"):
        render.with_owners(text, OWNERS)


SETS = (
    OWNERS,
    Owners(keys=(key_of(KEY), key_of(P256))),
    Owners(keys=(key_of(P256),)),
    Owners(keys=(key_of(KEY), key_of(P256)), threshold=2),
)


@pytest.mark.parametrize("owners", SETS, ids=["one", "one of two", "P-256", "two of two"])
@pytest.mark.parametrize("line", ["MESH_OWNERS: {}", 'MESH_OWNERS: "{}"', "- MESH_OWNERS={}"])
def test_every_set_of_owners_can_be_written_and_read(owners: Owners, line: str) -> None:
    """In each spelling, over another set, and YAML reads the same text."""
    text = line.format("1 of " + text_of(OWNERS) + ", p256:x")
    made = render.with_owners(text, owners)
    assert render.owners_of(made) == owners
    tree = yaml.safe_load(made)
    value = tree["MESH_OWNERS"] if isinstance(tree, dict) else tree[0].partition("=")[2]
    assert parse_owners(value) == owners


@pytest.mark.parametrize("text", [owners.OWNER_KEY_PLACEHOLDER, "short", OWNER_KEY + "x", f"3 of {OWNER_KEY}", "$A"])
def test_what_is_no_set_of_owners_is_none(text: str) -> None:
    """The placeholder, what is no key, more signatures than keys, a variable."""
    assert render.owners_of(f"MESH_OWNERS: {text}") is None
