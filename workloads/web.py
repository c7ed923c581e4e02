"""The public face of clusters/emojivoto: a page to vote on, on 127.0.0.1:8080. Run with `python -m workloads.web`.

It asks emoji and voting, at the addresses in `EMOJI_URL` and `VOTING_URL`, which are the CVM's own. Where one of them
does not answer, the page says so with a 503, and the next request asks again.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import quote

from workloads import pages
from workloads.calls import CallError, fetch
from workloads.program import hello, run
from workloads.server import Answer, Paths, Request, document
from workloads.settings import Settings, service_url

EMOJI_URL = "http://127.137.0.1:8081"
VOTING_URL = "http://127.137.0.2:8081"
"""Where the CVM's Envoy listens for calls to the two (`egress` in cluster.tf)."""


class UpstreamError(Exception):
    """A service that web needs does not answer as it has to; the message is one line with its name and the reason."""


class Web:
    """The pages, and the same as JSON for programs."""

    def __init__(self, settings: Settings, emoji_url: str, voting_url: str) -> None:
        self._settings = settings
        self._emoji_url = emoji_url
        self._voting_url = voting_url

    def paths(self) -> Paths:
        """What web answers."""
        return {
            "GET /": self.front,
            "POST /vote": self.vote,
            "GET /hello": lambda _: hello(self._settings),
            "GET /api/list": self.listed,
            "GET /api/results": self.results,
        }

    def front(self, request: Request) -> Answer:
        """The page with all emoji and the leaderboard."""
        try:
            voted = request.query.get("voted", "")
            return _html(pages.front(self._emoji(), self._votes(), voted, self._settings.peer()))
        except UpstreamError as error:
            return _unavailable(error)

    def vote(self, request: Request) -> Answer:
        """One vote, from the page's form; the browser is led back to the page."""
        code = request.form.get("shortcode", "")
        try:
            if code not in self._emoji():
                return _html(pages.trouble("There is no such emoji.", f"It was called {code[:64]!r}."), 400)
            _ask("voting", f"{self._voting_url}/vote?shortcode={quote(code, safe='')}", "POST")
        except UpstreamError as error:
            return _unavailable(error)
        # A reload of the page must not be another vote.
        return Answer(body=b"", content_type=_HTML, status=303, headers={"Location": f"/?voted={quote(code, safe='')}"})

    def listed(self, _: Request) -> Answer:
        """`/api/list`: the shortcodes."""
        try:
            return document(list(self._emoji()))
        except UpstreamError as error:
            return document({"error": str(error)}, 503)

    def results(self, _: Request) -> Answer:
        """`/api/results`: shortcode → votes."""
        try:
            return document(self._votes())
        except UpstreamError as error:
            return document({"error": str(error)}, 503)

    def _emoji(self) -> dict[str, str]:
        answer = _ask("emoji", f"{self._emoji_url}/list")
        try:
            return pages.emoji_of(answer)
        except pages.AnswerError as error:
            raise UpstreamError(f"emoji answered something else: {error}") from error

    def _votes(self) -> dict[str, int]:
        answer = _ask("voting", f"{self._voting_url}/results")
        try:
            return pages.votes_of(answer)
        except pages.AnswerError as error:
            raise UpstreamError(f"voting answered something else: {error}") from error


_HTML = "text/html; charset=utf-8"
_HEADERS = {
    "Content-Security-Policy": pages.POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def _html(page: str, status: int = 200) -> Answer:
    return Answer(body=page.encode(), content_type=_HTML, status=status, headers=_HEADERS)


def _unavailable(error: UpstreamError) -> Answer:
    return _html(pages.trouble("Voting is not possible at the moment. Try again soon.", str(error)), 503)


def _ask(name: str, url: str, method: str = "GET") -> str:
    try:
        return fetch(url, method=method)
    except CallError as error:
        raise UpstreamError(f"{name} does not answer: {error}") from error


def paths(settings: Settings) -> Paths:
    """What web answers, asking the services that this process' environment names."""
    emoji_url = service_url(os.environ, "EMOJI_URL", EMOJI_URL)
    voting_url = service_url(os.environ, "VOTING_URL", VOTING_URL)
    return Web(settings, emoji_url, voting_url).paths()


if __name__ == "__main__":
    sys.exit(run("web", paths, port=8080, public=False))
