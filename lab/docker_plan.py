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
from lab.machine import MachinePlan
from lab.network import host_address
from lab.plan import CvmPlan, LabPlan, Site, Tools
from topology.compose import OWNER_KEY, Service, interpolate

ANCHOR = "mesh-cvm"
"""The service whose network namespace is the CVM's."""
LABEL = "cvm-mesh.run"
"""Label of everything that belongs to one run."""
PEER_LABEL = "cvm-mesh.peer"
PLATFORM = "platform"
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
)
"""How things are named inside the images, for the rendezvous that runs beside the platform."""


_PYTHONPATH = "/opt/mesh:/opt/mesh/lib"
"""As in the sidecar's image: our packages, then those of others."""


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
    images: Mapping[str, str]
    """Reference in a compose file → reference in the engine, where they differ."""

    def cvm(self, peer_id: str) -> Path:
        """The folder of one CVM."""
        return self.folder / "cvms" / peer_id


def overlay(cvm: CvmPlan, place: Place) -> dict[str, Any]:
    """The overlay of one CVM."""
    peer_id = cvm.machine.peer_id
    labels = {LABEL: place.run, PEER_LABEL: peer_id}
    raw = yaml.safe_load(cvm.compose.text)["services"]
    services: dict[str, Any] = {
        ANCHOR: {
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
            "labels": labels,
            "healthcheck": {
                "test": ["CMD", "test", "-e", "/run/attached"],
                "interval": "1s",
                "timeout": "5s",
                "retries": 60,
            },
        }
    }
    for service in cvm.compose.services:
        services[service.name] = _service(cvm, service, place, labels) | {
            key: Reset() for key in _UNKNOWN_IN_A_SHARED_NETWORK if key in (raw[service.name] or {})
        }
    return {"services": services}


def _service(cvm: CvmPlan, service: Service, place: Place, labels: Mapping[str, str]) -> dict[str, Any]:
    own = place.cvm(cvm.machine.peer_id)
    volumes = [f"{own / 'etc' / service.name / name}:/etc/{name}" for name in ("hosts", "resolv.conf")]
    for text in service.volumes:
        source, _, rest = interpolate(text, cvm.variables).partition(":")
        moved = _moved(source, own)
        if rest and moved != source:
            volumes.append(f"{moved}:{rest}")
    found: dict[str, Any] = {
        "network_mode": f"service:{ANCHOR}",
        "depends_on": {ANCHOR: {"condition": "service_healthy"}},
        "volumes": volumes,
        "labels": dict(labels),
    }
    if service.image in place.images:
        found["image"] = place.images[service.image]
    if service.is_sidecar:
        found["environment"] = {
            name: value.replace("$", "$$")
            for name, value in {OWNER_KEY: cvm.compose.sidecar.environment[OWNER_KEY], **cvm.insecure}.items()
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
    head = (
        f"# Laid over {cvm.compose.path} ({digest})\n"
        f"# for {cvm.machine.peer_id} on this machine. Made by ./mesh compose.\n"
    )
    return head + yaml.dump(overlay(cvm, place), Dumper=_Dumper, sort_keys=False, width=1_000_000)


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
    plan: LabPlan, *, name: str, cluster: str, nat: str, tee_seed: bytes, entries: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """What the platform is told (`lab.docker_host`). `entries`: group → (port on this machine, port in the CVM)."""
    return {
        "name": name,
        "cluster": cluster,
        "nat": nat,
        "tee_seed": tee_seed.hex(),
        "cvms": [
            {
                "peer_id": cvm.machine.peer_id,
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
        "rendezvous": _rendezvous(plan.rendezvous),
        "entries": [
            {"group": group, "app_id": plan.manifest.groups[group].app_id, "listen": listen, "port": port}
            for group, (listen, port) in entries.items()
        ],
    }


def _rendezvous(machine: MachinePlan) -> dict[str, Any]:
    return {
        "environment": {**machine.environment[plans.RENDEZVOUS], "PYTHONPATH": _PYTHONPATH},
        "program": list(machine.programs[plans.RENDEZVOUS]),
        "files": {name: secret.reveal() for name, secret in machine.private_files.items()},
    }
