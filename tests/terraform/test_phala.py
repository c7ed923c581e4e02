"""`terraform/phala` and the starter with a real Terraform, against a stand-in for the provider and its cloud."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.terraform import provider, world
from tests.terraform.deployed import PRE_LAUNCH_HASH, Sandbox
from tests.topology.test_render import KEY as OWNER
from tests.topology.test_render import P256
from topology import manifest, render
from topology.cluster import load
from topology.owners import OWNER_KEY_PLACEHOLDER, Owners, key_of, text_of

pytestmark = pytest.mark.timeout(400)

SLOTS = [
    "starter-api",
    "starter-coordinator",
    "starter-worker",
    "starter-api-1",
    "starter-worker-1",
    "starter-worker-2",
]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The starter with three workers, applied once, without a manifest yet."""
    sandbox = Sandbox(top=tmp_path_factory.mktemp("cloud"))
    world.terraform()
    rendezvous = 'rendezvous = [{ public_key = "' + "A" * 43 + '=", endpoint = "203.0.113.5:51820" }]\n'
    sandbox.prepare(tfvars=f"worker_replicas = 3\n{rendezvous}")
    with provider.serve(sandbox.top, sandbox.cloud) as sandbox.variables:
        sandbox.terraform("init", "-no-color", "-input=false")
        sandbox.terraform("validate", "-no-color")
        sandbox.apply()
        sandbox.first = json.loads(sandbox.terraform("output", "-json", "deployment"))
        sandbox.cloud.boot()
        sandbox.apply()
        yield sandbox


def _signed(deployed: Sandbox) -> manifest.Manifest:
    """Renders and signs the manifest of what is deployed."""
    folder = str(deployed.folder)
    rendered = deployed.mesh(
        "generate", folder, "--outputs", str(deployed.outputs()),
        "--take-reported-images", "--take-reported-provider", "--accept-pre-launch", PRE_LAUNCH_HASH,
    )  # fmt: skip
    assert rendered.exit_code == 0, rendered
    signed = deployed.mesh("sign", folder, "--key", str(deployed.key))
    assert signed.exit_code == 0, signed
    shown = deployed.mesh("manifest", "show", folder, "--json")
    return manifest.decode(shown.output.encode())


def test_one_app_a_group_and_one_instance_a_further_slot(deployed: Sandbox) -> None:
    """The first slot comes with its app; further ones are resources; nothing else is made."""
    created = [line for line in deployed.cloud.log if line.startswith("create")]
    assert sorted(line.split()[-1] for line in created[:6]) == sorted(SLOTS)
    assert {line.split()[1] for line in created[:3]} == {"phala_app"}
    members = json.loads(deployed.terraform("output", "-json", "members"))
    assert [slot["slot"] for slot in members["worker"]] == ["starter-worker", "starter-worker-1", "starter-worker-2"]
    assert all(re.fullmatch("[0-9a-f]{40}", slot["instance_id"]) for slots in members.values() for slot in slots)
    assert json.loads(deployed.terraform("output", "-json", "public_urls")) == {}
    url = deployed.terraform("output", "-raw", "api_url")
    assert re.fullmatch(rf"https://[0-9a-f]{{40}}-8080\.{provider.GATEWAY}", url)


def test_the_first_apply_ends_before_instance_ids_exist(deployed: Sandbox) -> None:
    """The platform knows an instance ID once a CVM has booted: until then the outputs say "", and render says so."""
    assert deployed.first["coordinator_urls"] == [""]
    assert deployed.first["apps"]["worker"]["instance_ids"] == ["", "", ""]
    early = deployed.top / "early.json"
    early.write_text(json.dumps(deployed.first))
    refused = deployed.mesh("generate", str(deployed.folder), "--outputs", str(early), "--take-reported-images")
    assert "coordinator slot 0 has no instance ID or no gateway yet" in str(refused.exception)
    assert "app 'api' has no attestation yet (CVM is not online)" in str(refused.exception)


def test_each_coordinator_is_reached_through_its_own_nodes_gateway(deployed: Sandbox) -> None:
    """Slots are on different nodes, and a gateway leads to the instances of its own only."""
    tfvars = deployed.folder / "terraform.tfvars"
    before = tfvars.read_text()
    try:
        tfvars.write_text(before + "coordinators = 2\n")
        deployed.apply()
        deployed.cloud.boot()
        deployed.apply()
        outputs = json.loads(deployed.outputs().read_text())
        urls = outputs["coordinator_urls"]
    finally:
        tfvars.write_text(before)
        deployed.apply()
    by_name = {cvm.name: cvm for cvm in deployed.cloud.cvms.values()}
    first = by_name["starter-coordinator"].instance
    assert urls[0] == f"https://{first}-8787s.{provider.GATEWAY}"
    assert re.fullmatch(rf"https://[0-9a-f]{{40}}-8787s\.{provider.OTHER_GATEWAY}", urls[1])
    assert outputs["apps"]["coordinator"]["gateways"] == [provider.GATEWAY, provider.OTHER_GATEWAY]


