"""The coordinator's configuration: a pure function from the environment to `Config`, or every problem at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from admission.protocol import ADMISSION_PORT
from peer.spec import parse_path_mtu
from runtime import values
from runtime.env import ConfigError, EnvReader, Problem
from topology import given
from topology.envelope import Signed
from topology.manifest import COORDINATORS, Manifest
from topology.owners import Owners

DEFAULT_PCCS = "https://pccs.phala.network"
STATE_DIR = "/run/mesh-private"
"""Default of MESH_STATE_DIR."""
NO_URLS: tuple[str, ...] = ()
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that the environment says, checked."""

    cluster: str
    peer_id: str | None
    """None: found by the instance ID in the manifest's URLs, or the only one."""
    signed: Signed | None
    """The manifest to begin with (`begun`); None in what the environment says."""
    owners: Owners | None
    """Of the measured compose file; None: unsigned manifests are taken."""
    pccs_url: str
    dev_root: bytes | None
    """DER."""
    state_dir: Path
    run_dir: Path
    data_dir: Path
    """What outlives the CVM's boots: the Consul server's records."""
    guest_agent: Path
    consul: Path
    wireguard_go: Path
    path_mtu: int | None
    """Bytes; None: measured, for each peer."""
    listen: tuple[str, int]
    log_level: str
    insecure: tuple[str, ...]
    """What an operator must keep being told; empty in production."""

    @property
    def manifest(self) -> Manifest:
        """The one to begin with, once there is one."""
        assert self.signed is not None
        return self.signed.manifest


def parse(environ: Mapping[str, str]) -> Config:
    """The configuration in `environ`; ConfigError with every problem."""
    reader = EnvReader(environ)
    cluster = reader.required("MESH_CLUSTER", values.text, "", "the cluster's name")
    # Set for every CVM of a deployment; here they can only be right or of no use.
    reader.optional("MESH_GROUP", _own_group, COORDINATORS)
    reader.optional("MESH_ENVOY", values.text, "")
    # Where coordinators are is the manifest's to say: they come and go while the environment stays.
    reader.optional("MESH_COORDINATORS", values.https_urls, NO_URLS)
    peer_id = reader.optional("MESH_PEER_ID", values.text, None)
    found = given.read(reader)
    pccs_url = reader.optional("MESH_PCCS_URL", values.http_url, DEFAULT_PCCS)
    dev_root = reader.optional("MESH_INSECURE_DEV_ROOT", values.base64_bytes, None)
    paths = {
        name: reader.optional(name, values.path, Path(default))
        for name, default in (
            ("MESH_STATE_DIR", STATE_DIR),
            ("MESH_RUN_DIR", "/run/mesh"),
            ("MESH_DATA_DIR", "/mesh-data"),
            ("MESH_GUEST_AGENT", "/var/run/dstack.sock"),
            ("MESH_CONSUL", "/usr/local/bin/consul"),
            ("MESH_WIREGUARD_GO", "/usr/local/bin/wireguard-go"),
        )
    }
    path_mtu = reader.optional("MESH_PATH_MTU", parse_path_mtu, None)
    listen = reader.optional("MESH_LISTEN", _listen, ("0.0.0.0", ADMISSION_PORT))
    log_level = reader.optional("MESH_LOG_LEVEL", values.level, "info")
    reader.finish()
    insecure = (
        *found.insecure,
        *(("quotes are of a simulated TEE (MESH_INSECURE_DEV_ROOT)",) if dev_root is not None else ()),
    )
    return Config(
        cluster=cluster,
        peer_id=peer_id,
        signed=None,
        owners=found.owners,
        pccs_url=pccs_url,
        dev_root=dev_root,
        state_dir=paths["MESH_STATE_DIR"],
        run_dir=paths["MESH_RUN_DIR"],
        data_dir=paths["MESH_DATA_DIR"],
        guest_agent=paths["MESH_GUEST_AGENT"],
        consul=paths["MESH_CONSUL"],
        wireguard_go=paths["MESH_WIREGUARD_GO"],
        path_mtu=path_mtu,
        listen=listen,
        log_level=log_level,
        insecure=insecure,
    )


def begun(config: Config, signed: Signed) -> Config:
    """`config` with the manifest that the coordinator begins with. ConfigError where the two contradict each other."""
    problems = _disagreements(signed.manifest, config.cluster, config.peer_id)
    if problems:
        raise ConfigError(problems)
    return replace(config, signed=signed)


def own_peer_id(config: Config, instance_id: str) -> str:
    """Which coordinator this is: as said, else the one whose URL names this instance, else the only one. ConfigError
    otherwise.
    """
    peers = config.manifest.coordinators.peers
    if config.peer_id is not None:
        return config.peer_id
    named = [
        peer.peer_id for peer in peers if instance_id and instance_id in (urlsplit(peer.url).hostname or "").lower()
    ]
    if len(named) == 1:
        return named[0]
    if len(peers) == 1:
        return peers[0].peer_id
    raise ConfigError(
        [
            Problem(
                "MESH_PEER_ID",
                f"is not set, and no coordinator's URL in the manifest names this instance ({instance_id}); expected "
                "one of " + ", ".join(peer.peer_id for peer in peers),
            )
        ]
    )


def _disagreements(manifest: Manifest, cluster: str, peer_id: str | None) -> list[Problem]:
    problems = []
    known = [peer.peer_id for peer in manifest.coordinators.peers]
    if cluster and cluster != manifest.cluster:
        problems.append(
            Problem("MESH_CLUSTER", f"is {cluster!r:.100}, but the manifest is of cluster {manifest.cluster!r}")
        )
    if peer_id is not None and peer_id not in known:
        problems.append(
            Problem("MESH_PEER_ID", f"is {peer_id!r:.100}, expected a coordinator of the manifest: {known}")
        )
    return problems


def _own_group(text: str) -> str:
    if text != COORDINATORS:
        raise ValueError(f"is {text!r:.100}, expected {COORDINATORS!r}; a workload runs `python -m sidecar`")
    return text


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"is {text!r:.100}, expected address:port such as 0.0.0.0:{ADMISSION_PORT}")
    return host.strip("[]"), int(port)
