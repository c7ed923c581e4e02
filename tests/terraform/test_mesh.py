"""`terraform/mesh`: it takes what `topology` takes, and refuses what its checks are for; what CVMs start with."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.terraform import world
from tests.topology import cases
from tests.topology.support import COMPOSE, write
from tests.topology.test_render import URLS, starter
from tests.topology.test_render import deployment as starters_deployment
from topology import cluster, render
from topology.envelope import seal
from topology.model import Cluster
from topology.problems import ClusterError

pytestmark = pytest.mark.timeout(400)

Write = Callable[[Path], object]

STARTER = """\
locals {
  workload_groups = {
    api = {
      replicas = 2
      compose = "${path.module}/compose/api.yaml"
      compose_env = {}
      backends = {
        api = {
          port = 8080
          workload = "api"
          registration = { owner = "platform", parent = "api" }
          consul_permissions = {}
        }
      }
      routes = {
        api = { backend = "api", role = null }
      }
    }
    worker = {
      replicas = 5
      compose = "${path.module}/compose/worker.yaml"
      compose_env = {}
      backends = {
        worker = {
          port = 9090
          workload = "worker"
          registration = { owner = "platform", parent = "worker" }
          consul_permissions = {}
        }
      }
      routes = {
        worker = { backend = "worker", role = null }
      }
    }
  }
}
"""
PATRONI = """\
locals {
  workload_groups = {
    postgres = {
      replicas = var.postgres_replicas
      compose = "${path.module}/compose/postgres.yaml"
      backends = {
        postgres = {
          port = 5432
          workload = "postgres"
          registration = { owner = "workload", parent = var.cluster_name }
          consul_permissions = {
            key_prefixes = ["service/${var.cluster_name}"]
            session_write = true
          }
        }
      }
      routes = {
        "postgres-master" = { backend = "postgres", role = "master" }
        "postgres-replica" = { backend = "postgres", role = "replica" }
      }
    }
  }
}
"""
"""cluster.tf as the template's own documentation has it: it works as it is."""


def _of_the_template(text: str) -> Write:
    def make(folder: Path) -> None:
        write(folder, variables='variable "postgres_replicas" {\n  default = 3\n}\n')
        (folder / "cluster.tf").write_text(text)
        for name in re.findall(r"compose/(\w+)\.yaml", text):
            (folder / "compose" / f"{name}.yaml").write_text(COMPOSE)

    return make


