"""The first run: an environment made, repaired, refused, with a Python and a pip that are scripts."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshctl import setup, stamp
from tests.meshctl.test_tools_build import wait_until
from tests.support import ROOT, popen

REAL_PYTHON = sys.executable
"""Kept from before the fixture replaces it."""

_PYTHON = """#!/bin/sh
echo "$@" >> "{root}/calls"
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp "$0" "$3/bin/python" ;;
*"-m pip install"*) {pip} ;;
*sysconfig*) mkdir -p "{root}/.venv/site" && echo "{root}/.venv/site" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without environment; `sys.executable` is a script that makes environments holding itself."""
    for name in ("meshctl", "tools/requirements"):
        (tmp_path / name).mkdir(parents=True)
    for name in stamp.INPUTS:
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(sys, "executable", str(_python(tmp_path)))
    return tmp_path


def _python(checkout: Path, pip: str = "true") -> Path:
    path = checkout / "python"
    path.write_text(_PYTHON.format(root=checkout, pip=pip))
    path.chmod(0o755)
    return path


def _calls(checkout: Path) -> str:
    return (checkout / "calls").read_text()


def test_first_run_makes_an_environment(checkout: Path) -> None:
    """A first run makes .venv, installs with the pins, points it at the checkout, and is current afterwards."""
    assert setup.run(str(checkout), ["status"]) == 0
    assert stamp.is_current(str(checkout))
    lists = checkout / "tools" / "requirements"
    wheels = f"--require-hashes --no-deps --only-binary :all: -r {lists}/setup.txt"
    built = f"--require-hashes --no-deps --no-build-isolation --use-pep517 -r {lists}/sources.txt"
    assert [call.partition("off ")[2] for call in _calls(checkout).splitlines() if "pip install" in call] == [
        wheels, built,
    ]  # fmt: skip
    assert (checkout / ".venv" / "site" / setup.POINTER).read_text() == f"{checkout}\n"
    assert "tools_install" not in _calls(checkout)


def test_second_run_does_nothing(checkout: Path) -> None:
    """A current environment is left alone."""
    setup.run(str(checkout), [])
    before = _calls(checkout)
    assert setup.run(str(checkout), []) == 0
    assert _calls(checkout) == before


def test_interrupted_environment_is_made_again(checkout: Path) -> None:
    """What an interrupted set-up left is removed, since a half-installed package looks like a whole one."""
    setup.run(str(checkout), [])
    Path(stamp.mark_path(str(checkout))).write_text(stamp.INCOMPLETE)
    leftover = checkout / ".venv" / "half"
    leftover.touch()
    assert setup.run(str(checkout), []) == 0
    assert not leftover.exists()
    assert stamp.is_current(str(checkout))


def test_environment_made_by_hand_is_kept(checkout: Path) -> None:
    """A working environment without our mark is installed into, not replaced."""
    subprocess.run([sys.executable, "-m", "venv", str(checkout / ".venv")], check=True)
    mine = checkout / ".venv" / "mine"
    mine.touch()
    assert setup.run(str(checkout), []) == 0
    assert mine.exists()


def test_folder_that_is_no_environment_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A .venv that is something else is named and left alone."""
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "thesis.txt").touch()
    assert setup.run(str(checkout), []) == 2
    assert "exists and is not a virtual environment" in capsys.readouterr().err
    assert (checkout / ".venv" / "thesis.txt").exists()


