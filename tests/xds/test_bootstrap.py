"""The bootstrap document and the command line."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

from tests.support import tool
from xds.bootstrap import argv, bootstrap


def test_envoy_accepts_the_bootstrap(tmp_path: Path) -> None:
    """Envoy's own validation passes without a warning."""
    config = tmp_path / "envoy.json"
    config.write_text(_document())
    command = [tool("envoy"), "--mode", "validate", "--config-path", str(config), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_everything_comes_by_ads_and_the_admin_interface_is_private() -> None:
    """No TCP port is opened, no sink is set, reconnecting is quick, and the first configuration is waited for."""
    document = json.loads(_document())
    assert document["admin"]["address"]["pipe"] == {"path": "/run/admin.sock", "mode": 0o600}
    assert "stats_sinks" not in document
    assert document["dynamic_resources"]["cds_config"]["initial_fetch_timeout"] == "0s"
    ads = document["dynamic_resources"]["ads_config"]
    assert ads["api_type"] == "DELTA_GRPC"
    back_off = ads["grpc_services"][0]["envoy_grpc"]["retry_policy"]["retry_back_off"]
    assert back_off == {"base_interval": "0.05s", "max_interval": "0.5s"}


def test_the_command_line_drains_at_once() -> None:
    """A replaced filter chain must close its connections now: drain time 0, immediate."""
    line = argv("/bin/envoy", "/run/envoy.json")
    assert line[0] == "/bin/envoy"
    pairs = dict(itertools.pairwise(line))
    assert pairs["--drain-time-s"] == "0"
    assert pairs["--drain-strategy"] == "immediate"
    assert pairs["--concurrency"] == "2"
    assert "--disable-hot-restart" in line


def _document() -> str:
    return bootstrap(node_id="api-0", cluster="demo", xds_socket="/run/xds.sock", admin_socket="/run/admin.sock")
