"""Applications that do not serve: `./mesh status` says so, and why, while the mesh itself is ready."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from meshctl.applications import trouble
from tests.e2e.user import Mesh, run_mesh, wait_for
from tests.support import ROOT, need_root_or_userns, popen

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


ALL_ADDRESSES = (
    '["/bin/sh", "-c", "hostname | grep -q -e cvm0 && exit 3; exec python3 -m http.server --bind 0.0.0.0 9090"]'
)
"""The worker's program: keeps ending in the first CVM, binds every address in the others."""
ONE_FAMILY = '["python3", "-m", "http.server", "--bind", "::1", "8080"]'
"""The api's program: is on IPv6's loopback alone."""


def test_applications_that_do_not_serve_are_named_while_the_mesh_is_ready(tmp_path: Path) -> None:
    """One keeps ending, one binds every address, one listens on ::1 alone: `up` waits, and status says why."""
    need_root_or_userns()
    folder = Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "starter"))
    for group, program in (("worker", ALL_ADDRESSES), ("api", ONE_FAMILY)):
        path = folder / "compose" / f"{group}.yaml"
        text = path.read_text()
        wanted = f'command: ["/app/{group}"]'
        assert wanted in text
        path.write_text(text.replace(wanted, f"command: {program}"))
    name = f"apps-{os.getpid()}"
    argv = [str(ROOT / "mesh"), "up", str(folder), "--name", name, "--replicas", "api=1", "--replicas", "worker=2"]
    with (tmp_path / "up.log").open("wb") as log:
        up = popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
    own = Mesh(name=name, up_output="")
    document: dict[str, Any] = {}

    def told() -> bool:
        answer = own.run("status", "--json")
        if answer.returncode != 0:  # not there yet
            return False
        document.clear()
        document.update(json.loads(answer.stdout))
        lines = trouble(document)
        return all(any(words in line for line in lines) for words in ("exit code 3", "0.0.0.0:9090", "::1 only"))

    try:
        wait_for(told, "status names all three applications", 170)
        assert up.poll() is None, "a route without an endpoint keeps `up` waiting"
        assert all(peer["ready"] for peer in document["peers"])
        assert all(line.endswith(("bind 127.0.0.1", "bind 127.0.0.1)", "shows why")) for line in trouble(document))
        wait_for(lambda: "route api has no endpoint yet; " in (tmp_path / "up.log").read_text(), "`up` says it too")
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
        run_mesh("down", "--name", name)
