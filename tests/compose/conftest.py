"""One engine, one build of the images and one starter mesh for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshctl import engine as engines
from meshctl.console import Console
from meshctl.engine import Engine
from meshctl.errors import UserError
from tests.compose.engines import any_engine
from tests.compose.user import Mesh, build, running


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of these pays for the engine, the images and the mesh."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1500))
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    """An engine with Compose; skips where there is none."""
    with any_engine() as found:
        yield found


@pytest.fixture(scope="package")
def plugin(engine: Engine) -> str:
    """`docker compose`, found or built."""
    try:
        return engines.compose_plugin(Console())
    except UserError as error:
        pytest.skip(f"docker compose can neither be found nor built: {error.message.splitlines()[-1]}")


@pytest.fixture(scope="package")
def built(engine: Engine) -> dict[str, list[str]]:
    """The project's images, built: layers by name."""
    return build(engine, "sidecar", "api", "worker", "lab")


@pytest.fixture(scope="package")
def mesh(engine: Engine, plugin: str, built: dict[str, list[str]]) -> Iterator[Mesh]:
    """A running starter mesh: 1 coordinator, 1 api, 2 workers. Tests leave it as whole as they found it."""
    with running(engine, "starter", "--replicas", "api=1") as own:
        yield own
        _check_half_removed(own)


def _check_half_removed(own: Mesh) -> None:
    """A mesh that lost a container says so, is not started over, and is cleared away by `down` all the same."""
    own.engine.run("rm", "-f", own.container("worker-0", "worker"))
    assert "half removed: worker-0/worker is gone" in own.run("ps").stderr
    again = own.run("up", "clusters/starter")
    assert again.returncode == 2
    assert "half removed: worker-0/worker are gone" in again.stderr
