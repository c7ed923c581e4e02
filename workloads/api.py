"""The public demo service: `/hello`, `/worker` (one call to the worker) and `/all` (a fan-out to it), on port 8080.

It listens on 127.0.0.1 for the mesh and on the host interface for the gateway. Run with `python -m workloads.api`.
"""

from __future__ import annotations

import sys

from workloads.program import all_answers, hello, passed_on, run
from workloads.server import Paths
from workloads.settings import Settings


def paths(settings: Settings) -> Paths:
    """What the api answers."""
    return {
        "GET /hello": lambda _: hello(settings),
        "GET /worker": lambda _: passed_on(settings),
        "GET /all": lambda _: all_answers(settings),
    }


if __name__ == "__main__":
    url = "http://worker:9090/hello"
    sys.exit(run("api", paths, port=8080, target=url, target_variable="WORKER_URL", public=True))
