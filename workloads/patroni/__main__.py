"""`python -m workloads.patroni`: the program of the PostgreSQL container, `/app/patroni`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
from pathlib import Path

from runtime.env import ConfigError
from runtime.log import configure
from workloads.patroni import moves, versions
from workloads.patroni.settings import read
from workloads.patroni.supervisor import Supervisor, find_postgres

IDENTITY = Path("/run/mesh/identity.json")


def main() -> int:
    """Runs until a signal. Exit code 2: the settings or the installation are wrong, and no restart helps."""
    refused = versions.refusal(importlib.metadata.version("patroni"))
    if refused is not None:
        print(f"patroni: {refused}", file=sys.stderr)
        return 2
    try:
        settings = read(os.environ, IDENTITY.read_text(encoding="utf-8"))
        postgres = find_postgres(os.environ.get("PATH"))
    except (ConfigError, OSError) as error:
        print(f"patroni: {error}", file=sys.stderr)
        return 2
    configure()
    return asyncio.run(moves.live(Supervisor(settings, postgres).run(), settings.identity.peer_id, IDENTITY))


if __name__ == "__main__":
    sys.exit(main())
