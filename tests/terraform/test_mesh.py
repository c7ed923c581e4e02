"""`terraform/mesh` against `topology/`: the same clusters, equal verdicts, equal rendered values, byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.terraform import cases, world
from tests.topology.test_render import OWNERS
from topology import cluster, manifest, render
from topology.envelope import seal
from topology.model import Cluster
from topology.problems import ClusterError

pytestmark = pytest.mark.timeout(400)

GOOD = cases.GOOD | dict(cases.random_clusters(20, seed=7))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all good clusters, and what Terraform makes of each."""
    folder = tmp_path_factory.mktemp("good")
    for name, make in GOOD.items():
        make(folder / name)
    world.root(folder, GOOD)
    return folder, world.planned(folder)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The folder of all broken clusters, and what Terraform says of each."""
    folder = tmp_path_factory.mktemp("broken")
    for name, make in cases.BROKEN.items():
        make(folder / name)
    world.root(folder, cases.BROKEN, named=True)
    return folder, world.refusals(folder)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_good_clusters_are_rendered_alike(rendered: tuple[Path, dict[str, Any]], name: str) -> None:
    """Addresses, VIPs, routes, rights and the environment of every group are the same bytes."""
    folder, theirs = rendered
    ours = cluster.load(folder / name)
    found = theirs[name]
    assert found["cluster"] == ours.name
    assert found["vips"] == ours.vips()
    assert found["mesh_addresses"] == ours.mesh_addresses()
    assert found["routes_json"] == render.routes_json(ours)
    assert _canonical(found["policy"]) == _canonical(_policy(ours))
    assert {g: entry["peers"] for g, entry in found["groups"].items()} == {g.name: list(g.peers()) for g in ours.groups}
    for group in ours.groups:
        assert found["environment"][group.name] == _environment(ours, group.name, ())
        assert Path(found["groups"][group.name]["compose"]).name == group.compose.name
    assert found["environment"]["coordinator"] == _environment(ours, None, ())


@pytest.mark.parametrize("name", sorted(cases.BROKEN))
def test_broken_clusters_are_refused_alike(refused: tuple[Path, dict[str, list[str]]], name: str) -> None:
    """The same entries are named, of compose files also the file and the line."""
    folder, theirs = refused
    with pytest.raises(ClusterError) as caught:
        cluster.load(folder / name)
    assert name in theirs, "Terraform takes what topology refuses"
    assert sorted({_entry(line) for line in theirs[name]}) == sorted({_entry(text) for text in caught.value.problems})


def test_a_signed_manifest_is_read_as_topology_renders_with_it(tmp_path: Path) -> None:
    """With a manifest, the environment has its coordinators' URLs, and nothing else of it."""
    folder = tmp_path / "signed"
    cases.GOOD["database"](folder)
    ours = cluster.load(folder)
    facts = deployment(ours)
    envelope = seal(render.manifest(ours, facts)) + "c2lnbmF0dXJl.c2lnbmF0dXJl"
    world.root(tmp_path, ["signed"], more=f'manifest = "{envelope}"')
    found = world.planned(tmp_path)["signed"]["environment"]
    for group in (*(group.name for group in ours.groups), None):
        assert found[group or "coordinator"] == _environment(ours, group, facts.coordinator_urls)


_POLICY = """
variable "attestation" {
  type    = object({ require_digests = optional(bool, true) })
  default = {%s}
}
"""


_REFUSING = ("", "require_digests = null", "require_digests = true", 'require_digests = "true"')
_TAKING = ("require_digests = false", 'require_digests = "false"')


def test_a_tag_is_refused_where_the_policy_wants_digests(tmp_path: Path) -> None:
    """By file, line and service, by both; what `attestation.require_digests` is, is read alike. A digest is taken."""
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
        for found in (theirs[name], caught.value.problems):
            assert sorted(map(_entry, found)) == [
                "app.yaml:10: services.app.image",
                "app.yaml:3: services.sidecar.image",
                "coordinator.yaml:3: services.sidecar.image",
            ]
            assert all("pin it by digest" in line for line in found)
        for path in (tmp_path / name / "compose").iterdir():
            path.write_text(re.sub(r"(ghcr\S+):1", rf"\1@sha256:{'0a' * 32}", path.read_text()))
        assert cluster.load(tmp_path / name, deployable=True).name == "demo"
    assert sorted(world.planned(tmp_path)) == sorted(written)


