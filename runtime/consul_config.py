"""Configuration of Consul agents and servers as pure functions, and the argv to run them with.

Secrets go into the configuration file, which `runtime.consul.write_config` makes 0600; argv and environment carry none.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from runtime.secret import Secret

WORKLOAD_PORT = 8500
"""Consul's usual port on loopback, where a workload that keeps its own registration finds what it may use of the API
(`sidecar.workload_api`). No agent listens there."""
SERF_PORT = 8301
SERVER_PORT = 8300
_NODE_NAMESPACE = uuid.UUID("6f0d7a2c-6f5d-5d0e-9d55-5b8f4f1f8a11")
"""Namespace of node IDs; any constant would do."""
_LIMITS = {
    # A service that turns critical and back is one HTTP client with many watches: the default of 200 is for strangers.
    "http_max_conns_per_client": 2000,
    # A transaction holds the greatest value that a key may have (512 KiB) in base64, and what goes with it.
    "txn_max_req_len": 1 << 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of an agent's RPC TLS."""

    ca: Path
    certificate: Path
    key: Path


def api_socket(state_dir: Path) -> Path:
    """Where the agent of the process with this private folder serves its HTTP API. Not on loopback: any program in the
    CVM could ask there, or hold so many connections that the agent refuses the process's own.
    """
    return state_dir / "consul" / "api.sock"


def node_id(datacenter: str, node_name: str) -> str:
    """A client's Consul node ID: stable, so that a CVM that came back on empty tmpfs is the same node, not a name
    clash.
    """
    return str(uuid.uuid5(_NODE_NAMESPACE, f"{datacenter}/{node_name}"))


def agent_config(
    *,
    node_name: str,
    datacenter: str,
    mesh_address: str,
    servers: tuple[str, ...],
    gossip_key: Secret,
    token: Secret,
    data_dir: Path,
    tls: TlsFiles,
    api: Path,
    recovery_token: Secret | None = None,
) -> dict[str, object]:
    """Configuration of a client agent that joins `servers` (mesh addresses). `api`: the socket of its HTTP API.

    `recovery_token` opens the agent's own API while no server can judge a token: to join servers that came back.
    """
    config = _common(node_name, datacenter, mesh_address, gossip_key, data_dir, tls, api)
    config |= {
        "server": False,
        "node_id": node_id(datacenter, node_name),
        "retry_join": list(servers),
        # A clean stop tells the others at once; a crash is found by gossip.
        "leave_on_terminate": True,
        # No default token: whoever calls the agent's API without one may do nothing.
        "acl": _acl(
            {"agent": token.reveal()} | ({"agent_recovery": recovery_token.reveal()} if recovery_token else {})
        ),
    }
    return config


def server_config(
    *,
    node_name: str,
    datacenter: str,
    mesh_address: str,
    server_id: str,
    join: tuple[str, ...],
    bootstrap_expect: int | None,
    gossip_key: Secret,
    management_token: Secret,
    recovery_token: Secret,
    data_dir: Path,
    tls: TlsFiles,
    api: Path,
    raft_multiplier: int = 1,
) -> dict[str, object]:
    """Configuration of a coordinator's server, whose `data_dir` outlives the CVM's boots.

    `server_id` is the Raft ID of that folder. `join` are mesh addresses of other coordinators, and of agents that the
    server knew. `bootstrap_expect` is None for a server that must not found a cluster. `recovery_token` opens the
    agent's own API while there is no leader to judge a token. `api`: the socket of that API.
    """
    config = _common(node_name, datacenter, mesh_address, gossip_key, data_dir, tls, api)
    config |= {
        "server": True,
        "node_id": server_id,
        "retry_join": list(join),
        # A server that left on every restart would shrink the quorum.
        "leave_on_terminate": False,
        # Consul's default refuses to start after 168 h, so a mesh that was off for a week would never come back.
        # Whether old records may be served is decided elsewhere (coordinator.forming).
        "server_rejoin_age_max": "87600h",
        # 1 is Consul's own value for production servers.
        "performance": {"raft_multiplier": raft_multiplier},
        "acl": _acl(
            {
                "initial_management": management_token.reveal(),
                "agent": management_token.reveal(),
                "agent_recovery": recovery_token.reveal(),
            }
        ),
        # A server that restarts is not dead: were it taken out of the configuration, the loss of another one during
        # that would cost the quorum. What is lost is taken out when its successor asks (coordinator.formation).
        "autopilot": {"cleanup_dead_servers": False, "last_contact_threshold": "1s", "server_stabilization_time": "1s"},
    }
    if bootstrap_expect is not None:
        config["bootstrap_expect"] = bootstrap_expect
    return config


