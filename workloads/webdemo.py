"""The template's public demo: `/hello`, `/all`, a fan-out to its own service through the mesh, and `/db`, on port 8080.

It listens on 127.0.0.1 for the mesh and on the host interface for the gateway. Run with `python -m workloads.webdemo`.
"""

from __future__ import annotations

import sys

from workloads import database
from workloads.program import all_answers, hello, run
from workloads.server import Answer, Paths, document
from workloads.settings import Settings


def paths(settings: Settings) -> Paths:
    """What webdemo answers."""
    return {
        "GET /hello": lambda _: hello(settings),
        "GET /all": lambda _: all_answers(settings),
        "GET /db": lambda _: database_answer(settings),
    }


def database_answer(settings: Settings) -> Answer:
    """`/db`: who leads the database, and the rows behind both routes; 502 with the reason."""
    try:
        return document(database.from_environment(settings.peer()))
    except database.DatabaseError as error:
        return document({"error": str(error)}, 502)


if __name__ == "__main__":
    url = "http://webdemo:8080/hello"
    sys.exit(run("webdemo", paths, port=8080, target=url, target_variable="WEBDEMO_URL", public=True))
