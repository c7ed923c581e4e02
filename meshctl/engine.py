"""The Docker engine that `./mesh compose` and `./mesh images` use: looked for, checked, called by its command line.

Which engine is Docker's own question: DOCKER_HOST, or the context of the `docker` command. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshctl.console import Progress
from meshctl.errors import UserError

OLDEST = (20, 10)
"""The oldest engine that was tried; Debian 12 has 20.10.24."""
_ASK_SECONDS = 30.0
_INSTALL = "install Docker Engine 20.10 or newer (Debian, Ubuntu: apt-get install docker.io)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that answers and is new enough."""

    docker: str
    """Path of the `docker` command."""
    version: str
    host: str = ""
    """DOCKER_HOST for it; empty: as the environment says."""

    @property
    def environ(self) -> dict[str, str]:
        """The environment for commands that talk to this engine."""
        # Without the buildx plugin newer clients can only use the engine's first builder, and say so each time.
        return {**os.environ, **({"DOCKER_HOST": self.host} if self.host else {}), "DOCKER_CLI_HINTS": "false"}

    def run(self, *arguments: str, seconds: float = 120.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker ARGUMENTS`. UserError with what it said when it fails and `check` is set."""
        return call([self.docker, *arguments], self.environ, seconds, check=check)

    def lines(self, *arguments: str) -> list[str]:
        """The lines that `docker ARGUMENTS` prints."""
        return self.run(*arguments).stdout.split("\n")[:-1]

    def has_image(self, reference: str) -> bool:
        """Whether the engine has that image."""
        return self.run("image", "inspect", "--format", "{{.Id}}", reference, check=False).returncode == 0

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        """`docker inspect` of containers."""
        found: list[dict[str, Any]] = json.loads(self.run("container", "inspect", *names).stdout) if names else []
        return found


def call(
    argv: Sequence[str], environ: dict[str, str], seconds: float, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, at most `seconds`. UserError with its last words when it fails and `check` is set."""
    try:
        done = subprocess.run(
            argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{' '.join(argv[:6])} … did not end within {seconds:.0f} s", "is the Docker engine busy or hung? docker ps"
        ) from error
    if check and done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-6:]) or f"exit code {done.returncode}"
        raise UserError(f"{' '.join(argv[:6])} … failed:\n{said}", exit_code=1)
    return done


def find(host: str = "") -> Engine:
    """The engine of this user. UserError says what is in the way: nothing there, no right to use it, its age."""
    docker = shutil.which("docker")
    if docker is None:
        raise UserError("there is no `docker` command on PATH", _INSTALL)
    environ = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    done = call([docker, "version", "--format", "{{json .Server}}"], environ, _ASK_SECONDS, check=False)
    try:
        server = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        server = None
    if not isinstance(server, dict):
        raise explain(done.stderr.strip() or done.stdout.strip(), environ.get("DOCKER_HOST", ""))
    text = str(server.get("Version", ""))
    version = parse_version(text)
    if version < OLDEST:
        raise UserError(f"the Docker engine is {text or 'of unknown version'}, expected 20.10 or newer", _INSTALL)
    return Engine(docker=docker, version=text, host=host)


def explain(said: str, host: str) -> UserError:
    """What to tell a person about an engine that gave no answer but `said`. Pure."""
    where = f" at {host}" if host else ""
    last = said.splitlines()[-1] if said else "it said nothing"
    if "permission denied" in said:
        return UserError(
            f"this user may not use the Docker engine{where}: {last}",
            "run it as root, or add the user to the group docker and log in again",
        )
    return UserError(
        f"no Docker engine answers{where}: {last}",
        "start it (systemctl start docker, or dockerd as root), or point DOCKER_HOST at one that runs",
    )


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of an engine's version, `20.10.24+dfsg1` → (20, 10, 24)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def compose_plugin(progress: Progress) -> str:
    """Path of a `docker compose` v2; built once where there is none. UserError when that is impossible."""
    from meshctl import tools

    return str(tools.ensure(("docker-compose",), progress)["docker-compose"])