GOOD: dict[str, Write] = {
    **cases.GOOD,
    **dict(cases.random_clusters(5, seed=7)),
    "template-starter": _of_the_template(STARTER),
    "template-patroni": _of_the_template(PATRONI),
}
REFUSED: dict[str, list[str]] = {
    # Check 1: literal images.
    "image-variable": [
        "app.yaml: services.app.image: is ${APP_IMAGE}: a variable in an image reference is not measured"
    ],
    "image-default": ["app.yaml: services.sidecar.image: is ghcr.io/example/${NAME:-sidecar}:1: a variable"],
    "image-missing": ["app.yaml: services.app.image: is missing"],
    # Check 2: unique route names.
    "route-twice": [
        "workload_groups.a.routes.web and workload_groups.b.routes.web: have the name 'web'; route names are"
    ],
    "member-name-taken": ["workload_groups.a.routes.r and workload_groups.b.routes.r-1: have the name 'r-1'"],
    # Check 3: one parent and one owner.
    "two-parents": ["a.backends.db and workload_groups.b.backends.db: a backend has one parent"],
    "two-owners": [
        "a.backends.db and workload_groups.b.backends.db: a backend has one parent",
        "a.backends.db and workload_groups.b.backends.db: the parent 'db' has one owner",
    ],
    "parent-two-owners": ["a.backends.x and workload_groups.b.backends.y: the parent 'db' has one owner"],
    "no-owner": ["workload_groups.a.backends.a.registration: lacks owner or parent"],
    "no-registration": ["workload_groups.a.backends.a.registration: lacks owner or parent"],
    # Check 4: at least one slot.
    **{
        f"slots-{i}": [f"workload_groups.a.replicas: is {shown}, expected a whole number from 1 to 1000"]
        for i, shown in enumerate(["0", "-1", "1.5", '"2"', "true", "null", "[2]", "1001", "{}"])
    },
    # Check 5: unique peer IDs.
    "coordinator-group": [
        "coordinators and workload_groups.coordinator: have the peer ID 'coordinator-0'; peer IDs are unique"
    ],
    # Check 6: unique VIPs.
    "vip-pins": ["workload_groups.a.routes.a and workload_groups.b.routes.b: have the VIP 127.10.9.9; VIPs are unique"],
    # Check 7: unique producer ports.
    "port-twice": ["workload_groups.a.backends.x and workload_groups.a.backends.y: have port 8080 in one CVM"],
    # What an apply would find out.
    "no-compose": ["workload_groups.a.compost: is an unknown field", "workload_groups.a: lacks compose"],
    "compose-missing": ["compose/none.yaml: does not exist; write it"],
    "compose-no-yaml": ["compose/app.yaml: is no compose file; expected YAML with a map"],
    "compose-no-services": ["compose/app.yaml: is no compose file"],
    "unknown-field": [
        "workload_groups.a.kind: is an unknown field; expected one of backends, calls, compose",
        "workload_groups.a.kompose: is an unknown field",
    ],
}
"""By name of a broken cluster: what its refusal says, a text for each problem."""
_POLICY = """
variable "attestation" {
  type    = object({ require_digests = optional(bool, true) })
  default = {%s}
}
"""
_REFUSING = ("", "require_digests = null", "require_digests = true", 'require_digests = "true"')
_TAKING = ("require_digests = false", 'require_digests = "false"')


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all good clusters, and what Terraform makes of each."""
    folder = tmp_path_factory.mktemp("good")
    for name, make in GOOD.items():
        make(folder / name)
    world.root(folder, GOOD)
    return folder, world.planned(folder)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What Terraform says of each broken cluster."""
    folder = tmp_path_factory.mktemp("broken")
    for name in REFUSED:
        cases.BROKEN[name](folder / name)
    world.root(folder, REFUSED, named=True)
    return world.refusals(folder)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_terraform_takes_what_topology_takes(planned: tuple[Path, dict[str, Any]], name: str) -> None:
    """Slots, compose files and environment are those of topology's cluster."""
    folder, theirs = planned
    ours = cluster.load(folder / name)
    found = theirs[name]
    assert found["cluster"] == ours.name
    assert found["coordinators"]["peers"] == list(ours.coordinator_peers())
    assert {g: entry["peers"] for g, entry in found["groups"].items()} == {g.name: list(g.peers()) for g in ours.groups}
    for group in ours.groups:
        assert Path(found["groups"][group.name]["compose"]).name == group.compose.name
        assert found["groups"][group.name]["compose_env"] == group.compose_env
        assert found["environment"][group.name] == _environment(ours, group.name, ())
    assert found["environment"]["coordinator"] == _environment(ours, None, ())
    public = {g.name: {b.name: b.public.port for b in g.backends if b.public is not None} for g in ours.groups}
    assert found["public"] == {name: ports for name, ports in public.items() if ports}


