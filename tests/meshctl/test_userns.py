"""Whether namespaces can be made, as root and as an ordinary user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshctl import tools, userns
from tests.support import ROOT

NOBODY = 65534
_REPORT = """
import os, sys
from meshctl import userns
print(os.geteuid(), os.environ.get("LOGNAME"))
print([line.split()[4] for line in open("/proc/self/mountinfo") if line.split()[4] == "/run"])
print(userns._trial("root"))
"""


def _as_nobody(code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` as an ordinary user, with a Python that such a user can reach; skips where there is none."""
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        pytest.skip("becomes another user: needs root of the machine, not of a user namespace")
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            result = subprocess.run(
                [python, "-c", code],
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                text=True,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        except OSError:
            continue
        if "ModuleNotFoundError" not in result.stderr:
            return result
    pytest.skip("no Python, or not this checkout, is readable for an ordinary user")


@pytest.mark.netns
def test_ordinary_user_becomes_root_of_a_user_namespace() -> None:
    """An ordinary user enters a user namespace with a private /run and may make network namespaces there."""
    code = f"import sys; from meshctl import userns; userns.enter([sys.executable, '-c', {_REPORT!r}])"
    result = _as_nobody("from meshctl import userns\nprint(userns._trial('user'))")
    if result.stdout.strip() != "None":
        pytest.skip(f"unprivileged user namespaces are not allowed here: {result.stdout.strip()}")
    result = _as_nobody(code)
    assert result.stderr == ""
    who, run, trial = result.stdout.splitlines()
    assert who.split()[0] == "0"
    assert who.split()[1] not in ("None", "root")
    assert run == "['/run']"
    assert trial == "None"


@pytest.mark.netns
def test_root_needs_no_user_namespace() -> None:
    """With the right capabilities nothing is entered; `require` returns."""
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: run as root, or through ./mesh test, which enters a user namespace")
    assert userns._trial("root") is None
    assert userns.check() is None
    userns.require()


@pytest.mark.parametrize(
    ("settings", "sysctl"),
    [
        ({"kernel.unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        ({"user.max_user_namespaces": "0"}, "user.max_user_namespaces=15000"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": "1", "user.max_user_namespaces": "9"},
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_reason_names_the_setting(settings: dict[str, str], sysctl: str) -> None:
    """An ordinary user who is refused reads which setting does it and the command that changes it."""
    reason = userns.explain("Operation not permitted", root=False, settings=settings)
    assert sysctl.partition("=")[0] in reason.message
    assert reason.remedy.endswith(f"sysctl -w {sysctl}")


def test_reason_without_a_known_setting() -> None:
    """A refusal with no known cause repeats the kernel's words and says what always works."""
    reason = userns.explain("Operation not permitted", root=False, settings={"user.max_user_namespaces": "9"})
    assert "Operation not permitted" in reason.message
    assert reason.remedy == "run it as root"


def test_reason_for_root_in_a_container() -> None:
    """Root without the capabilities, as in a plain container, reads which ones to give."""
    reason = userns.explain("Operation not permitted", root=True, settings={})
    assert "SYS_ADMIN" in reason.remedy


def test_missing_tun_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernel WireGuard and without /dev/net/tun the remedy is the command that makes the device."""
    monkeypatch.setattr(tools, "kernel_wireguard", lambda: False)
    monkeypatch.setattr(userns, "TUN", tmp_path / "tun")
    monkeypatch.setattr(userns, "_make_tun", lambda: False)
    reason = userns._wireguard_reason()
    assert reason is not None
    assert "No such file" in reason.message
    assert "mknod" in reason.remedy
    monkeypatch.setattr(tools, "kernel_wireguard", lambda: True)
    assert userns._wireguard_reason() is None
