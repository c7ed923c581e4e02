"""The private demo service: `GET /hello` on 127.0.0.1:9090. Run with `python -m workloads.worker`."""

from __future__ import annotations

import sys

from workloads.program import hello, run
from workloads.server import Paths
from workloads.settings import Settings


def paths(settings: Settings) -> Paths:
    """What the worker answers."""
    return {"GET /hello": lambda _: hello(settings)}


if __name__ == "__main__":
    sys.exit(run("worker", paths, port=9090, public=False))
