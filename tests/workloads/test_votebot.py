"""The bot against real HTTPS servers."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.workloads.support import serving, silent
from tests.xds.pki import Authority
from workloads import votebot
from workloads.server import Answer, Paths, Request, Server, document, text

CODES = [":taco:", ":beer:", ":pizza:"]


def voted(votes: list[str]) -> Paths:
    """A web that notes the votes."""

    def vote(request: Request) -> Answer:
        votes.append(request.form["shortcode"])
        return Answer(body=b"", content_type="text/plain", status=303, headers={"Location": "/"})

    return {"GET /api/list": lambda _: document(CODES), "POST /vote": vote}


@contextmanager
def site(folder: Path, paths: Paths, *names: str) -> Iterator[tuple[Server, str]]:
    """An HTTPS server with a certificate for `names`; and the file of its CA."""
    authority = Authority()
    (folder / "ca.pem").write_text(authority.pem)
    with serving(paths, authority.server(folder, *names)) as made:
        yield made, str(folder / "ca.pem")


def bot(server: Server, ca: str, *more: str, host: str = "web") -> int:
    """The exit code of the command line."""
    address = f"127.0.0.1:{server.server_port}"
    return votebot.main([f"https://{host}:443", "--cacert", ca, "--address", address, "--pause", "0", *more])


def test_it_votes_and_says_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a vote, of those that there are, over HTTPS that was verified."""
    votes: list[str] = []
    with site(tmp_path, voted(votes), "web") as (server, ca):
        assert bot(server, ca, "--votes", "5") == 0
    assert capsys.readouterr().out.splitlines() == [f"vote {n} of 5: {code}" for n, code in enumerate(votes, 1)]
    assert len(votes) == 5
    assert set(votes) <= set(CODES)


@pytest.mark.parametrize(
    ("host", "names", "own", "reason"),
    [
        ("web", ("other",), True, "Hostname mismatch"),
        ("127.0.0.1", ("web",), True, "IP address mismatch"),
        ("web", ("web",), False, "certificate signature failure"),
    ],
)
def test_a_certificate_that_does_not_verify_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str, names: tuple[str, ...], own: bool, reason: str
) -> None:
    """By name, at once, and nothing was sent."""
    votes: list[str] = []
    with site(tmp_path, voted(votes), *names) as (server, ca):
        if not own:
            Path(ca).write_text(Authority().pem)
        assert bot(server, ca, host=host) == votebot.EXIT_UNVERIFIED
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("votebot: ")]
    assert len(told) == 1
    assert told[0].startswith(f"votebot: the certificate of https://{host}:443 does not verify: {reason}")
    assert votes == []


def test_an_address_of_the_certificate_verifies(tmp_path: Path) -> None:
    """An IP SAN, without --address."""
    votes: list[str] = []
    with site(tmp_path, voted(votes), "127.0.0.1") as (server, ca):
        assert votebot.main([f"https://127.0.0.1:{server.server_port}", "--cacert", ca, "--votes", "1"]) == 0
    assert len(votes) == 1


def test_what_fails_is_tried_again_a_few_times(tmp_path: Path) -> None:
    """A 503, then an answer; pauses that double; and an end with the last reason."""
    answers = [document({"error": "soon"}, 503), text("<b>"), document([1]), document(CODES)]
    pauses: list[float] = []
    votes: list[str] = []
    paths: Paths = {**voted(votes), "GET /api/list": lambda _: answers.pop(0) if answers else document({}, 503)}
    with site(tmp_path, paths, "web") as (server, ca):
        found = votebot.site_of("https://web", ca, f"127.0.0.1:{server.server_port}")
        votebot.run(found, 1, 0, Random(1), pauses.append)
        assert pauses == [0.2, 0.4, 0.8]
        assert len(votes) == 1
        with pytest.raises(votebot.BotError, match=r"asking https://web:443 for the emoji: HTTP 503.*tried 5 times"):
            votebot.run(found, 1, 0, Random(1), pauses.append)
    assert pauses[3:] == [0.2, 0.4, 0.8, 1.6]


def test_nobody_who_listens_is_the_end_after_a_few_attempts(tmp_path: Path) -> None:
    """The reason is the system's."""
    (tmp_path / "ca.pem").write_text(Authority().pem)
    with silent() as gone:
        pass
    found = votebot.site_of("https://web", str(tmp_path / "ca.pem"), gone.removeprefix("http://"))
    with pytest.raises(votebot.BotError, match="ConnectionRefusedError") as caught:
        votebot.run(found, 1, 0, Random(1), lambda _: None)
    assert caught.value.exit_code == votebot.EXIT_FAILED


@pytest.mark.parametrize(
    ("url", "more", "said"),
    [
        ("http://web", (), "is no https://HOST[:PORT]"),
        ("https://web/x", (), "is no https://HOST[:PORT]"),
        ("https://web:99999", (), "expected https://HOST[:PORT]"),
        ("https://web", ("--address", "web"), "--address 'web' is no HOST:PORT"),
        ("https://web", ("--address", "web:" + "9" * 5000), "is no HOST:PORT"),
        ("https://web", ("--votes", "0"), "--votes of 1 or more"),
        ("https://web", (), "/nowhere: "),
    ],
)
def test_bad_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], url: str, more: tuple[str, ...], said: str
) -> None:
    """Exit code 2."""
    assert votebot.main([url, "--cacert", "/nowhere", *more]) == votebot.EXIT_ARGUMENTS
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_it_trusts_the_file_and_nothing_else(tmp_path: Path) -> None:
    """Not the machine's CAs."""
    (tmp_path / "ca.pem").write_text(Authority().pem)
    found = votebot.site_of("https://web", str(tmp_path / "ca.pem"), None)
    assert len(found.tls.get_ca_certs()) == 1
    assert (found.tls.verify_mode, found.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
