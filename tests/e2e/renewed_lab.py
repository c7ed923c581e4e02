"""A lab daemon whose coordinator, once it was killed, comes back with a newer manifest that changes no workload."""

from __future__ import annotations

from dataclasses import replace

from tests.e2e import smaller_lab
from topology.envelope import digest
from topology.manifest import Manifest

LEAF_HOURS = 9


def renewed(manifest: Manifest) -> Manifest:
    """The manifest after the owner has changed how long certificates live."""
    return replace(manifest, epoch=manifest.epoch + 1, previous=digest(manifest), leaf_hours=LEAF_HOURS)


if __name__ == "__main__":
    smaller_lab.main(renewed)
