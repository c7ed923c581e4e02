"""What a CVM gets on a Docker engine, beside what it gets in the lab."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import docker_plan
from lab.docker_host import cvms_of
from lab.docker_plan import ANCHOR, SITE, Place
from lab.plan import CvmPlan, LabPlan, make_plan
from lab.tee import DevTee
from meshctl import tools
from tests.support import ROOT
from topology.cluster import load

SEED = b"seed" * 8
PLACE = Place(
    run="run-1",
    folder=Path("/runs/run-1"),
    lab_image="cvm-mesh/lab:local",
    relay_image="cvm-mesh/sidecar:local",
    images={"ghcr.io/dstack-mesh/cvm-mesh-sidecar:0.1.0": "cvm-mesh/sidecar:local"},
)
CLUSTERS = sorted(path.parent for path in (ROOT / "clusters").glob("*/cluster.tf"))


@functools.cache
def plan(folder: Path = ROOT / "clusters" / "starter") -> LabPlan:
    """The plan of a cluster as `./mesh compose` makes it."""
    owner = Ed25519PrivateKey.from_private_bytes(bytes(32))
    return make_plan(load(folder), DevTee(SEED), owner, SITE)


def merged(cvm: CvmPlan, folder: Path) -> dict[str, Any]:
    """What Compose itself makes of the compose file, the overlay and the environment file; skips without Compose."""
    overlay = docker_plan.overlay_text(cvm, PLACE, "sha256:0")
    return compose_config(cvm.compose.path, overlay, docker_plan.env_text(cvm.variables), folder)


def compose_config(path: Path, overlay: str, env: str, folder: Path) -> dict[str, Any]:
    """The services of `docker-compose config`."""
    found = tools.search(tools.TOOLS["docker-compose"], os.environ).found
    if found is None:
        pytest.skip("docker-compose is neither installed nor built: ./mesh compose up builds it")
    (folder / "overlay.yaml").write_text(overlay, encoding="utf-8")
    (folder / "env").write_text(env, encoding="utf-8")
    argv = [str(found.path), "-p", "t", "--env-file", str(folder / "env"), "-f", str(path)]
    argv += ["-f", str(folder / "overlay.yaml"), "config", "--format", "json"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def test_the_relay_is_the_committed_one_with_the_labs_settings(tmp_path: Path) -> None:
    """Its rights, command and names of settings are the file's; key, network and the simulated TEE are the lab's."""
    path = ROOT / "clusters" / "relay" / "compose.yaml"
    text = docker_plan.relay_text(plan(), PLACE, path, "sha256:0")
    services = compose_config(path, text, docker_plan.env_text(docker_plan.relay_variables(plan())), tmp_path)
    assert set(services) == {ANCHOR, docker_plan.RELAY}
    relay = services[docker_plan.RELAY]
    assert (relay["command"], relay["image"]) == (["peer.rendezvous"], "cvm-mesh/sidecar:local")
    assert (relay["cap_drop"], sorted(relay["cap_add"])) == (["ALL"], ["NET_ADMIN", "NET_RAW"])
    assert relay["network_mode"] == f"service:{ANCHOR}"
    volumes = {item["target"]: item["source"] for item in relay["volumes"]}
    assert volumes[docker_plan.RELAY_FOLDER] == "/runs/run-1/cvms/rendezvous/relay"
    assert "/var/run/dstack.sock" not in volumes
    given = plan().rendezvous.environment["rendezvous"]
    own = {"MESH_RENDEZVOUS_KEY_FILE": "/var/lib/mesh-relay/key"}
    # By default the image's.
    wanted = {n: text for n, text in given.items() if n.startswith("MESH_") and n != "MESH_WIREGUARD_GO"}
    assert relay["environment"] == wanted | own


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.name)
def test_docker_gives_a_cvm_what_the_lab_gives_it(cluster: Path, tmp_path: Path) -> None:
    """Each container's environment is the lab's, but for what names the machine's own programs; so is its command."""
    machines_own = {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "HOME", "LANG", *SITE.tools.environment()}
    for cvm in plan(cluster).cvms:
        services = merged(cvm, tmp_path)
        assert set(services) == {ANCHOR, *(service.name for service in cvm.machine.services)}
        for service in cvm.machine.services:
            found = services[service.name]
            environment = {name: text for name, text in (found.get("environment") or {}).items() if text != ""}
            wanted = cvm.machine.environment[service.name]
            assert environment == {name: text for name, text in wanted.items() if name not in machines_own}
            # The sidecar image's entry point is `python -m`; an application's is the compose file's.
            words = [*(found.get("entrypoint") or ("/usr/local/bin/python", "-m")), *(found.get("command") or ())]
            assert tuple(words) == cvm.machine.programs[service.name]


