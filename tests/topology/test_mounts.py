"""Mounts that only a CVM would show to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.topology.support import COMPOSE
from topology.compose import parse
from topology.mounts import applications, mounts, sidecars
from topology.problems import ClusterError

AGENT = "/var/run/dstack.sock:/var/run/dstack.sock"
SHARED = "/tmp/dstack-runtime/mesh:/run/mesh"
PRIVATE = "/tmp/dstack-runtime/mesh-private:/run/mesh-private"
GOOD = (AGENT, SHARED, PRIVATE)


def faults(*volumes: str, coordinator: bool = False, **environment: str) -> list[str]:
    """What is wrong with a sidecar that has these."""
    return [it.message for it in sidecars("sidecar", volumes, environment, coordinator=coordinator)]


@pytest.mark.parametrize(
    "volumes",
    [
        GOOD,
        ("/run/dstack.sock:/run/dstack.sock", SHARED, PRIVATE),
        (f"{AGENT}:ro", "/tmp/a/:/run/mesh/", "/tmp/b:/run/mesh-private:rw,z", "data:/elsewhere"),
        (AGENT, SHARED, "${PRIVATE}:/run/mesh-private"),
    ],
)
def test_what_works_in_a_cvm_is_taken(volumes: tuple[str, ...]) -> None:
    """Also other folders of its memory, and what only the environment says."""
    assert faults(*volumes) == []
    assert faults(*volumes, "mesh-data:/mesh-data", coordinator=True) == []


@pytest.mark.parametrize(
    ("volumes", "words"),
    [
        (
            (SHARED, PRIVATE),
            "do not mount /var/run/dstack.sock: the sidecar asks the guest agent who it is; add - /var/",
        ),
        (("/var/run/dstack.sock:/var/run/dstack.sck", SHARED, PRIVATE), "do not mount /var/run/dstack.sock"),
        (("/var/run/docker.sock:/var/run/dstack.sock", SHARED, PRIVATE), "where the guest agent's socket has to be"),
        ((AGENT, PRIVATE), "do not mount /run/mesh: applications find names"),
        ((AGENT, f"{SHARED}:ro", PRIVATE), "at /run/mesh, read-only"),
        ((AGENT, "mesh:/run/mesh", PRIVATE), "a named volume"),
        ((AGENT, SHARED), "do not mount /run/mesh-private: the keys of this boot"),
        ((AGENT, SHARED, "/srv/keys:/run/mesh-private"), "which is not below /tmp"),
        ((AGENT, SHARED, "/tmp/dstack-runtime/mesh/keys:/run/mesh-private"), "which applications mount"),
    ],
)
def test_a_sidecar_has_what_it_needs(volumes: tuple[str, ...], words: str) -> None:
    """One mistake, one fault, with the line to write."""
    (found,) = faults(*volumes)
    assert words in found


def test_a_coordinators_records_are_on_the_disk() -> None:
    """Neither nowhere nor in memory; a workload's sidecar has none."""
    (missing,) = faults(*GOOD, coordinator=True)
    assert "do not mount /mesh-data: what coordinators have acknowledged would be lost" in missing
    (memory,) = faults(*GOOD, "/tmp/data:/mesh-data", coordinator=True)
    assert "which is memory" in memory
    assert faults(*GOOD, "/srv/data:/mesh-data", coordinator=True) == []


def test_who_looks_elsewhere_mounts_as_they_like() -> None:
    """By the sidecar's variables."""
    assert faults(AGENT, SHARED, MESH_STATE_DIR="/srv/private") == []


def test_an_application_sees_what_the_sidecar_writes() -> None:
    """In the same folder."""
    (found,) = [it.message for it in applications("app", ("/tmp/mesh:/run/mesh:ro",), GOOD)]
    assert "mount /tmp/mesh at /run/mesh, and the sidecar writes to /tmp/dstack-runtime/mesh" in found


def test_other_mounts_are_an_applications_own() -> None:
    """Files of the mesh's folder, disks, and what has a variable in it."""
    volumes = ("/tmp/dstack-runtime/mesh/resolv.conf:/etc/resolv.conf:ro", "data:/data", "${X}:/run/mesh", SHARED)
    assert list(applications("app", volumes, GOOD)) == []
    assert [mount.target for mount in mounts(("a", "a:/b/", "$X:/c"))] == ["/b"]


def test_a_compose_file_with_one_is_refused_by_line() -> None:
    """By whoever reads it."""
    wrong = COMPOSE.replace("- /tmp/dstack-runtime/mesh:", "- /tmp/dstack-runtime/mesch:")
    with pytest.raises(ClusterError) as caught:
        parse(wrong, Path("c.yaml"))
    (found,) = caught.value.problems
    assert found.startswith("c.yaml:14: services.app.volumes: mount /tmp/dstack-runtime/mesch at /run/mesh")
