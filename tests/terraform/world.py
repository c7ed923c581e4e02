"""A real Terraform, one process for many clusters: each cluster folder becomes a module of one generated root."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

OLDEST = (1, 5)
MESH = ROOT / "terraform" / "mesh"
_CASE = """
output "case" {
  value = {
    cluster_name        = var.cluster_name
    coordinator_compose = "${path.module}/compose/coordinator.yaml"
    workload_groups     = local.workload_groups
    %s
  }
}
"""
_DIGESTS = "require_digests = var.attestation.require_digests"
_ROOT = """
module "mesh" {
  source              = "%s"
  for_each            = { %s }
  cluster_name        = %s
  coordinator_compose = each.value.coordinator_compose
  workload_groups     = each.value.workload_groups
  %s
}

output "mesh" {
  value = module.mesh
}
"""


@functools.cache
def terraform() -> str:
    """The path of a Terraform that is new enough; skips without one."""
    found = shutil.which("terraform")
    if found is None:
        pytest.skip(
            "terraform is not on PATH: install Terraform 1.5 or newer to run what Terraform does with the modules"
        )
    answer = subprocess.run([found, "version", "-json"], capture_output=True, text=True, env=environment(), check=True)
    version = str(json.loads(answer.stdout)["terraform_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        pytest.skip(f"this Terraform is {version}: install Terraform 1.5 or newer")
    return found


def environment() -> dict[str, str]:
    """What Terraform is started with: nobody's own settings, no call home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return kept | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull}


def run(folder: Path, *arguments: str, ok: bool = True, **more: str) -> str:
    """What `terraform ARGUMENTS` in `folder` prints; fails the test when it fails, unless `ok` is False."""
    argv = [terraform(), *arguments]
    result = subprocess.run(argv, cwd=folder, capture_output=True, text=True, env=environment() | more, timeout=240)
    if ok:
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout if ok else result.stdout + result.stderr


def root(folder: Path, names: Iterable[str], *, more: str = "", named: bool = False, digests: bool = False) -> None:
    """Makes `folder` a root that gives each of its cluster folders `names` to the module `mesh`, and initialises it.

    The module is loaded once, for all of them: loading it is what takes the time. `more` are further arguments; with
    `named` each cluster is called as its folder is; with `digests` its policy on digests is handed on, as main.tf does.
    """
    calls = ""
    for name in names:
        (folder / name / "case.tf").write_text(_CASE % (_DIGESTS if digests else ""))
        calls += f'module "{name}" {{\n  source = "./{name}"\n}}\n'
    each = ", ".join(f"{name} = module.{name}.case" for name in names)
    called = "each.key" if named else "each.value.cluster_name"
    (folder / "main.tf").write_text(calls + _ROOT % (MESH, each, called, more))
    run(folder, "init", "-no-color", "-input=false")


def planned(folder: Path) -> dict[str, Any]:
    """Per cluster of the root in `folder`: every output of the module `mesh`, as planned."""
    run(folder, "plan", "-no-color", "-input=false", "-out=plan.bin")
    plan = json.loads(run(folder, "show", "-json", "plan.bin"))
    return dict(plan["planned_values"]["outputs"]["mesh"]["value"])


def refusals(folder: Path) -> dict[str, list[str]]:
    """Per cluster name in the root in `folder`: the lines that its plan is refused with."""
    found: dict[str, list[str]] = {}
    for line in run(folder, "plan", "-json", "-input=false", ok=False).splitlines():
        message: Mapping[str, Any] = json.loads(line)
        diagnostic = message.get("diagnostic", {})
        if diagnostic.get("severity") != "error":
            continue
        first, *lines = diagnostic["detail"].splitlines()
        at = re.match(r"Cluster ([\w-]+): ", first)
        assert at is not None, f"an error of Terraform's own: {json.dumps(diagnostic)[:2000]}"
        found.setdefault(at[1], []).extend(lines)
    return found
