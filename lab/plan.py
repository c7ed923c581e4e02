"""What a lab runs: from a cluster and a development TEE to the plan of each machine. No processes or sockets here."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.machine import MachinePlan
from lab.names import machine_name
from lab.tee import CvmIdentity, DevTee, make_cvm
from peer.wireguard import generate_key
from runtime.secret import Secret
from topology import compose as composes
from topology import manifest as manifests
from topology import render
from topology.addresses import rendezvous_address
from topology.compose import ComposeFile, Service, interpolate
from topology.model import Cluster, Group
from topology.owners import OWNERS_VARIABLE, Owners, key_of, text_of
from topology.references import MEASURED, Reference, TcbPolicy

DOMAIN = "lab.test"
GATEWAY_BASE = f"gateway.{DOMAIN}"
PCCS_NAME = f"pccs.{DOMAIN}"
PCCS_PORT = 8081
RENDEZVOUS = "rendezvous"
RENDEZVOUS_PORT = 51820
_KEY_FILE = "key"
OS_VERSIONS = ("0.6.0", "0.5.7")
"""Replicas take these in turn, so that a mesh of two replicas always has both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Absolute paths of the tools that containers run."""

    envoy: str
    consul: str
    wireguard_go: str | None
    postgres: str
    """The program `postgres`; its siblings are beside it."""

    def environment(self) -> dict[str, str]:
        """The variables by which an image names its tools."""
        named = {"MESH_ENVOY": self.envoy, "MESH_CONSUL": self.consul, "MESH_WIREGUARD_GO": self.wireguard_go or ""}
        return {name: path for name, path in named.items() if path}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where this lab stands on the machine and on its own internet."""

    python: str
    checkout: Path
    tools: Tools
    keep: tuple[str, ...]
    app_folder: Path
    volumes: Path
    """Where the CVMs' disks are, a folder each."""
    resolver: str
    rendezvous_address: str
    pin_peers: bool = False
    """Every CVM is told its peer ID. Else none is, as `terraform/phala` does it: all CVMs of an app get one
    environment, workloads get whichever slot of their group is free, and coordinators find theirs by their instance's
    URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CvmPlan:
    """One CVM: what it measures and what it runs."""

    identity: CvmIdentity
    machine: MachinePlan
    compose: ComposeFile
    """With the owner key in it: what the identity measures."""
    variables: Mapping[str, str]
    """What dstack's environment file would have, for `${…}` in the compose file."""
    insecure: Mapping[str, str]
    """Settings of the simulated TEE, which no compose file carries."""
    instance_seed: bytes
    """From which `lab.tee.make_cvm` makes the identity again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPlan:
    """Everything that a lab runs."""

    cluster: Cluster
    manifest: manifests.Manifest
    cvms: tuple[CvmPlan, ...]
    rendezvous: MachinePlan

    def hosts_of(self, identity: str) -> tuple[str, ...]:
        """Names of the machines that an app or instance ID means."""
        return tuple(
            cvm.machine.name for cvm in self.cvms if identity in (cvm.identity.app_id, cvm.identity.instance_id)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _App:
    """One dstack app while the plan is made."""

    name: str
    compose: ComposeFile
    measured: str
    identities: tuple[CvmIdentity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What every sidecar of the lab is told."""

    owners: Owners
    urls: tuple[str, ...]
    insecure: dict[str, str]


def make_plan(cluster: Cluster, tee: DevTee, owner: Ed25519PrivateKey, site: Site) -> LabPlan:
    """The plan of `cluster`, whose manifest `owner` is to sign."""
    owners = Owners(keys=(key_of(owner),))
    coordinator = _app(tee, cluster, None, owners)
    apps = {group.name: _app(tee, cluster, group, owners) for group in cluster.groups}
    urls = tuple(f"https://{identity.instance_id}-8787s.{GATEWAY_BASE}" for identity in coordinator.identities)
    private, public = generate_key()
    manifest = _manifest(cluster, tee, coordinator, apps, urls, site, public, owners)
    settings = _Settings(
        owners=owners,
        urls=urls,
        insecure={
            "MESH_INSECURE_DEV_ROOT": base64.b64encode(tee.root_der).decode(),
            "MESH_PCCS_URL": f"http://{PCCS_NAME}:{PCCS_PORT}",
        },
    )
    coordinators = tuple(_cvm(site, cluster, None, coordinator, i, settings) for i in range(cluster.coordinators))
    workloads = tuple(
        _cvm(site, cluster, group, apps[group.name], i, settings)
        for group in cluster.groups
        for i in range(group.replicas)
    )
    return LabPlan(
        cluster=cluster,
        manifest=manifest,
        cvms=coordinators + workloads,
        rendezvous=_rendezvous(site, manifest, settings, private),
    )


def _manifest(
    cluster: Cluster,
    tee: DevTee,
    coordinator: _App,
    apps: Mapping[str, _App],
    urls: tuple[str, ...],
    site: Site,
    rendezvous_key: str,
    owners: Owners,
) -> manifests.Manifest:
    rendezvous = manifests.Rendezvous(
        public_key=rendezvous_key,
        endpoint=f"{site.rendezvous_address}:{RENDEZVOUS_PORT}",
        address=rendezvous_address(0),
    )
    return render.manifest(
        cluster,
        render.Deployment(
            references=(
                Reference(
                    name=MEASURED,
                    key_provider=tee.key_provider,
                    os_images=tuple(tee.os_image(version) for version in OS_VERSIONS),
                    tcb=TcbPolicy(),
                ),
            ),
            coordinator=_facts(coordinator),
            groups={name: _facts(app) for name, app in apps.items()},
            coordinator_urls=urls,
            rendezvous=(rendezvous,),
            owners=owners,
            epoch=1,
        ),
    )


