"""A lab's plan for a Docker engine: per CVM what is laid over its compose file, and the files beside it. Pure.

The compose file is used as it is. The overlay changes only where a CVM's surroundings are: its own network namespace
(that of the service `mesh-cvm`) for the host's, folders of the run for the CVM's /tmp, the simulated guest agent for
the real one, and the settings of the simulated TEE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml

from lab import plan as plans
from lab.network import host_address
from lab.plan import CvmPlan, LabPlan, Site, Tools
from topology.compose import Service, interpolate
from topology.owners import OWNERS_VARIABLE

ANCHOR = "mesh-cvm"
"""The service whose network namespace is the CVM's."""
LABEL = "cvm-mesh.run"
"""Label of everything that belongs to one run."""
PEER_LABEL = "cvm-mesh.peer"
PLATFORM = "platform"
RELAY = "relay"
"""The service of clusters/relay/compose.yaml."""
RELAY_FOLDER = "/var/lib/mesh-relay"
"""Where that service has its key, in a volume of its own."""
INSIDE = "/mesh-lab"
"""Where the platform's container sees the run's folder."""
AGENT_SOCKETS = ("/var/run/dstack.sock", "/run/dstack.sock")
HOST_RESOLVER = host_address(0)
_UNKNOWN_IN_A_SHARED_NETWORK = (
    "hostname",
    "domainname",
    "dns",
    "dns_search",
    "dns_opt",
    "extra_hosts",
    "ports",
    "expose",
)
"""Options that Docker refuses beside another container's network."""

SITE = Site(
    python="/usr/local/bin/python",
    checkout=Path("/opt/mesh"),
    tools=Tools(
        envoy="/usr/local/bin/envoy",
        consul="/usr/local/bin/consul",
        wireguard_go="/usr/local/bin/wireguard-go",
        postgres="/usr/lib/postgresql/15/bin/postgres",
    ),
    keep=(),
    app_folder=Path("/app"),
    volumes=Path("/run/lab/volumes"),
    resolver=HOST_RESOLVER,
    rendezvous_address=host_address(1),
    # Folders, containers and commands of an engine's run are named once, before any CVM is admitted.
    pin_peers=True,
)
"""How things are named inside the images."""


class Reset:
    """Takes an entry of the compose file away (`!reset`)."""


def _reset(dumper: yaml.SafeDumper, _value: Reset) -> yaml.Node:
    return dumper.represent_scalar("!reset", "null")


class _Dumper(yaml.SafeDumper):
    """Block style, no aliases, and Compose's own tag."""

    yaml_representers: ClassVar[dict[Any, Any]] = {**yaml.SafeDumper.yaml_representers, Reset: _reset}

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        """Never writes an anchor."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is."""

    run: str
    """Value of its label."""
    folder: Path
    """On the machine, as the engine sees it too."""
    lab_image: str
    relay_image: str
    images: Mapping[str, str]
    """Reference in a compose file → reference in the engine, where they differ."""

    def cvm(self, peer_id: str) -> Path:
        """The folder of one CVM."""
        return self.folder / "cvms" / peer_id


def overlay(cvm: CvmPlan, place: Place) -> dict[str, Any]:
    """The overlay of one CVM."""
    peer_id = cvm.machine.name
    raw = yaml.safe_load(cvm.compose.text)["services"]
    services: dict[str, Any] = {ANCHOR: _anchor(peer_id, place)}
    for service in cvm.compose.services:
        services[service.name] = _service(cvm, service, place) | {
            key: Reset() for key in _UNKNOWN_IN_A_SHARED_NETWORK if key in (raw[service.name] or {})
        }
    return {"services": services}


def relay_overlay(plan: LabPlan, place: Place) -> dict[str, Any]:
    """What is laid over clusters/relay/compose.yaml: a public host of the lab, the key that the manifest names."""
    own = place.cvm(plans.RENDEZVOUS)
    given = plan.rendezvous.environment[plans.RENDEZVOUS]
    insecure = {name: text for name, text in given.items() if name in plan.cvms[0].insecure}
    service = _surroundings(plans.RENDEZVOUS, RELAY, place) | {
        "image": place.relay_image,
        "environment": {name: value.replace("$", "$$") for name, value in insecure.items()},
    }
    service["volumes"] = [*service["volumes"], f"{own / RELAY}:{RELAY_FOLDER}"]
    return {"services": {ANCHOR: _anchor(plans.RENDEZVOUS, place), RELAY: service}}


def relay_variables(plan: LabPlan) -> dict[str, str]:
    """What the relay's `.env` holds, for this plan."""
    given = plan.rendezvous.environment[plans.RENDEZVOUS]
    names = (
        "MESH_COORDINATORS",
        OWNERS_VARIABLE,
        *(f"MESH_RENDEZVOUS_{name}" for name in ("PUBLIC", "PORT", "ADDRESS")),
    )
    return {name: given[name] for name in names}


def _anchor(peer_id: str, place: Place) -> dict[str, Any]:
    """The container whose network namespace is that of CVM (or host) `peer_id`."""
    return {
        "image": place.lab_image,
        "command": ["lab.anchor", f"{INSIDE}/attach.sock", peer_id],
        "network_mode": "none",
        "hostname": peer_id,
        # As in a CVM, where the host's namespace is used: Docker would let everyone bind every port.
        "sysctls": {"net.ipv4.ip_unprivileged_port_start": "1024"},
        "read_only": True,
        "cap_drop": ["ALL"],
        "tmpfs": ["/run"],
        "volumes": [f"{place.folder / 'attach'}:{INSIDE}"],
        "stop_grace_period": "5s",
        "labels": {LABEL: place.run, PEER_LABEL: peer_id},
        "healthcheck": {
            "test": ["CMD", "test", "-e", "/run/attached"],
            "interval": "1s",
            "timeout": "5s",
            "retries": 60,
        },
    }


