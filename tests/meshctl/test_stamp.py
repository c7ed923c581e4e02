"""When an environment counts as up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meshctl import stamp


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that the key covers, and an environment whose interpreter is this one."""
    for name in stamp.INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def _finish(checkout: Path) -> None:
    Path(stamp.mark_path(str(checkout))).write_text(stamp.key(str(checkout)))


def test_finished_environment_is_current(checkout: Path) -> None:
    """The mark of a complete installation makes the environment current; without it, it is not."""
    assert not stamp.is_current(str(checkout))
    _finish(checkout)
    assert stamp.is_current(str(checkout))


@pytest.mark.parametrize("name", stamp.INPUTS)
def test_changed_input_makes_it_stale(checkout: Path, name: str) -> None:
    """A change of any input file asks for a new installation."""
    _finish(checkout)
    (checkout / name).write_text("changed")
    assert not stamp.is_current(str(checkout))


def test_interrupted_installation_is_not_current(checkout: Path) -> None:
    """The mark of an installation under way never counts as complete."""
    Path(stamp.mark_path(str(checkout))).write_text(stamp.INCOMPLETE)
    assert not stamp.is_current(str(checkout))


def test_lost_interpreter_is_not_current(checkout: Path) -> None:
    """An environment whose base Python was removed is not current, and neither is one whose Python moved on."""
    _finish(checkout)
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python3")
    assert not stamp.is_current(str(checkout))
    python.unlink()
    python.symlink_to("/bin/sh")
    assert not stamp.is_current(str(checkout))


def test_moved_checkout_is_not_current(checkout: Path) -> None:
    """A checkout that was moved or copied sets up again, because its environment points at the old place."""
    _finish(checkout)
    moved = checkout.parent / "moved"
    checkout.rename(moved)
    assert not stamp.is_current(str(moved))
