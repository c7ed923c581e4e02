"""Whose a variable of an environment is."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from topology.variables import SHELLS_OWN, why_obeyed


@pytest.mark.parametrize("shell", ["sh", "bash --posix", "busybox sh"])
def test_names_that_a_shell_uses_up_are_its_own(shell: str) -> None:
    """What a shell shows of a variable that it was given must be what it was given, for `exec.sh` to compare it: each
    name for which that does not hold is on the list, and usual names of applications are not.
    """
    program = shutil.which(shell.split(maxsplit=1)[0])
    if program is None:
        pytest.skip(f"there is no {shell}")
    own = "IFS PPID PWD OLDPWD SHLVL OPTIND LINENO PATH ENV PS4 BASH BASH_ENV BASHOPTS SHELLOPTS UID EUID RANDOM TMOUT"
    usual = "LANG HOME USER POSTGRES_SYNCHRONOUS LDAP_URL EPOCHS BASE PATHS TZ"
    for name in own.split():
        assert SHELLS_OWN.fullmatch(name), name
    for name in (*own.split(), *usual.split()):
        argv = [program, *shell.split()[1:], "-c", f'printf "%s" "${name}"']
        shown = subprocess.run(argv, env={name: "1 x"}, capture_output=True, text=True, timeout=60, check=False).stdout
        assert shown == "1 x" or SHELLS_OWN.fullmatch(name), (name, shown)
        assert name not in usual.split() or not SHELLS_OWN.fullmatch(name), name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("COMPOSE_FILE", "Docker Compose"),
        ("COMPOSE_PROFILES", "Docker Compose"),
        ("DOCKER_HOST", "Docker Compose"),
        ("BUILDX_CONFIG", "Docker Compose"),
        ("LD_AUDIT", "shell of exec.sh"),
        ("COMPOSER_HOME", ""),
        ("DOCKERIZED", ""),
        ("MODE", ""),
    ],
)
def test_what_somebody_obeys_before_the_application(name: str, words: str) -> None:
    """Is told with whom; other names are the application's."""
    assert words in (why_obeyed(name) or "")
    assert (why_obeyed(name) is None) == (words == "")


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "GCONV_PATH"])
def test_what_the_loader_obeys_is_no_applications(name: str) -> None:
    """It comes before the shell itself."""
    assert SHELLS_OWN.fullmatch(name)