def test_every_slot_starts_with_the_environment_of_its_app(deployed: Sandbox) -> None:
    """A slot that is made later is given it too: the cloud gives a CVM what its own request says, and no more."""
    _signed(deployed)
    deployed.apply()
    tfvars = deployed.folder / "terraform.tfvars"
    before = tfvars.read_text()
    try:
        tfvars.write_text(before.replace("worker_replicas = 3", "worker_replicas = 4"))
        deployed.apply()
        envs = {cvm.name: cvm.env for cvm in deployed.cloud.cvms.values()}
    finally:
        tfvars.write_text(before)
        deployed.apply()
    assert envs["starter-worker"]["MESH_GROUP"] == "worker"
    for slot in ("starter-worker-1", "starter-worker-2", "starter-worker-3"):
        assert envs[slot] == envs["starter-worker"]


def test_a_changed_environment_reaches_each_slot_once(deployed: Sandbox) -> None:
    """The provider sends the app's to every slot; the slots' own resources change nothing, and replace no CVM."""
    file = deployed.folder / "cluster.tf"
    before = file.read_text()
    try:
        file.write_text(before.replace("compose_env = {}", 'compose_env = { MODE = "one" }'))
        deployed.apply()
        file.write_text(file.read_text().replace('"one"', '"two"'))
        start = len(deployed.cloud.log)
        deployed.apply()
        asked = deployed.cloud.log[start:]
        modes = {cvm.name: cvm.env.get("MODE", "") for cvm in deployed.cloud.cvms.values()}
    finally:
        file.write_text(before)
        deployed.apply()
    _signed(deployed)
    deployed.apply()
    slots = ["starter-worker", "starter-worker-1", "starter-worker-2"]
    wanted = {"update phala_app starter-worker", *(f"env {slot}" for slot in slots)}
    assert sorted(line for line in asked if "worker" in line) == sorted(wanted)
    assert all(modes[slot] == "two" for slot in slots)


def test_a_deployment_becomes_a_signed_manifest_and_then_an_update_in_place(deployed: Sandbox) -> None:
    """Render, sign, apply: coordinators' URLs reach apps by a change in place, and rendering agrees with topology."""
    made = _signed(deployed)
    ours = load(deployed.folder)
    assert [peer.peer_id for peer in made.groups["worker"].peers] == list(ours.group("worker").peers())
    assert made.rendezvous[0].address == "100.96.0.1"
    assert made.coordinators.peers[0].url.startswith("https://")
    plan = deployed.plan()
    changes = {r["address"]: r["change"]["actions"] for r in plan["resource_changes"]}
    apps = {f'module.phala.phala_app.app["{name}"]' for name in ("api", "coordinator", "worker")}
    # At the first manifest only, which depends on the order of the tests: it says where the coordinators are.
    assert set(_changed(plan)) in (set(), apps)
    assert all(changes[address] == ["update"] for address in _changed(plan))
    planned = {
        resource["index"]: resource["values"]["env"]
        for module in plan["planned_values"]["root_module"]["child_modules"]
        for resource in module["resources"]
        if resource["type"] == "phala_app"
    }
    urls = tuple(peer.url for peer in made.coordinators.peers)
    for group in ("api", "worker"):
        assert planned[group] == render.sidecar_environment(ours, group, None, owners=None, coordinator_urls=urls)
    deployed.apply()
    assert _changed(deployed.plan()) == []


def test_a_new_route_or_port_restarts_nobody(deployed: Sandbox) -> None:
    """No environment has either: CVMs take them from the coordinators, with the manifest that is set there."""
    _signed(deployed)
    deployed.apply()
    file = deployed.folder / "cluster.tf"
    before = file.read_text()
    route = 'worker = { backend = "worker", role = null }'
    try:
        file.write_text(before.replace(route, f'{route}\n        jobs = {{ backend = "worker", role = null }}'))
        deployed.apply()
        made = _signed(deployed)
        assert "jobs" in {route.name for route in made.routes}
        assert _changed(deployed.plan()) == []
        file.write_text(file.read_text().replace("= 9090", "= 9191"))
        deployed.apply()
        _signed(deployed)
        assert _changed(deployed.plan()) == []
    finally:
        file.write_text(before)
    deployed.apply()
    _signed(deployed)
    deployed.apply()


