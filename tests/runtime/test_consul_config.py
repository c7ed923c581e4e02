"""Consul's configuration: what must hold in it, that Consul takes it, and that secrets stay in files."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.consul import write_config, write_private
from runtime.consul_config import TlsFiles, agent_config, api_socket, argv, node_id, server_config
from runtime.secret import Secret
from tests.support import tool

GOSSIP = Secret("pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=")
TOKEN = Secret("5b4a5e80-0000-4000-8000-123456789abc")
RECOVERY = Secret("5b4a5e80-0000-4000-8000-00000000000f")
SERVER_ID = "3f0e6f0e-0000-4000-8000-000000000000"
API = api_socket(Path("/p"))
TLS = TlsFiles(ca=Path("/p/ca.pem"), certificate=Path("/p/c.pem"), key=Path("/p/k.pem"))


def client() -> dict[str, Any]:
    """A workload's agent."""
    return agent_config(
        node_name="api-0",
        datacenter="tests",
        mesh_address="100.96.0.9",
        servers=("100.96.0.1", "100.96.0.2"),
        gossip_key=GOSSIP,
        token=TOKEN,
        data_dir=Path("/p/data"),
        tls=TLS,
        api=API,
    )


def server(**changes: Any) -> dict[str, Any]:
    """A coordinator's server."""
    settings: dict[str, Any] = {
        "node_name": "coordinator-0", "datacenter": "tests", "mesh_address": "100.96.0.1", "join": (),
        "server_id": SERVER_ID, "bootstrap_expect": 1, "gossip_key": GOSSIP, "management_token": TOKEN,
        "recovery_token": RECOVERY, "data_dir": Path("/p/data"), "tls": TLS, "api": API,
    }  # fmt: skip
    return server_config(**settings | changes)


@pytest.mark.parametrize("config", [client(), server()], ids=["client", "server"])
def test_nothing_listens_where_it_must_not(config: dict[str, Any]) -> None:
    """Serf and RPC on the mesh address, the API on a socket that only its owner opens, everything else off."""
    assert (config["bind_addr"], config["advertise_addr"]) == (config["advertise_addr"], config["bind_addr"])
    assert config["bind_addr"].startswith("100.96.")
    assert (config["addresses"], config["unix_sockets"]) == ({"http": "unix:///p/consul/api.sock"}, {"mode": "0600"})
    assert {name for name, port in config["ports"].items() if port > 0} == {"http", "server", "serf_lan"}


@pytest.mark.parametrize("config", [client(), server()], ids=["client", "server"])
def test_everything_is_closed_by_default(config: dict[str, Any]) -> None:
    """ACLs deny, tokens are not written down, gossip is encrypted, RPC is mutual TLS with the server's name checked."""
    acl, tls = config["acl"], config["tls"]["internal_rpc"]
    assert (acl["enabled"], acl["default_policy"], acl["down_policy"]) == (True, "deny", "extend-cache")
    assert acl["enable_token_persistence"] is False
    assert "default" not in acl["tokens"], "an application without a token would have it"
    assert config["encrypt"] == GOSSIP.reveal()
    assert config["encrypt_verify_incoming"]
    assert config["encrypt_verify_outgoing"]
    assert tls["verify_incoming"]
    assert tls["verify_outgoing"]
    assert tls["verify_server_hostname"]
    assert tls["tls_min_version"] == "TLSv1_3"
    assert not config["enable_local_script_checks"]


def test_a_client_leaves_and_a_server_does_not() -> None:
    """A client that stops is gone at once; a server that stops must not shrink the quorum."""
    assert client()["leave_on_terminate"] is True
    assert server()["leave_on_terminate"] is False
    assert client()["retry_join"] == ["100.96.0.1", "100.96.0.2"]


def test_a_client_keeps_its_node_id() -> None:
    """A CVM that lost its disk is the same node; another CVM, and another cluster, are other nodes."""
    assert client()["node_id"] == node_id("tests", "api-0")
    assert len({node_id("tests", "api-0"), node_id("tests", "api-1"), node_id("other", "api-0")}) == 3
    assert server()["node_id"] == SERVER_ID, "a server's is its disk's: one that lost its Raft state is a new server"


@pytest.mark.parametrize("config", [client(), server()], ids=["client", "server"])
def test_consul_gives_out_no_certificates(config: dict[str, Any]) -> None:
    """Connect is off, which is not its default: no agent has a key or a certificate to give away."""
    assert config["connect"] == {"enabled": False}


def test_argv_carries_no_secret() -> None:
    """The command line names the folder only."""
    assert argv("/bin/consul", Path("/p/config")) == ("/bin/consul", "agent", "-config-dir=/p/config")


def test_files_are_private_and_whole(tmp_path: Path) -> None:
    """Mode 0600 from the first byte, in a folder of mode 0700, replaced in one step."""
    path = tmp_path / "private" / "agent.json"
    write_config(path, client())
    write_config(path, client() | {"log_level": "info"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text())["log_level"] == "info"
    assert [entry.name for entry in path.parent.iterdir()] == ["agent.json"]
    write_private(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("make", [client, server], ids=["client", "server"])
def test_consul_takes_it(make: Any, tmp_path: Path) -> None:
    """Consul itself finds nothing wrong with the configuration."""
    folder = tmp_path / "config"
    config = make() | {"data_dir": str(tmp_path / "data")}
    # `validate` opens the files.
    config["tls"] = {"internal_rpc": {k: v for k, v in config["tls"]["internal_rpc"].items() if not k.endswith("file")}}
    config["tls"]["internal_rpc"] |= {
        "verify_incoming": False,
        "verify_outgoing": False,
        "verify_server_hostname": False,
    }
    write_config(folder / "c.json", config)
    done = subprocess.run([tool("consul"), "validate", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_server_on_a_disk_founds_nothing_by_itself_and_removes_nobody() -> None:
    """Its Raft ID is the disk's; only who is told to founds a cluster; servers that restart stay in the configuration;
    no key is written to the disk; a mesh that was off for longer than a week comes back.
    """
    config = server(bootstrap_expect=None, join=("100.96.0.2",))
    assert "bootstrap_expect" not in config
    assert "bootstrap" not in config
    assert server(bootstrap_expect=3)["bootstrap_expect"] == 3
    assert config["node_id"] == SERVER_ID
    assert config["retry_join"] == ["100.96.0.2"]
    assert config["autopilot"]["cleanup_dead_servers"] is False
    assert config["disable_keyring_file"] is True
    assert config["server_rejoin_age_max"] == "87600h"
    assert config["acl"]["tokens"]["agent_recovery"] == RECOVERY.reveal() != TOKEN.reveal()
