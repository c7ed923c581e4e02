"""The lab's owner gives coordinators that wait for one their manifest, as a real one takes it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import owner as module
from lab.machine import Machine
from lab.owner import give, keep
from meshctl import manifest_keys
from runtime.tasks import TaskScope
from tests.coordinator.test_waiting import waits
from tests.coordinator.world import OWNER, cluster
from tests.support import eventually
from topology.envelope import seal


def test_the_owners_key_is_kept_for_the_labs_person_alone(tmp_path: Path) -> None:
    """`./mesh set` can load it, and nobody else may read it."""
    key = Ed25519PrivateKey.generate()
    keep(tmp_path, key, "a.b")
    loaded = manifest_keys.load(tmp_path / "owner.pem")
    assert manifest_keys.public_half(loaded) == manifest_keys.public_half(key)
    assert (tmp_path / "manifest.signed").read_text() == "a.b"
    assert (tmp_path / "owner.pem").stat().st_mode & 0o777 == 0o600


@dataclass
class Boot:
    """What the owner sees of a machine."""

    status_socket: Path
    state: str = "running"

    @property
    def plan(self) -> Any:
        """With a name."""
        return type("Plan", (), {"name": "coordinator-0"})


async def test_a_coordinator_that_waits_is_given_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its machine runs no more; before it is asked for, an owner who cannot reach it tries again."""
    async with cluster() as mesh, TaskScope() as scope:
        lead = await waits(mesh)
        monkeypatch.setattr(module, "ADMISSION_PORT", lead.coordinator.port)
        boot = Boot(lead.config.state_dir / "status.sock")
        places = iter(["127.77.77.77"])
        giving = scope.start(
            "give",
            give(
                cast("Machine", boot),
                seal(mesh.manifest, OWNER),
                lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
                lambda: next(places, "127.0.0.1"),
            ),
        )
        await mesh.ready()
        boot.state = "killed"
        await eventually(giving.done, "the owner leaves")