def test_a_cvms_containers_share_one_network_and_see_their_own_files(tmp_path: Path) -> None:
    """All are in the anchor's network; folders of the CVM's /tmp and the agent's socket are the run's own."""
    services = merged(plan().cvms[1], tmp_path)
    for name in ("sidecar", "api"):
        assert services[name]["network_mode"] == f"service:{ANCHOR}"
        assert services[name]["depends_on"][ANCHOR]["condition"] == "service_healthy"
        volumes = {item["target"]: item for item in services[name]["volumes"]}
        assert volumes["/run/mesh"]["source"] == "/runs/run-1/cvms/api-0/tmp/dstack-runtime/mesh"
        assert volumes["/etc/hosts"]["source"] == f"/runs/run-1/cvms/api-0/etc/{name}/hosts"
        assert ("/var/run/dstack.sock" in volumes) == (name == "sidecar")
    assert services["api"]["depends_on"]["sidecar"]["condition"] == "service_healthy"
    assert {item["target"]: item.get("read_only", False) for item in services["api"]["volumes"]}["/run/mesh"] is True
    assert services["sidecar"]["image"] == "cvm-mesh/sidecar:local"
    assert services["sidecar"]["cap_drop"] == ["ALL"]
    assert services["sidecar"]["labels"]["cvm-mesh.run"] == "run-1"


def test_options_that_docker_refuses_in_a_shared_network_are_taken_away(tmp_path: Path) -> None:
    """A host name or DNS server of the compose file does not stop the local engine."""
    text = (
        plan()
        .cvms[1]
        .compose.text.replace("  api:\n    image", "  api:\n    hostname: x\n    dns: [1.1.1.1]\n    image")
    )
    path = tmp_path / "api.yaml"
    path.write_text(text, encoding="utf-8")
    from dataclasses import replace

    from topology.compose import load as load_compose

    service = merged(replace(plan().cvms[1], compose=load_compose(path)), tmp_path)["api"]
    assert "hostname" not in service
    assert "dns" not in service


def test_environment_files_carry_anything_or_refuse() -> None:
    """Dollars and double quotes go through as they are; what cannot is named."""
    assert docker_plan.env_text({"B": '{"a":"$x"}', "A": ""}) == "A=''\nB='{\"a\":\"$x\"}'\n"
    with pytest.raises(ValueError, match="NAME: a single quote"):
        docker_plan.env_text({"NAME": "it's"})


def test_the_platform_knows_the_same_cvms() -> None:
    """From the request and the seed alone the platform makes the identities that the manifest demands."""
    request = docker_plan.request(
        plan(), name="t", cluster="c", nat="random", tee_seed=SEED, manifest="p.s", entries={"api": (1, 8080)}
    )
    assert request["manifest"] == "p.s"
    made = cvms_of(json.loads(json.dumps(request)), DevTee(bytes.fromhex(request["tee_seed"])))
    for cvm in plan().cvms:
        assert made[cvm.machine.name].identity.instance_id == cvm.identity.instance_id
        assert made[cvm.machine.name].identity.measurements == cvm.identity.measurements
    api = plan().manifest.groups["api"].app_id
    assert request["entries"] == [{"group": "api", "app_id": api, "listen": 1, "port": 8080}]


def test_platform_is_valid_compose() -> None:
    """One service with the run's label, its folder and nothing of the checkout."""
    service = yaml.safe_load(docker_plan.platform_text(PLACE, "run-1-platform"))["services"]["platform"]
    assert service["labels"] == {"cvm-mesh.run": "run-1", "cvm-mesh.peer": "platform"}
    assert service["volumes"] == ["/runs/run-1:/mesh-lab"]