def _app(tee: DevTee, cluster: Cluster, group: Group | None, owners: Owners) -> _App:
    """The app of `group`; of the coordinators when None."""
    name = group.name if group else "coordinator"
    path = group.compose if group else cluster.coordinator_compose
    compose = render.keyed(composes.load(path), owners)
    measured = render.app_compose(f"{cluster.name}-{name}", compose, render.environment_names(group), owners=owners)
    app_id = render.compose_hash(measured)[:40]
    identities = tuple(
        make_cvm(
            tee,
            app_compose=measured,
            app_id=app_id,
            instance_seed=instance_seed(cluster.name, name, i),
            os_version=OS_VERSIONS[i % len(OS_VERSIONS)],
        )
        for i in range(group.replicas if group else cluster.coordinators)
    )
    return _App(name=name, compose=compose, measured=measured, identities=identities)


def instance_seed(cluster: str, app: str, ordinal: int) -> bytes:
    """What makes replica `ordinal` of an app the same instance each time that it boots."""
    return hashlib.sha256(f"{cluster}/{app}/{ordinal}".encode()).digest()


def _facts(app: _App) -> render.AppFacts:
    return render.AppFacts(
        app_id=app.identities[0].app_id,
        compose_hashes=(render.compose_hash(app.measured),),
        gateways=(GATEWAY_BASE,),
    )


def _cvm(site: Site, cluster: Cluster, group: Group | None, app: _App, ordinal: int, settings: _Settings) -> CvmPlan:
    """Replica `ordinal` of `group`; a coordinator when None."""
    slot = f"{app.name}-{ordinal}"
    # A coordinator has the slot of its URL.
    fixed = site.pin_peers or group is None
    name = slot if fixed else machine_name(app.name, ordinal)
    tell = (
        partial(render.sidecar_environment, cluster, group)
        if group
        else partial(render.coordinator_environment, cluster)
    )
    variables = settings.insecure | tell(
        slot if site.pin_peers else None,
        owners=settings.owners,
        coordinator_urls=settings.urls,
    )
    services = app.compose.services
    machine = MachinePlan(
        name=name,
        peer_id=slot if fixed else None,
        group=app.name,
        kind="workload" if group else "coordinator",
        services=services,
        environment={s.name: _environment(site, s, variables) for s in services},
        programs={s.name: _program(site, s) for s in services},
        keep=site.keep,
        app_folder=site.app_folder,
        volumes=site.volumes / name,
        resolver=site.resolver,
    )
    return CvmPlan(
        identity=app.identities[ordinal],
        machine=machine,
        compose=app.compose,
        variables={name: value for name, value in variables.items() if name not in settings.insecure},
        insecure=settings.insecure,
        instance_seed=instance_seed(cluster.name, app.name, ordinal),
    )


def _environment(site: Site, service: Service, variables: Mapping[str, str]) -> dict[str, str]:
    own = {name: interpolate(value, variables) for name, value in service.environment.items()}
    if service.is_sidecar:
        # The simulated TEE's settings are the lab's, not the compose file's: production carries none by accident.
        own |= {
            name: value
            for name, value in variables.items()
            if name.startswith("MESH_INSECURE_") or name == "MESH_PCCS_URL"
        }
        own |= site.tools.environment()
    return _base_environment(site) | {name: value for name, value in own.items() if value != ""}


def _base_environment(site: Site) -> dict[str, str]:
    own = f"{Path(site.python).parent}:{Path(site.tools.postgres).parent}"
    return {
        "PATH": f"{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(site.checkout),
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
    }


def _program(site: Site, service: Service) -> tuple[str, ...]:
    if not service.is_sidecar:
        return (*service.entrypoint, *service.command)
    # The sidecar image's entry point: `python -m` with the compose file's command as the module.
    return (site.python, "-m", *(service.command or ("sidecar",)))


def _rendezvous(site: Site, manifest: manifests.Manifest, settings: _Settings, key: Secret) -> MachinePlan:
    own = settings.insecure | {
        OWNERS_VARIABLE: text_of(settings.owners),
        "MESH_COORDINATORS": json.dumps(settings.urls),
        "MESH_RENDEZVOUS_ADDRESS": manifest.rendezvous[0].address,
        "MESH_RENDEZVOUS_PUBLIC": site.rendezvous_address,
        "MESH_RENDEZVOUS_PORT": str(RENDEZVOUS_PORT),
        "MESH_RENDEZVOUS_KEY_FILE": f"/run/mesh-private/{_KEY_FILE}",
    }
    if site.tools.wireguard_go:
        own["MESH_WIREGUARD_GO"] = site.tools.wireguard_go
    service = Service(name=RENDEZVOUS, image="", restart="unless-stopped", is_sidecar=True)
    return MachinePlan(
        name=RENDEZVOUS,
        peer_id=RENDEZVOUS,
        group=RENDEZVOUS,
        kind="host",
        services=(service,),
        environment={RENDEZVOUS: _base_environment(site) | own},
        programs={RENDEZVOUS: (site.python, "-m", "peer.rendezvous")},
        private_files={_KEY_FILE: key},
        keep=site.keep,
        app_folder=site.app_folder,
        volumes=site.volumes / RENDEZVOUS,
        resolver=site.resolver,
    )