def test_a_manifest_of_another_cluster_is_warned_of(deployed: Sandbox) -> None:
    """More replicas than the signed manifest has: Terraform goes on, and says what to do next."""
    _signed(deployed)
    tfvars = deployed.folder / "terraform.tfvars"
    before = tfvars.read_text()
    try:
        tfvars.write_text(before.replace("worker_replicas = 3", "worker_replicas = 4"))
        shown = deployed.terraform("plan", "-no-color", "-input=false", ok=False)
    finally:
        tfvars.write_text(before)
    assert "The signed manifest has other slots or variables than cluster.tf" in shown
    assert 'phala_app_instance.slot["starter-worker-3"] will be created' in shown
    assert "Error" not in shown


def test_a_manifest_with_other_variables_is_warned_of(deployed: Sandbox) -> None:
    """Applying goes on, and applications that are given other values than the signed ones do not start."""
    _signed(deployed)
    file = deployed.folder / "cluster.tf"
    before = file.read_text()
    assert "The signed manifest has other" not in deployed.terraform("plan", "-no-color", "-input=false")
    try:
        file.write_text(before.replace("compose_env = {}", 'compose_env = { A = "1" }'))
        shown = deployed.terraform("plan", "-no-color", "-input=false", ok=False)
    finally:
        file.write_text(before)
    assert "The signed manifest has other slots or variables than cluster.tf" in shown
    assert "Error" not in shown


def test_a_plan_against_the_state_sees_what_is_deployed(deployed: Sandbox) -> None:
    """`./mesh plan` reads Terraform's own state: nothing changes, until something does."""
    state = deployed.folder / "terraform.tfstate"
    shown = deployed.top / "state.json"
    shown.write_text(deployed.terraform("show", "-json"))
    for against in (state, shown):
        found = deployed.mesh("plan", str(deployed.folder), "--against", str(against))
        assert "nothing changes" in found.output, found.output
    tfvars = deployed.folder / "terraform.tfvars"
    before = tfvars.read_text()
    try:
        tfvars.write_text(before.replace("worker_replicas = 3", "worker_replicas = 4"))
        found = deployed.mesh("plan", str(deployed.folder), "--against", str(state), "--json", "-")
    finally:
        tfvars.write_text(before)
    effects = {c["name"]: c["effect"] for c in json.loads(found.output)["changes"]}
    assert effects == {"worker-3": "create"}


def test_nothing_secret_is_in_plan_or_state(deployed: Sandbox) -> None:
    """Neither the API key, nor the owner's private key, nor anything that a coordinator or a CVM derives."""
    _signed(deployed)
    state = (deployed.folder / "terraform.tfstate").read_text()
    plan = json.dumps(deployed.plan())
    pem = deployed.key.read_text().splitlines()
    for text in (state, plan):
        assert deployed.variables["PHALA_CLOUD_API_KEY"] not in text
        assert not any(line in text for line in pem if len(line) > 16)
        assert not re.search(r'"[^"]*(password|passwd|gossip|private|token)[^"]*"\s*:', text, re.IGNORECASE)
    allowed = {"MESH_CLUSTER", "MESH_COORDINATORS", "MESH_GROUP"}
    apps = [r for r in json.loads(state)["resources"] if r["type"] == "phala_app"]
    names = {name for r in apps for instance in r["instances"] for name in instance["attributes"]["env"]}
    assert apps
    assert names == allowed


def test_the_patroni_demo_plans_without_a_secret(tmp_path: Path) -> None:
    """The database cluster with its workload secret: its name is planned, and no value of it exists anywhere here."""
    world.terraform()
    sandbox = Sandbox(top=tmp_path, name="patroni-demo")
    sandbox.prepare(tfvars="postgres_replicas = 2\n")
    with provider.serve(sandbox.top, sandbox.cloud) as sandbox.variables:
        sandbox.terraform("init", "-no-color", "-input=false")
        plan = sandbox.plan()
    assert len(_changed(plan)) == 1 + 3 + 2
    envs = {
        resource["index"]: resource["values"]["env"]
        for module in plan["planned_values"]["root_module"]["child_modules"]
        for resource in module["resources"]
        if resource["type"] == "phala_app"
    }
    assert {name: value for name, value in envs["postgres"].items() if not name.startswith("MESH_")} == {
        "DERIVE_PATRONI_PASSWORDS": "1",
        "POSTGRES_SYNCHRONOUS": "on",
    }
    assert not re.search(r'"[^"]*(password|passwd)[^"]*"\s*:\s*"(?!1")', json.dumps(plan), re.IGNORECASE)
    assert sandbox.cloud.log == []


