"""The voting service of clusters/emojivoto: `POST /vote?shortcode=`, `/results`, on 127.0.0.1:8080. Run with
`python -m workloads.voting`.

The votes are in memory: they end with the process, and each instance has its own.
"""

from __future__ import annotations

import sys
import threading

from workloads.program import hello, run
from workloads.server import Answer, Paths, Request, RequestError, document
from workloads.settings import Settings
from workloads.shortcodes import EMOJI


class Ballot:
    """The votes of one process, for emoji that there are and for nothing else. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._votes: dict[str, int] = {}

    def vote(self, shortcode: str) -> int:
        """Counts one vote; returns how many that emoji has now. KeyError for an emoji that there is not."""
        if shortcode not in EMOJI:
            raise KeyError(shortcode)
        with self._lock:
            self._votes[shortcode] = votes = self._votes.get(shortcode, 0) + 1
        return votes

    def results(self) -> list[tuple[str, int]]:
        """Shortcode and votes of those that have any, the most first, then by name."""
        with self._lock:
            found = list(self._votes.items())
        return sorted(found, key=lambda item: (-item[1], item[0]))


def paths(settings: Settings) -> Paths:
    """What the voting service answers."""
    ballot = Ballot()

    def vote(request: Request) -> Answer:
        code = request.query.get("shortcode")
        if code is None:
            raise RequestError("expected POST /vote?shortcode=CODE")
        try:
            return document({"shortcode": code, "votes": ballot.vote(code)})
        except KeyError as error:
            raise RequestError(f"there is no emoji {code[:64]!r} to vote for", 404) from error

    def results(_: Request) -> Answer:
        return document([{"shortcode": code, "votes": votes} for code, votes in ballot.results()])

    return {"GET /hello": lambda _: hello(settings), "POST /vote": vote, "GET /results": results}


if __name__ == "__main__":
    sys.exit(run("voting", paths, port=8080, public=False))