def test_missing_network_is_one_clear_error(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without network the error says so, names the way out, ends with 2, and the next run starts again."""
    _python(
        checkout, pip="echo 'WARNING: Retrying: NewConnectionError'; echo 'ERROR: No matching distribution'; exit 1"
    )
    assert setup.run(str(checkout), []) == 2
    shown = capsys.readouterr().err
    assert "pip cannot reach the Python package index" in shown
    assert "PIP_INDEX_URL" in shown
    _python(checkout)
    assert setup.run(str(checkout), []) == 0


def test_pips_own_error_is_shown(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other failure of pip is told in pip's words, with the log's place."""
    _python(checkout, pip="echo 'ERROR: no wheel for this machine'; exit 1")
    assert setup.run(str(checkout), []) == 2
    shown = capsys.readouterr().err
    assert "ERROR: no wheel for this machine" in shown
    assert str(checkout / ".mesh" / "setup.log") in shown


def test_another_file_is_said(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not the tested one, by its hash, is not installed, and the message says what that means."""
    words = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    _python(checkout, pip=f"echo '{words}'; exit 1")
    assert setup.run(str(checkout), []) == 2
    shown = capsys.readouterr().err
    assert "the package index gave another file than the one that was tested" in shown
    assert "PIP_INDEX_URL" in shown
    assert not stamp.is_current(str(checkout))


def test_read_only_checkout_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkout that cannot be written to is named."""
    assert setup.run(str(tmp_path / "not-there"), []) == 2
    assert "is read-only for this user" in capsys.readouterr().err


def test_tools_are_built_beside_pip(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that needs the Go tools starts their build in the background; other commands do not."""
    builders: list[subprocess.Popen[bytes]] = []
    start = setup._install_tools_in_background

    def recorded(root: Path) -> subprocess.Popen[bytes]:
        builders.append(start(root))
        return builders[-1]

    monkeypatch.setattr(setup, "_install_tools_in_background", recorded)
    assert setup.run(str(checkout), ["test", "-k", "x"]) == 0
    assert [builder.wait(10) for builder in builders] == [0]
    assert "-P -m meshctl.tools_install" in _calls(checkout)


def test_failed_set_up_ends_the_builder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When pip fails, the build that was started beside it does not go on alone."""
    with popen(["sleep", "600"]) as builder:
        monkeypatch.setattr(setup, "_install_tools_in_background", lambda _: builder)
        _python(checkout, pip="exit 1")
        assert setup.run(str(checkout), ["test"]) == 2
        assert builder.wait(10) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ended_set_up_leaves_nothing_behind(checkout: Path, number: int) -> None:
    """A set-up that is ended, or whose terminal is closed, takes pip, its work and the builder with it."""
    pids, work = checkout / "pids", checkout / "tmp"
    work.mkdir()
    sleeps = f"echo $$ >> {pids}; exec sleep 600"
    script = _python(checkout, pip=f'touch "$TMPDIR/half"; {sleeps}')
    script.write_text(script.read_text().replace("esac", f"*tools_install*) {sleeps} ;;\nesac"))
    code = f"import sys\nfrom meshctl import setup\nsys.executable = {str(script)!r}\n"
    code += f"sys.exit(setup.run({str(checkout)!r}, ['test']))"
    environ = {**os.environ, "TMPDIR": str(work), "PYTHONPATH": str(ROOT)}
    with popen([REAL_PYTHON, "-c", code], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        running.send_signal(number)
        assert "interrupted; the next ./mesh" in running.communicate(timeout=10)[1]
        assert running.returncode == 128 + number
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split()))
    assert list(work.iterdir()) == []


def test_entry_point_is_readable_for_old_pythons() -> None:
    """`mesh` parses as Python 3.6, so that an old interpreter reaches the sentence about its age."""
    ast.parse((ROOT / "mesh").read_text(), feature_version=(3, 6))
    assert os.access(ROOT / "mesh", os.X_OK)


def test_old_python_is_told_what_is_missing() -> None:
    """On an older Python, with no newer one on PATH, one sentence says what is expected."""
    code = "import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path('mesh', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/nonexistent"}
    )
    assert result.returncode == 2
    assert "this is Python 3.9" in result.stderr
    assert "expected 3.11 or newer" in result.stderr


@pytest.mark.e2e
def test_entry_point_hands_over(checkout: Path) -> None:
    """`mesh` makes the environment, then becomes `python -P -m meshctl` with the same arguments."""
    shutil.copy(ROOT / "mesh", checkout / "mesh")
    for path in (ROOT / "meshctl").glob("*.py"):
        shutil.copy(path, checkout / "meshctl")
    setup.run(str(checkout), [])
    python = Path(stamp.python_in(str(checkout)))
    python.write_text('#!/bin/sh\necho "$@"; exit 7\n')
    Path(stamp.mark_path(str(checkout))).write_text(stamp.key(str(checkout)))
    result = subprocess.run([REAL_PYTHON, str(checkout / "mesh"), "a", "--b"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (7, "-P -m meshctl a --b\n")