@pytest.mark.parametrize(
    ("value", "words"),
    [("not one", "one line"), ("YQ.", "one line")],
    ids=["two words", "unsigned"],
)
def test_a_manifest_that_no_cvm_could_take_is_refused(tmp_path: Path, value: str, words: str) -> None:
    """Not an envelope, or not signed."""
    cases.GOOD["one"](tmp_path / "one")
    world.root(tmp_path, ["one"], more=f'manifest = "{value}"')
    shown = world.run(tmp_path, "plan", "-no-color", "-input=false", ok=False)
    assert "Invalid value for variable" in shown
    assert words in " ".join(shown.replace("│", " ").split())


def test_the_modules_are_formatted() -> None:
    """`terraform fmt` has nothing to change in modules and clusters."""
    for folder in ("terraform", "clusters"):
        world.run(ROOT / folder, "fmt", "-check", "-recursive")


def test_the_mesh_module_needs_no_provider() -> None:
    """Nothing has to be downloaded to plan it."""
    text = "\n".join(path.read_text() for path in world.MESH.glob("*.tf"))
    assert "required_providers" not in text
    assert set(re.findall(r'^(?:resource|data) "(\w+)"', text, re.MULTILINE)) == {"terraform_data"}


def deployment(ours: Cluster) -> render.Deployment:
    """What would be known once the apps of `ours` exist."""
    facts = render.AppFacts(app_id="a" * 40, compose_hashes=("b" * 64,))
    return render.Deployment(
        key_provider=manifest.KeyProvider(name="kms", id="00ff"),
        os_images=(manifest.OsImage(os_image_hash="1", mrtd="2", rtmr0="3", rtmr1="4", rtmr2="5"),),
        tcb=manifest.TcbPolicy(),
        coordinator=facts,
        groups={group.name: facts for group in ours.groups},
        coordinator_urls=tuple(f"https://{peer}-8787s.example" for peer in ours.coordinator_peers()),
        rendezvous=(),
        owners=OWNERS,
        epoch=1,
    )


def _environment(ours: Cluster, group: str | None, urls: tuple[str, ...]) -> dict[str, str]:
    if group is None:
        return render.coordinator_environment(ours, None, owners=None, coordinator_urls=urls)
    return render.sidecar_environment(ours, group, None, owners=None, coordinator_urls=urls)


def _policy(ours: Cluster) -> dict[str, Any]:
    """What of the manifest follows from cluster.tf alone."""
    whole = json.loads(manifest.encode(render.manifest(ours, deployment(ours))))
    for name in (
        "version",
        "epoch",
        "previous",
        "owners",
        "critical",
        "key_provider",
        "os_images",
        "tcb",
        "rendezvous",
        "revoked",
    ):
        del whole[name]
    whole["coordinators"] = [{"peer_id": p["peer_id"], "address": p["address"]} for p in whole["coordinators"]["peers"]]
    for entry in whole["groups"].values():
        del entry["app_id"], entry["compose_hashes"]
    return dict(whole)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _entry(problem: str) -> str:
    """`workload_groups.a.port`, or `app.yaml:9: services.app.image`, of a problem of either side."""
    inside = re.search(r"workload_groups(\.[^:]*)?(?=: )", problem)
    if inside is not None and "services." not in problem.split(": ")[1]:
        return inside[0]
    file = re.match(r"(?:\S*/)?([\w.-]+\.yaml)(:\d+)?: (services\.[\w.]+)?", problem)
    assert file is not None, problem
    # Terraform does not say where YAML is broken.
    line = "" if "is not valid YAML" in problem else file[2] or ""
    return f"{file[1]}{line}: {file[3] or ''}"
