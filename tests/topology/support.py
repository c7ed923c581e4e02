"""A cluster folder that tests write and break."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from topology import cluster
from topology.envelope import Signed, open_envelope, seal
from topology.manifest import Manifest
from topology.owners import PrivateKey
from topology.references import MEASURED, KeyProvider, OsImage, Reference, TcbPolicy

REFERENCE = Reference(
    name=MEASURED,
    key_provider=KeyProvider(name="kms", id="30aa"),
    os_images=(OsImage(os_image_hash="05", mrtd="01", rtmr0="02", rtmr1="03", rtmr2="04"),),
    tcb=TcbPolicy(),
)
"""What no real CVM is."""


def opened(manifest: Manifest, *keys: PrivateKey) -> Signed:
    """`manifest` as a reader has it, signed by `keys`."""
    return open_envelope(seal(manifest, *keys), None)


def after(head: Signed, **changes: Any) -> Manifest:
    """The manifest that follows `head`, with `changes`."""
    return dataclasses.replace(head.manifest, **{"epoch": head.manifest.epoch + 1, "previous": head.digest, **changes})


def sealed(payload: bytes, key: Ed25519PrivateKey) -> str:
    """An envelope of any bytes, signed by `key`: what this program would not write itself."""
    parts = (payload, key.sign(b"cvm-mesh manifest v2\0" + payload))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


COMPOSE = """\
services:
  sidecar:
    image: ghcr.io/example/sidecar:1
    command: ["sidecar"]
    <<: {network_mode: host, volumes: [/var/run/dstack.sock:/var/run/dstack.sock, \
/tmp/dstack-runtime/mesh:/run/mesh, /tmp/dstack-runtime/mesh-private:/run/mesh-private]}
    environment:
      MESH_OWNERS: "REPLACE_WITH_YOUR_OWNER_KEY"
    healthcheck: { test: ["CMD", "true"], interval: 2s, retries: 150, start_period: 24h }
  app:
    image: ghcr.io/example/app:1
    entrypoint: ["/run/mesh/exec.sh"]
    command: ["/app/app"]
    network_mode: host
    volumes:
      - /tmp/dstack-runtime/mesh:/run/mesh:ro
    depends_on:
      sidecar:
        condition: service_healthy
"""

COORDINATOR = """\
services:
  sidecar:
    image: ghcr.io/example/sidecar:1
    command: ["coordinator"]
    network_mode: host
    volumes:
      - /var/run/dstack.sock:/var/run/dstack.sock
      - /tmp/dstack-runtime/mesh:/run/mesh
      - /tmp/dstack-runtime/mesh-private:/run/mesh-private
      - mesh-data:/mesh-data
    environment:
      MESH_OWNERS: "REPLACE_WITH_YOUR_OWNER_KEY"
"""


def group(
    name: str,
    *,
    replicas: str = "2",
    backends: str | None = None,
    routes: str | None = None,
    more: str = "",
    compose: str = '"${path.module}/compose/app.yaml"',
) -> str:
    """A workload group as HCL, with a backend and a route of its own name unless told otherwise."""
    backends = backend(name) if backends is None else backends
    routes = f'"{name}" = {{ backend = "{name}", role = null }}' if routes is None else routes
    return f"""
    "{name}" = {{
      replicas = {replicas}
      compose  = {compose}
      backends = {{
        {backends}
      }}
      routes = {{
        {routes}
      }}
      {more}
    }}
"""


def backend(
    name: str, *, port: str = "8080", owner: str = "platform", parent: str | None = None, more: str = ""
) -> str:
    """A backend as HCL."""
    parent = f'"{parent or name}"' if parent is None or not parent.startswith("var.") else parent
    return f"""
        "{name}" = {{
          port = {port}
          workload = "{name}"
          registration = {{ owner = "{owner}", parent = {parent} }}
          {more}
        }}
"""


def write(folder: Path, *groups: str, extra: str = "", variables: str = "", compose: str = COMPOSE) -> Path:
    """A cluster folder with `groups`, the variable `cluster_name`, and the compose files."""
    (folder / "compose").mkdir(parents=True, exist_ok=True)
    (folder / "cluster.tf").write_text(f"locals {{\n  workload_groups = {{{''.join(groups)}  }}\n{extra}\n}}\n")
    (folder / "variables.tf").write_text(
        f'variable "cluster_name" {{\n  type = string\n  default = "demo"\n}}\n{variables}'
    )
    (folder / "compose" / "app.yaml").write_text(compose)
    (folder / "compose" / "coordinator.yaml").write_text(COORDINATOR)
    return folder


def problems(folder: Path, **overrides: str) -> list[str]:
    """The problems of the cluster in `folder`; fails the test when there is none."""
    with pytest.raises(cluster.ClusterError) as caught:
        cluster.load(folder, overrides)
    return caught.value.problems


def only(found: list[str], *words: str) -> None:
    """Asserts that there is one problem and that it has all `words`."""
    assert len(found) == 1, found
    for word in words:
        assert word in found[0], found[0]