def _common(
    node_name: str,
    datacenter: str,
    mesh_address: str,
    gossip_key: Secret,
    data_dir: Path,
    tls: TlsFiles,
    api: Path,
) -> dict[str, object]:
    return {
        "node_name": node_name,
        "datacenter": datacenter,
        "data_dir": str(data_dir),
        "bind_addr": mesh_address,
        "advertise_addr": mesh_address,
        "addresses": {"http": f"unix://{api}"},
        "unix_sockets": {"mode": "0600"},
        "ports": {
            # Any port that is not off: Consul drops the socket otherwise (agent/config/builder.go, makeAddrs).
            "http": WORKLOAD_PORT,
            "server": SERVER_PORT,
            "serf_lan": SERF_PORT,
            "https": -1,
            "dns": -1,
            "grpc": -1,
            "grpc_tls": -1,
            "serf_wan": -1,
        },
        **_encryption(tls, gossip_key),
        # Measured with a cut link: lost node seen critical after 1.0 to 2.9 s; the defaults take up to 6.6 s
        # Smaller values gave false alarms on a busy machine.
        "gossip_lan": {
            "probe_interval": "500ms",
            "probe_timeout": "300ms",
            "suspicion_mult": 3,
            "gossip_interval": "100ms",
        },
        # The default waits 30 s between attempts; coordinators come and go in seconds.
        "retry_interval": "1s",
        "rejoin_after_leave": True,
        # Consul's default is on. Certificates and callers are the mesh's own: an agent that gives out neither keys nor
        # certificates cannot be asked for one by whoever reaches its API.
        "connect": {"enabled": False},
        "peering": {"enabled": False},
        "ui_config": {"enabled": False},
        "enable_local_script_checks": False,
        "enable_script_checks": False,
        "disable_remote_exec": True,
        "disable_update_check": True,
        "disable_anonymous_signature": True,
        # Output of a check that changes nothing is not worth a raft write.
        "check_update_interval": "5m",
        "limits": _LIMITS,
        "telemetry": {"disable_hostname": True, "prometheus_retention_time": "0s"},
        "log_level": "warn",
        "enable_syslog": False,
        "auto_reload_config": False,
    }


def _encryption(tls: TlsFiles, gossip_key: Secret) -> dict[str, object]:
    return {
        "encrypt": gossip_key.reveal(),
        # Coordinators tell the key at each start. A file would outlive its rotation, and count more than what is told.
        "disable_keyring_file": True,
        "encrypt_verify_incoming": True,
        "encrypt_verify_outgoing": True,
        "tls": {
            "internal_rpc": {
                "ca_file": str(tls.ca),
                "cert_file": str(tls.certificate),
                "key_file": str(tls.key),
                "verify_incoming": True,
                "verify_outgoing": True,
                "verify_server_hostname": True,
                "tls_min_version": "TLSv1_3",
            }
        },
    }


def _acl(tokens: dict[str, str]) -> dict[str, object]:
    return {
        "enabled": True,
        "default_policy": "deny",
        # With all coordinators gone, an agent goes on with the rights it knows.
        "down_policy": "extend-cache",
        # The file that would keep tokens is not ours to protect.
        "enable_token_persistence": False,
        "tokens": tokens,
    }


def argv(consul: str | Path, config_dir: Path) -> tuple[str, ...]:
    """The command line of an agent or server whose configuration files (`*.json`) are in `config_dir`."""
    return (str(consul), "agent", f"-config-dir={config_dir}")
