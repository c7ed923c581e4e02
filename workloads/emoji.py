"""The emoji service of clusters/emojivoto: `/list`, `/find?shortcode=`, on 127.0.0.1:8080.

Run with `python -m workloads.emoji`.
"""

from __future__ import annotations

import sys

from workloads.program import hello, run
from workloads.server import Answer, Paths, Request, RequestError, document
from workloads.settings import Settings
from workloads.shortcodes import EMOJI


def paths(settings: Settings) -> Paths:
    """What the emoji service answers."""
    return {"GET /hello": lambda _: hello(settings), "GET /list": listed, "GET /find": found}


def listed(_: Request) -> Answer:
    """`/list`: all of them, `[{"shortcode": ":taco:", "emoji": "🌮"}, …]`."""
    return document([{"shortcode": code, "emoji": emoji} for code, emoji in EMOJI.items()])


def found(request: Request) -> Answer:
    """`/find?shortcode=:taco:`: that one, as in `/list`. RequestError where there is none."""
    code = request.query.get("shortcode")
    if code is None:
        raise RequestError("expected /find?shortcode=CODE")
    if code not in EMOJI:
        raise RequestError(f"there is no emoji {code[:64]!r}; /list has all", 404)
    return document({"shortcode": code, "emoji": EMOJI[code]})


if __name__ == "__main__":
    sys.exit(run("emoji", paths, port=8080, public=False))
