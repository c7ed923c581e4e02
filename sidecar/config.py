"""The sidecar's configuration: a pure function from the environment to `Config`, or every problem at once.

`VARIABLES` is the one list of names, defaults and meanings; `docs/configuration.md` is made from it. Not here: reading
`os.environ` (`__main__`), and what a value is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peer.spec import parse_path_mtu
from runtime import values
from runtime.env import EnvReader
from sidecar import hints
from sidecar.hints import RouteHint
from topology import given
from topology.owners import Owners


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One environment variable, for people."""

    name: str
    default: str
    """The value when unset; `required` when there is none; empty for "not set"."""
    meaning: str


VARIABLES = (
    Variable(name="MESH_CLUSTER", default="required", meaning="Name of the cluster; must be the manifest's."),
    Variable(name="MESH_GROUP", default="required", meaning="Workload group that this CVM is a replica of."),
    Variable(
        name="MESH_PEER_ID",
        default="",
        meaning="Slot to ask for, `<group>-<n>`: this one and no other, however long another CVM holds it. Unset: the "
        "slot that this boot holds, else the one that the coordinator proposes.",
    ),
    Variable(
        name="MESH_OWNERS",
        default="required",
        meaning="Whose signatures a manifest needs: `KEY`, or `2 of KEY, KEY, KEY`. A key is an Ed25519 public key, 32 "
        "bytes in base64url, or `p256:` and a compressed P-256 point, 33 bytes in base64url. A literal in the measured "
        "compose file, because dstack neither measures nor authenticates environment values.",
    ),
    Variable(
        name="MESH_INSECURE_UNSIGNED_MANIFEST",
        default="0",
        meaning="`1` takes a manifest without signature instead of MESH_OWNERS. Insecure; for local use.",
    ),
    Variable(
        name="MESH_COORDINATORS",
        default="required",
        meaning="JSON list of the coordinators' https URLs. Only where to knock: who answers is verified, by the "
        "manifest that it shows and that the owners signed.",
    ),
    Variable(
        name="MESH_ROUTES_JSON",
        default="",
        meaning="JSON list of `{name, vip, port, role, backend, service}`: names and VIPs for the time before the "
        "first manifest. From then on the manifest counts; where this differs from it, status says so.",
    ),
    Variable(
        name="MESH_PCCS_URL",
        default="https://pccs.phala.network",
        meaning="Service that gives Intel's collateral for quote verification (PCCS protocol, version 4).",
    ),
    Variable(
        name="MESH_INSECURE_DEV_ROOT",
        default="",
        meaning="Root certificate (DER, base64) of a simulated TEE. Insecure: quotes then prove nothing.",
    ),
    Variable(
        name="MESH_STATE_DIR",
        default="/run/mesh-private",
        meaning="Private folder (0700) on tmpfs: boot keys, sockets, Consul's data.",
    ),
    Variable(
        name="MESH_RUN_DIR",
        default="/run/mesh",
        meaning="Folder that app containers see read-only: names, `exec.sh`, `environment`, `ready`, `secrets/`.",
    ),
    Variable(
        name="MESH_SECRETS_GID",
        default="0",
        meaning="Numeric group that may read `secrets/` in MESH_RUN_DIR: that of the application that needs them. The "
        "sidecar has to be a member (`group_add` in the compose file), or it may not give files to it.",
    ),
    Variable(name="MESH_GUEST_AGENT", default="/var/run/dstack.sock", meaning="Unix socket of the dstack guest agent."),
    Variable(name="MESH_ENVOY", default="/usr/local/bin/envoy", meaning="The Envoy program."),
    Variable(name="MESH_CONSUL", default="/usr/local/bin/consul", meaning="The Consul program."),
    Variable(
        name="MESH_WIREGUARD_GO",
        default="/usr/local/bin/wireguard-go",
        meaning="WireGuard in user space, for kernels without it.",
    ),
    Variable(
        name="MESH_PATH_MTU",
        default="",
        meaning="Bytes, 1280 to 9000: the largest IP packet that the network carries between CVMs. Unset: measured, "
        "for each peer, up to 1500. Set it where probes are dropped, or for jumbo frames; nothing is measured then.",
    ),
    Variable(name="MESH_RESOLV_CONF", default="/etc/resolv.conf", meaning="Where the original resolvers are listed."),
    Variable(name="MESH_LOG_LEVEL", default="info", meaning="One of debug, info, warning, error."),
    Variable(
        name="MESH_DRAIN_SECONDS",
        default="5",
        meaning="How long a clean stop waits for open connections. It ends as soon as there are none.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that the environment says, checked."""

    cluster: str
    group: str
    peer_id: str | None
    coordinators: tuple[str, ...]
    """https URLs without path."""
    routes: tuple[RouteHint, ...] | None
    """For the time before there is a manifest; None: nothing was said."""
    owners: Owners | None
    """Of the measured compose file; None: unsigned manifests are taken."""
    pccs_url: str
    dev_root: bytes | None
    """DER."""
    state_dir: Path
    run_dir: Path
    secrets_gid: int
    guest_agent: Path
    envoy: Path
    consul: Path
    wireguard_go: Path
    path_mtu: int | None
    """Bytes; None: measured."""
    resolv_conf: Path
    log_level: str
    drain_seconds: float
    insecure: tuple[str, ...]
    """What an operator must keep being told; empty in production."""


NO_URLS: tuple[str, ...] = ()


def parse(environ: Mapping[str, str]) -> Config:
    """The configuration in `environ`; ConfigError with every problem."""
    reader = EnvReader(environ)
    cluster = reader.required("MESH_CLUSTER", values.text, "", "the cluster's name")
    group = reader.required("MESH_GROUP", values.text, "", "the name of a workload group")
    peer_id = reader.optional("MESH_PEER_ID", values.text, None)
    found = given.read(reader)
    urls = reader.required(
        "MESH_COORDINATORS", values.https_urls, NO_URLS, "a JSON list of the coordinators' https URLs"
    )
    routes = reader.optional("MESH_ROUTES_JSON", hints.parse, None)
    dev_root = reader.optional("MESH_INSECURE_DEV_ROOT", values.base64_bytes, None)
    pccs_url = reader.optional("MESH_PCCS_URL", values.http_url, _default("MESH_PCCS_URL"))
    state_dir, run_dir, guest_agent, envoy, consul, wireguard_go, resolv_conf = (
        reader.optional(name, values.path, Path(_default(name)))
        for name in (
            "MESH_STATE_DIR",
            "MESH_RUN_DIR",
            "MESH_GUEST_AGENT",
            "MESH_ENVOY",
            "MESH_CONSUL",
            "MESH_WIREGUARD_GO",
            "MESH_RESOLV_CONF",
        )
    )
    secrets_gid = reader.optional("MESH_SECRETS_GID", _gid, int(_default("MESH_SECRETS_GID")))
    path_mtu = reader.optional("MESH_PATH_MTU", parse_path_mtu, None)
    log_level = reader.optional("MESH_LOG_LEVEL", values.level, _default("MESH_LOG_LEVEL"))
    drain_seconds = reader.optional("MESH_DRAIN_SECONDS", _seconds, float(_default("MESH_DRAIN_SECONDS")))
    reader.finish()
    return Config(
        cluster=cluster,
        group=group,
        peer_id=peer_id,
        coordinators=urls,
        routes=routes,
        owners=found.owners,
        pccs_url=pccs_url,
        dev_root=dev_root,
        state_dir=state_dir,
        run_dir=run_dir,
        secrets_gid=secrets_gid,
        guest_agent=guest_agent,
        envoy=envoy,
        consul=consul,
        wireguard_go=wireguard_go,
        path_mtu=path_mtu,
        resolv_conf=resolv_conf,
        log_level=log_level,
        drain_seconds=drain_seconds,
        insecure=(
            *found.insecure,
            *(("quotes are of a simulated TEE (MESH_INSECURE_DEV_ROOT)",) if dev_root is not None else ()),
        ),
    )


def reference() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration of the sidecar",
        "",
        "Made by `python -m sidecar config-reference`, from `VARIABLES` in `sidecar/config.py`.",
        "",
        "The environment is read once. Every problem is reported at once, on standard error, and the process ends with",
        "exit code 2. A name that begins with `MESH_` and is not in this table is a problem too.",
        "",
        "| variable | when unset | meaning |",
        "|---|---|---|",
        *(f"| `{v.name}` | {_shown(v.default)} | {v.meaning} |" for v in VARIABLES),
    ]
    return "\n".join(lines) + "\n"


def _shown(default: str) -> str:
    if default == "required":
        return default
    return f"`{default}`" if default else "not set"


def _default(name: str) -> str:
    return next(variable.default for variable in VARIABLES if variable.name == name)


def _gid(text: str) -> int:
    # 2^32 - 1 means "leave it" to the kernel.
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) < (1 << 32) - 1):
        raise ValueError(f"is {text!r:.100}, expected a numeric group ID, such as 999")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise ValueError(f"is {text!r:.100}, expected seconds between 0 and 3600")
    return value
