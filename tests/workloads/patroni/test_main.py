"""`python -m workloads.patroni`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from workloads.patroni import __main__
from workloads.patroni.supervisor import find_postgres


def test_missing_identity_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the sidecar's files there is one line and exit code 2."""
    monkeypatch.setattr(__main__, "IDENTITY", tmp_path / "identity.json")
    assert __main__.main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "identity.json" in said


def test_postgres_is_found_through_links(tmp_path: Path) -> None:
    """The folder is that of the program itself, where its siblings are."""
    real, path = tmp_path / "real", tmp_path / "bin"
    real.mkdir()
    path.mkdir()
    (real / "postgres").touch(mode=0o755)
    (path / "postgres").symlink_to(real / "postgres")
    assert find_postgres(str(path)) == real
    with pytest.raises(FileNotFoundError, match="PostgreSQL 15"):
        find_postgres(str(tmp_path))


def test_patroni_that_was_not_tried_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which version there is and which were tried, before anything is started."""
    monkeypatch.setattr(__main__.versions, "TRIED", ("3.9",))
    assert __main__.main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "3.9.x" in said


def test_health_check_imports_little() -> None:
    """The health check has seconds for a new Python on a busy machine: too few for the supervisor's imports."""
    heavy = ["aiohttp", "asyncio", "concurrent.futures", "http.client", "patroni", "psutil", "psycopg", "ssl", "yaml"]
    program = (
        "import sys; from workloads.patroni.__main__ import main; code = main(['health']);"
        f" print(*sorted(set(sys.modules) & set({heavy!r}))); sys.exit(code)"
    )
    argv, environ = [sys.executable, "-S", "-c", program], {"POSTGRES_RUN": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    said, imported = done.stdout.splitlines()
    assert "the configuration is not written yet" in said
    assert imported == ""
