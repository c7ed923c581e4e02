"""The lab's owner gives coordinators that wait for one their manifest, as a real one takes it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import owner as module
from lab.owner import Coordinator, give, keep
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


async def test_a_coordinator_that_waits_is_given_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its machine runs no more; before it is asked for, an owner who cannot reach it tries again."""
    async with cluster() as mesh, TaskScope() as scope:
        lead = await waits(mesh)
        monkeypatch.setattr(module, "ADMISSION_PORT", lead.coordinator.port)
        places, machines = iter(["127.77.77.77"]), ["it runs"]
        seen = Coordinator(
            name="coordinator-0",
            status_socket=lead.config.state_dir / "status.sock",
            runs=lambda: bool(machines),
            address=lambda: next(places, "127.0.0.1"),
        )
        envelope = seal(mesh.manifest, OWNER)
        giving = scope.start("give", give(seen, envelope, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
        await mesh.ready()
        machines.clear()
        await eventually(giving.done, "the owner leaves")
