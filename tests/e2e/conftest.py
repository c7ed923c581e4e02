"""One starter mesh for the end-to-end tests, brought up and taken down by the shipped command."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.user import Mesh, run_mesh
from tests.support import need_root_or_userns


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """A running starter mesh: 1 coordinator, 2 api, 2 worker. Tests leave it as whole as they found it."""
    need_root_or_userns()
    name = f"e2e-{os.getpid()}"
    up = run_mesh("up", "clusters/starter", "--name", name, timeout=240)
    own = Mesh(name=name, up_output=up.stdout)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield own
    finally:
        down = run_mesh("down", "--name", name, timeout=60)
        assert down.returncode == 0, down.stderr
