"""A deployment for tests: a copy of the starter, a stand-in cloud, and what its simulated CVMs measure."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from lab.deployment import tcb_info
from lab.tee import DevTee, make_cvm
from meshctl.cli import cli
from tests.support import ROOT
from tests.terraform import world
from tests.terraform.provider import Cloud

TEE = DevTee(b"terraform tests")
PRE_LAUNCH = "#!/bin/bash\n# The platform's own.\necho pulling images\n"
PRE_LAUNCH_HASH = hashlib.sha256(PRE_LAUNCH.encode()).hexdigest()


def app_compose(app: Mapping[str, Any], **changes: object) -> str:
    """The app-compose.json that the cloud would make of an app: ours, and what it adds."""
    tree = {
        "manifest_version": 2, "name": app["name"], "runner": "docker-compose",
        "docker_compose_file": app["docker_compose"], "allowed_envs": sorted(app["env"]),
        "kms_enabled": True, "gateway_enabled": app["gateway_enabled"], "local_key_provider_enabled": False,
        "public_logs": app["public_logs"], "public_sysinfo": app["public_sysinfo"],
        "public_tcbinfo": app["public_tcbinfo"], "no_instance_id": False, "secure_time": app["secure_time"],
        "storage_fs": app["storage_fs"], "pre_launch_script": PRE_LAUNCH, "features": ["kms", "tproxy-net"],
    }  # fmt: skip
    return json.dumps({**tree, **changes})


def attest(app: Mapping[str, Any], **changes: object) -> str:
    """The platform's `TcbInfo` of the first CVM of an app."""
    app_id = str(app["app_id"]).removeprefix("app_")
    cvm = make_cvm(
        TEE, app_compose=app_compose(app, **changes), app_id=app_id, instance_seed=app_id.encode(), os_version="0.6.0"
    )
    return tcb_info(cvm)


@dataclass
class Sandbox:
    """A copy of a cluster with the modules beside it, and the cloud that it is deployed to."""

    top: Path
    name: str = "starter"
    cloud: Cloud = field(default_factory=lambda: Cloud(attest=attest))
    variables: dict[str, str] = field(default_factory=dict)
    """With which Terraform finds the cloud."""
    first: dict[str, Any] = field(default_factory=dict)
    """The output `deployment` of the first apply, after which no CVM has booted yet."""

    @property
    def folder(self) -> Path:
        """The cluster's folder."""
        return self.top / "clusters" / self.name

    @property
    def key(self) -> Path:
        """Where the owner's private key is."""
        return self.top / "owner.pem"

    def prepare(self, *, tfvars: str = "") -> None:
        """Copies the clusters and gives this one an owner key."""
        for name in ("terraform", "clusters"):
            shutil.copytree(
                ROOT / name, self.top / name, ignore=shutil.ignore_patterns(".terraform*", "*.tfvars", "*.tfstate*")
            )
        wanted = f"attestation = {{ require_digests = false }}\n{tfvars}"
        (self.folder / "terraform.tfvars").write_text(wanted)
        assert self.mesh("keygen", str(self.folder), "--key", str(self.key)).exit_code == 0

    def terraform(self, *arguments: str, ok: bool = True) -> str:
        """Runs Terraform in the cluster's folder."""
        return world.run(self.folder, *arguments, ok=ok, **self.variables)

    def apply(self) -> str:
        """`terraform apply`, as the documentation says it."""
        return self.terraform("apply", "-no-color", "-input=false", "-auto-approve", "-parallelism=1")

    def plan(self) -> dict[str, Any]:
        """The plan of the moment, as JSON."""
        self.terraform("plan", "-no-color", "-input=false", "-out=plan.bin")
        return dict(json.loads(self.terraform("show", "-json", "plan.bin")))

    def outputs(self) -> Path:
        """A file with the outputs of the moment."""
        path = self.top / "outputs.json"
        path.write_text(self.terraform("output", "-json", "deployment"))
        return path

    def mesh(self, *arguments: str) -> Result:
        """Runs a command of ./mesh."""
        return CliRunner().invoke(cli, arguments)