def test_emojivoto_says_where_its_page_is(tmp_path: Path) -> None:
    """Once the platform knows its gateway: by TLS that ends in the CVM; and by that name its manifest has it."""
    world.terraform()
    sandbox = Sandbox(top=tmp_path, name="emojivoto")
    sandbox.prepare(tfvars="web_replicas = 1\n")
    with provider.serve(sandbox.top, sandbox.cloud) as sandbox.variables:
        sandbox.terraform("init", "-no-color", "-input=false")
        sandbox.apply()
        sandbox.cloud.boot()
        sandbox.apply()
        urls = json.loads(sandbox.terraform("output", "-json", "public_urls"))
        (public,) = [backend.public for backend in _signed(sandbox).groups["web"].backends.values()]
    assert urls.keys() == {"web/web"}
    (page,) = urls["web/web"]
    assert re.fullmatch(rf"https://[0-9a-f]{{40}}-443s\.{provider.GATEWAY}", page)
    assert public is not None
    assert public.sans == (page.removeprefix("https://"), "web")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "require_digests = false",
            "require_digests = true",
            ["pin it by digest", "compose/api.yaml: services.sidecar.image"],
        ),
        ("require_digests = false", 'require_digests = false, image = "dstack-dev-0.5.7"', ["is a development image"]),
        ("worker_replicas = 3", 'worker_replicas = 3\nkms = "ethereum"', ["kms must be", "phala"]),
        ("worker_replicas = 3", 'worker_replicas = 3\ncluster_name = "' + "c" * 60 + '"', ["5 to 63 characters"]),
        ("worker_replicas = 3", "worker_replicas = 0", ["workload_groups.worker.replicas", "at least one slot"]),
        ("203.0.113.5:51820", "relay.example", ["rendezvous", "IPv4 address and a UDP port"]),
    ],
)
def test_what_the_provider_would_find_late_is_refused_at_plan(
    deployed: Sandbox, old: str, new: str, words: list[str]
) -> None:
    """The provider plans these cleanly and fails while it applies; the modules refuse them before anything is made."""
    _refused(deployed, deployed.folder / "terraform.tfvars", old, new, words)


def test_a_deployment_without_owners_is_refused(deployed: Sandbox) -> None:
    """The placeholder, typos, a threshold that cannot be met, and different owners, with the remedy."""
    compose = deployed.folder / "compose" / "api.yaml"
    owners = render.owners_of(compose.read_text())
    assert owners is not None
    key, other = text_of(owners), "E" * 43
    for wrong in (
        OWNER_KEY_PLACEHOLDER,
        key[:-1],
        key[:-1] + "B",
        f"2 of {key}",
        f"{key}, {key}",
        f"p256:{key}",
    ):
        assert render.owners_of(f"MESH_OWNERS: {wrong}") is None
        _refused(deployed, compose, key, wrong, ["compose/api.yaml", "./mesh keygen"])
    _refused(deployed, compose, key, other, ["different MESH_OWNERS", other, key])


def test_several_owners_are_taken_as_topology_reads_them(deployed: Sandbox) -> None:
    """However they are spelled in each file: only that other owners changed what is measured is planned."""
    keys = ", ".join(text_of(Owners(keys=(owner,))) for owner in (key_of(P256), key_of(OWNER)))
    files = sorted((deployed.folder / "compose").iterdir())
    before = {file: file.read_text() for file in files}
    spelled = (f"2 of {keys}", f"2  of {keys.replace(', ', ',')}")
    try:
        for file, text in zip(files[:2], spelled, strict=False):
            own = render.owners_of(before[file])
            assert own is not None
            file.write_text(before[file].replace(text_of(own), text))
        for file in files[2:]:
            own = render.owners_of(before[file])
            assert own is not None
            file.write_text(before[file].replace(text_of(own), spelled[0]))
        assert len({render.owners_of(file.read_text()) for file in files}) == 1
        assert deployed.plan()["errored"] is False
    finally:
        for file, text in before.items():
            file.write_text(text)


def _changed(plan: dict[str, Any]) -> list[str]:
    return [r["address"] for r in plan["resource_changes"] if r["change"]["actions"] not in (["no-op"], ["read"])]


def _refused(deployed: Sandbox, file: Path, old: str, new: str, words: list[str]) -> None:
    before = file.read_text()
    assert old in before
    try:
        file.write_text(before.replace(old, new, 1))
        shown = deployed.terraform("plan", "-no-color", "-input=false", ok=False)
    finally:
        file.write_text(before)
    flat = " ".join(shown.replace("│", " ").split())
    assert "Error" in flat
    assert all(word in flat for word in words), shown
