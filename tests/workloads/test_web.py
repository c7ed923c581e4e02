"""web with emoji and voting, over HTTP as a browser uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlencode

import pytest

from tests.workloads.support import serving, silent, url
from tests.workloads.test_programs import get, program
from workloads import emoji, voting
from workloads.pages import TITLE
from workloads.server import Paths, Server, text
from workloads.settings import Settings
from workloads.shortcodes import EMOJI
from workloads.web import Web

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def settings(peer: str) -> Settings:
    """Of one program."""
    return Settings(peer=lambda: peer, port=1, public=None, target="", samples=1)


EMOJI_PATHS = emoji.paths(settings("emoji-0"))


@contextmanager
def stack(emoji_paths: Paths | None = None, voting_paths: Paths | None = None) -> Iterator[Server]:
    """Three servers; yields web's."""
    with ExitStack() as all_of_them:
        emoji_server = all_of_them.enter_context(serving(emoji_paths or EMOJI_PATHS))
        voting_server = all_of_them.enter_context(serving(voting_paths or voting.paths(settings("voting-0"))))
        web = Web(settings("web-0"), url(emoji_server), url(voting_server))
        yield all_of_them.enter_context(serving(web.paths()))


def post(port: int, path: str, body: str) -> HTTPResponse:
    """The answer, read."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", path, body, FORM)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_a_vote_from_the_page_is_counted_and_shown() -> None:
    """The form's POST leads back to the page, which thanks and has the leaderboard."""
    with stack() as web:
        status, page = get(web.server_port, "/")
        assert (status, page.count("<button")) == (200, len(EMOJI))
        assert f"<title>{TITLE}</title>" in page
        for _ in range(2):
            answer = post(web.server_port, "/vote", urlencode({"shortcode": ":taco:"}))
            assert (answer.status, answer.headers["Location"]) == (303, "/?voted=%3Ataco%3A")
        status, page = get(web.server_port, "/?voted=%3Ataco%3A")
        assert (status, "You voted for 🌮" in page) == (200, True)
        assert '<td class="votes">2</td>' in page
        assert json.loads(get(web.server_port, "/api/results")[1]) == {":taco:": 2}
        assert json.loads(get(web.server_port, "/api/list")[1]) == list(EMOJI)


def test_pages_may_run_no_script() -> None:
    """The policy that a browser keeps."""
    with stack() as web:
        connection = HTTPConnection("127.0.0.1", web.server_port, timeout=5)
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        connection.close()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_only_what_there_is_can_be_voted_for() -> None:
    """400 with a page; voting itself refuses it, too, as emoji does to find it."""
    with stack() as web:
        assert post(web.server_port, "/vote", urlencode({"shortcode": "<b>"})).status == 400
        assert post(web.server_port, "/vote", "").status == 400
        assert get(web.server_port, "/api/results")[1] == "{}\n"
    with serving(voting.paths(settings("voting-0"))) as made:
        assert post(made.server_port, "/vote?shortcode=%3Ano%3A", "").status == 404
        assert post(made.server_port, "/vote", "").status == 400
        assert get(made.server_port, "/results") == (200, "[]\n")
    with serving(EMOJI_PATHS) as made:
        assert json.loads(get(made.server_port, "/find?shortcode=%3Ataco%3A")[1])["emoji"] == "🌮"
        assert get(made.server_port, "/find?shortcode=taco")[0] == 404
        assert get(made.server_port, "/find")[0] == 400


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ({"GET /other": lambda _: text("")}, "does not answer: HTTP 404"),
        ({"GET /list": lambda _: text("<b>"), "GET /results": lambda _: text("<b>")}, "answered something else"),
    ],
)
def test_a_service_that_fails_is_a_503_with_its_name(paths: Paths, reason: str) -> None:
    """On the page, for the vote, and for programs; once it answers, so does web."""
    for name, emoji_paths, voting_paths in (("emoji", paths, None), ("voting", None, paths)):
        with stack(emoji_paths, voting_paths) as web:
            status, page = get(web.server_port, "/")
            assert (status, f"{name} {reason}" in page, TITLE in page) == (503, True, True)
            assert "<b>" not in page
            path = "/api/list" if name == "emoji" else "/api/results"
            status, told = get(web.server_port, path)
            assert (status, json.loads(told)["error"].startswith(f"{name} {reason}")) == (503, True)


def test_services_that_are_away_are_a_503_for_a_vote() -> None:
    """Nobody listens."""
    with silent() as gone:
        pass
    with serving(Web(settings("web-0"), gone, gone).paths()) as web:
        assert post(web.server_port, "/vote", urlencode({"shortcode": ":taco:"})).status == 503
        assert "emoji does not answer: ConnectionRefusedError" in get(web.server_port, "/")[1]


def test_the_programs_find_each_other_by_their_variables() -> None:
    """As they are started."""
    with program("emoji", PEER_ID="emoji-0") as (_, first), program("voting", PEER_ID="voting-0") as (_, second):
        variables = {"EMOJI_URL": f"http://127.0.0.1:{first}", "VOTING_URL": f"http://127.0.0.1:{second}"}
        with program("web", PEER_ID="web-7", **variables) as (_, port):
            assert get(port, "/hello") == (200, "hello from web-7\n")
            assert post(port, "/vote", "shortcode=%3Abeer%3A").status == 303
            assert json.loads(get(port, "/api/results")[1]) == {":beer:": 1}
            assert "Served by web-7." in get(port, "/")[1]
