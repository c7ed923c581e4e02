"""The process that becomes Patroni."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, popen, process_runs


def test_process_is_not_user_0_and_its_files_are_ours(tmp_path: Path) -> None:
    """PostgreSQL's condition: a user that is not 0 and has a name; to us its files are our own."""
    if os.geteuid() != 0:
        pytest.skip("needs user 0: run as root, or through ./mesh test, which enters a user namespace")
    code = (
        "import os, pwd, pathlib; from workloads.patroni.member import become_unprivileged as b; "
        f"p = pathlib.Path({str(tmp_path)!r}); b((p,)); (p / 'made').touch(); "
        "print(os.geteuid(), os.getegid(), pwd.getpwuid(os.geteuid()).pw_name, (p / 'made').stat().st_uid)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    user, group, name, owner = done.stdout.split()
    assert user == owner != "0"
    assert group != "0"
    assert name in ("postgres", "nobody", "daemon")
    # In a user namespace the file is ours; where the process changed its user for real, it was given the folder.
    assert (tmp_path / "made").stat().st_uid in (0, int(user))


def test_member_dies_with_its_supervisor() -> None:
    """A supervisor that is killed leaves no Patroni behind."""
    inner = (
        "import os, sys, time; from workloads.patroni.member import die_with_parent as d; "
        "d(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
    )
    outer = (
        "import os, subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {inner!r}, str(os.getpid())]); time.sleep(60)"
    )
    with popen([sys.executable, "-c", outer], cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        supervisor.kill()
        end = time.monotonic() + 30
        while process_runs(pid):
            assert time.monotonic() < end, "the member outlived its supervisor"
            time.sleep(0.02)