def test_an_environment_has_no_more_than_it_needs(planned: tuple[Path, dict[str, Any]]) -> None:
    """No manifest, route, address or port, so that a change of these restarts nobody."""
    found = planned[1]["template-starter"]
    assert sorted(found) == ["cluster", "coordinators", "environment", "groups", "public", "signed"]
    assert found["environment"]["worker"] == {
        "MESH_CLUSTER": "demo", "MESH_COORDINATORS": "", "MESH_GROUP": "worker",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_wrong_is_refused_by_name(refused: dict[str, list[str]], name: str) -> None:
    """Each of the template's seven checks, and what an apply would find out; one line for each problem."""
    found = refused[name]
    assert len(found) == len(REFUSED[name]), found
    for words in REFUSED[name]:
        assert any(words in line for line in found), found


def test_a_signed_manifest_says_where_the_coordinators_are(tmp_path: Path) -> None:
    """With a manifest, the environment has its coordinators' URLs, and nothing else of it."""
    cases.GOOD["one"](tmp_path / "signed")
    ours = cluster.load(tmp_path / "signed")
    envelope = seal(render.manifest(starter(), starters_deployment())) + "c2lnbmF0dXJl.c2lnbmF0dXJl"
    world.root(tmp_path, ["signed"], more=f'manifest = "{envelope}"')
    found = world.planned(tmp_path)["signed"]["environment"]
    for group in ("a", None):
        assert found[group or "coordinator"] == _environment(ours, group, URLS)


def test_a_tag_is_refused_where_the_policy_wants_digests(tmp_path: Path) -> None:
    """By file and service; `./mesh plan` names the line too. What `attestation.require_digests` is, both read alike."""
    written = {f"policy-{index}": text for index, text in enumerate((*_REFUSING, *_TAKING))}
    for name, text in written.items():
        cases.GOOD["one"](tmp_path / name)
        with (tmp_path / name / "variables.tf").open("a") as file:
            file.write(_POLICY % text)
    world.root(tmp_path, written, more="require_digests = each.value.require_digests", named=True, digests=True)
    theirs = world.refusals(tmp_path)
    assert sorted(theirs) == [name for name, text in written.items() if text in _REFUSING]
    for name in written:
        if name not in theirs:
            assert cluster.load(tmp_path / name, deployable=True).name == "demo"
            continue
        assert cluster.load(tmp_path / name).name == "demo", "a mesh on one machine takes tags"
        with pytest.raises(ClusterError) as caught:
            cluster.load(tmp_path / name, deployable=True)
        for found, line in ((theirs[name], ""), (caught.value.problems, r":\d+")):
            places = [
                re.search(rf"[\w.]+\.yaml{line}: (services\.\w+)\.image: .*pin it by digest", text) for text in found
            ]
            assert sorted(place[1] for place in places if place) == [
                "services.app",
                "services.sidecar",
                "services.sidecar",
            ]
        for path in (tmp_path / name / "compose").iterdir():
            path.write_text(re.sub(r"(ghcr\S+):1", rf"\1@sha256:{'0a' * 32}", path.read_text()))
        assert cluster.load(tmp_path / name, deployable=True).name == "demo"
    assert sorted(world.planned(tmp_path)) == sorted(written)


@pytest.mark.parametrize("value", ["not one", "YQ."], ids=["two words", "unsigned"])
def test_a_manifest_that_no_cvm_could_take_is_refused(tmp_path: Path, value: str) -> None:
    """Not an envelope, or not signed."""
    cases.GOOD["one"](tmp_path / "one")
    world.root(tmp_path, ["one"], more=f'manifest = "{value}"')
    shown = world.run(tmp_path, "plan", "-no-color", "-input=false", ok=False)
    assert "Invalid value for variable" in shown
    assert "one line" in " ".join(shown.replace("│", " ").split())


def test_the_modules_are_formatted() -> None:
    """`terraform fmt` has nothing to change in modules and clusters."""
    for folder in ("terraform", "clusters"):
        world.run(ROOT / folder, "fmt", "-check", "-recursive")


def test_the_mesh_module_needs_no_provider() -> None:
    """Nothing has to be downloaded to plan it."""
    text = "\n".join(path.read_text() for path in world.MESH.glob("*.tf"))
    assert "required_providers" not in text
    assert set(re.findall(r'^(?:resource|data) "(\w+)"', text, re.MULTILINE)) == {"terraform_data"}


def _environment(ours: Cluster, group: str | None, urls: tuple[str, ...]) -> dict[str, str]:
    if group is None:
        return render.coordinator_environment(ours, None, owners=None, coordinator_urls=urls)
    return render.sidecar_environment(ours, group, None, owners=None, coordinator_urls=urls)
