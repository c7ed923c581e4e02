"""Applications that do not serve: `./mesh status` says so, and why, while the mesh itself is ready."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from meshctl.applications import trouble
from tests.e2e.user import Mesh, run_mesh, wait_for
from tests.support import ROOT, need_root_or_userns

pytestmark = pytest.mark.timeout(400)


def of_group(document: dict[str, Any], group: str) -> dict[str, Any]:
    """The first peer of `group`."""
    return next(peer for peer in document["peers"] if peer["group"] == group)


def test_who_listens_is_shown(mesh: Mesh) -> None:
    """Of a sound mesh: each application runs, and its own process has its port; nothing is wrong."""
    document = mesh.status()
    for group, port in (("api", 8080), ("worker", 9090)):
        peer = of_group(document, group)
        assert [(item["container"], item["state"]) for item in peer["applications"]] == [(group, "running")]
        assert [(item["name"], item["port"], item["container"]) for item in peer["backends"]] == [(group, port, group)]
        held = [item for item in peer["backends"][0]["listeners"] if item["address"] == "127.0.0.1"]
        assert [(item["container"], item["process"]) for item in held] == [(group, f"workloads.{group}")]
    assert trouble(document) == []
    assert "port 9090 on 127.0.0.1 (workloads.worker)" in mesh.run("status").stdout


def test_applications_that_do_not_serve_are_named_while_the_mesh_is_ready(tmp_path: Path) -> None:
    """One that cannot bind keeps ending, one listens on ::1 alone: `up` waits for their routes, status says why."""
    need_root_or_userns()
    folder = Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "starter"))
    for group, address, port in (("worker", "0.0.0.0", 9090), ("api", "::1", 8080)):
        path = folder / "compose" / f"{group}.yaml"
        text = path.read_text()
        wanted = f'command: ["/app/{group}"]'
        assert wanted in text
        path.write_text(
            text.replace(wanted, f'command: ["python3", "-m", "http.server", "--bind", "{address}", "{port}"]')
        )
    name = f"apps-{os.getpid()}"
    argv = [str(ROOT / "mesh"), "up", str(folder), "--name", name, "--replicas", "api=1", "--replicas", "worker=1"]
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
    own = Mesh(name=name, up_output="")
    document: dict[str, Any] = {}

    def told() -> bool:
        if own.run("status", "--json").returncode != 0:  # not there yet
            return False
        document.update(own.status())
        lines = trouble(document)
        return any("exit code 1" in line for line in lines) and any("::1 only" in line for line in lines)

    try:
        wait_for(told, "status names both applications", 150)
        assert up.poll() is None, "a route without an endpoint keeps `up` waiting"
        worker, api = of_group(document, "worker"), of_group(document, "api")
        assert (worker["ready"], api["ready"]) == (True, True)
        assert worker["applications"][0]["exit_code"] == 1
        assert "binds 0.0.0.0:9090 cannot" in worker["backends"][0]["problem"]
        assert api["applications"][0]["state"] == "running"
        wait_for(lambda: "api has no endpoint yet; api-" in (tmp_path / "up.log").read_text(), "`up` says it too")
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
        run_mesh("down", "--name", name)