def _surroundings(peer_id: str, service: str, place: Place) -> dict[str, Any]:
    """What every container of a CVM (or host) has: its network, its own files in /etc, the labels."""
    own = place.cvm(peer_id)
    return {
        "network_mode": f"service:{ANCHOR}",
        "depends_on": {ANCHOR: {"condition": "service_healthy"}},
        "volumes": [f"{own / 'etc' / service / name}:/etc/{name}" for name in ("hosts", "resolv.conf")],
        "labels": {LABEL: place.run, PEER_LABEL: peer_id},
    }


def _service(cvm: CvmPlan, service: Service, place: Place) -> dict[str, Any]:
    own = place.cvm(cvm.machine.name)
    found = _surroundings(cvm.machine.name, service.name, place)
    for text in service.volumes:
        source, _, rest = interpolate(text, cvm.variables).partition(":")
        moved = _moved(source, own)
        if rest and moved != source:
            found["volumes"].append(f"{moved}:{rest}")
    if service.image in place.images:
        found["image"] = place.images[service.image]
    if service.is_sidecar:
        found["environment"] = {
            name: value.replace("$", "$$")
            for name, value in {
                OWNERS_VARIABLE: cvm.compose.sidecar.environment[OWNERS_VARIABLE],
                **cvm.insecure,
            }.items()
        }
    return found


def _moved(source: str, own: Path) -> str:
    """Where a host folder of the compose file is on this machine."""
    if source in AGENT_SOCKETS:
        return str(own / "socket" / "dstack.sock")
    path = PurePosixPath(source)
    # A CVM's /tmp is its own, in memory, and gone with the boot.
    return str(own / "tmp" / path.relative_to("/tmp")) if path.is_relative_to("/tmp") else source


def overlay_text(cvm: CvmPlan, place: Place, digest: str) -> str:
    """The overlay as it is written and printed; `digest` says which compose file it was made for."""
    return _written(overlay(cvm, place), cvm.compose.path, digest, cvm.machine.name)


def relay_text(plan: LabPlan, place: Place, path: Path, digest: str) -> str:
    """The relay's overlay as it is written; `path` and `digest` are of its compose file."""
    return _written(relay_overlay(plan, place), path, digest, plans.RENDEZVOUS)


def _written(tree: dict[str, Any], path: Path, digest: str, peer_id: str) -> str:
    head = f"# Laid over {path} ({digest})\n# for {peer_id} on this machine. Made by ./mesh compose.\n"
    return head + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=1_000_000)


def env_text(variables: Mapping[str, str]) -> str:
    """The environment file of one CVM, for `${…}` in its compose file. ValueError for what the format cannot carry."""
    bad = [name for name, value in variables.items() if "'" in value or "\n" in value]
    if bad:
        raise ValueError(f"{', '.join(bad)}: a single quote or a line break, which an environment file cannot carry")
    # In single quotes nothing is special to Compose.
    return "".join(f"{name}='{value}'\n" for name, value in sorted(variables.items()))


def etc_files(peer_id: str) -> dict[str, str]:
    """Content of the files in /etc that Docker would share between the containers of one network namespace."""
    return {
        "hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {peer_id}\n",
        "resolv.conf": f"nameserver {HOST_RESOLVER}\n",
    }


def platform_compose(place: Place, name: str) -> dict[str, Any]:
    """The compose file of what stands around the CVMs."""
    return {
        "services": {
            PLATFORM: {
                "image": place.lab_image,
                "command": ["lab.docker_host", f"{INSIDE}/request.json"],
                "container_name": name,
                # It moves interfaces into the namespaces of containers, so it has to see their processes.
                "pid": "host",
                "cap_add": ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"],
                "security_opt": ["apparmor:unconfined", "seccomp:unconfined", "systempaths=unconfined"],
                "devices": ["/dev/net/tun"],
                # The public entries are ports of the machine's own loopback.
                "network_mode": "host",
                "restart": "unless-stopped",
                "tmpfs": ["/run"],
                "volumes": [f"{place.folder}:{INSIDE}"],
                "stop_grace_period": "5s",
                "labels": {LABEL: place.run, PEER_LABEL: PLATFORM},
            }
        }
    }


def platform_text(place: Place, name: str) -> str:
    """`platform_compose` as text."""
    return yaml.dump(platform_compose(place, name), Dumper=_Dumper, sort_keys=False)


def request(
    plan: LabPlan,
    *,
    name: str,
    cluster: str,
    nat: str,
    tee_seed: bytes,
    manifest: str,
    entries: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """What the platform is told (`lab.docker_host`). `manifest` is the signed envelope, `entries`: group → (port on
    this machine, port in the CVM).
    """
    return {
        "manifest": manifest,
        "name": name,
        "cluster": cluster,
        "nat": nat,
        "tee_seed": tee_seed.hex(),
        "cvms": [
            {
                "peer_id": cvm.machine.name,
                "group": cvm.machine.group,
                "kind": cvm.machine.kind,
                "app_compose": cvm.identity.app_compose,
                "app_id": cvm.identity.app_id,
                "instance_seed": cvm.instance_seed.hex(),
                "os_version": cvm.identity.os_version,
                "services": [service.name for service in cvm.compose.services],
            }
            for cvm in plan.cvms
        ],
        "relay_key": next(iter(plan.rendezvous.private_files.values())).reveal(),
        "entries": [
            {"group": group, "app_id": plan.manifest.groups[group].app_id, "listen": listen, "port": port}
            for group, (listen, port) in entries.items()
        ],
    }
