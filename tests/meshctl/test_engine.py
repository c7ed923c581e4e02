"""The Docker engine: what is looked for, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshctl import engine
from meshctl.errors import UserError
from tests.meshctl.test_tools import program


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a PATH with nothing on it but the system's `cat`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return tmp_path / "bin" / "docker"


def test_no_command(place: Path) -> None:
    """Without `docker` the message says what to install."""
    with pytest.raises(UserError, match="no `docker` command on PATH") as caught:
        engine.find()
    assert "apt-get install docker.io" in caught.value.remedy


def test_no_engine(place: Path, tmp_path: Path) -> None:
    """A socket that nobody serves is named, with the way to start an engine."""
    place.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon at unix:///x. Is it running?' >&2\nexit 1\n")
    place.chmod(0o755)
    with pytest.raises(UserError, match="no Docker engine answers at unix:///nowhere: Cannot connect") as caught:
        engine.find("unix:///nowhere")
    assert "systemctl start docker" in caught.value.remedy


def test_no_right() -> None:
    """A refused socket is another problem than a missing one."""
    error = engine.explain("Got permission denied while trying to connect to the Docker daemon socket", "")
    assert "may not use" in error.message
    assert "group docker" in error.remedy


@pytest.mark.parametrize("version", ["19.03.15", "20.9", "1.13.1", ""])
def test_engine_too_old(place: Path, version: str) -> None:
    """An engine before 20.10 is refused by its version."""
    program(place, f'{{"Version": "{version}"}}')
    with pytest.raises(UserError, match=r"expected 20\.10 or newer"):
        engine.find()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("20.10.24+dfsg1", (20, 10, 24)), ("28.2.2", (28, 2, 2)), ("24.0.0-rc.1", (24, 0, 0)), ("", ())],
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    """Distributions add to the version; the numbers count."""
    assert engine.parse_version(text) == numbers


def test_a_fitting_engine_and_its_failures(place: Path) -> None:
    """An engine that is new enough is taken; a command that fails says what it said."""
    program(place, '{"Version": "20.10.24+dfsg1"}')
    found = engine.find("unix:///x")
    assert (found.version, found.environ["DOCKER_HOST"]) == ("20.10.24+dfsg1", "unix:///x")
    place.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    with pytest.raises(UserError, match="no such thing"):
        found.run("inspect", "x")
    assert found.run("inspect", "x", check=False).returncode == 1
