"""The template's public demo: `/hello`, and `/all`, a fan-out to its own service through the mesh, on port 8080.

It listens on 127.0.0.1 for the mesh and on the host interface for the gateway. Run with `python -m workloads.webdemo`.
"""

from __future__ import annotations

import sys

from workloads.program import all_answers, hello, run
from workloads.server import Paths
from workloads.settings import Settings


def paths(settings: Settings) -> Paths:
    """What webdemo answers."""
    return {"/hello": lambda: hello(settings), "/all": lambda: all_answers(settings)}


if __name__ == "__main__":
    url = "http://webdemo:8080/hello"
    sys.exit(run("webdemo", paths, port=8080, target=url, target_variable="WEBDEMO_URL", public=True))
