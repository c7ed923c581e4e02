"""What `./mesh demo emojivoto` shows and judges. The walk itself: tests/e2e/test_emojivoto.py."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from meshctl.cli import cli
from meshctl.errors import UserError
from meshctl.trust_report import WIDTH
from meshctl.vote_demo import LINES, Said, excerpt, is_page, votes_in, wrapped
from workloads import pages


def test_options_that_would_change_the_walk_are_refused() -> None:
    """It is a walk through one mesh."""
    for name in ("emojivoto", "clusters/emojivoto/"):
        done = CliRunner().invoke(cli, ["demo", name, "--replicas", "web=1"])
        assert isinstance(done.exception, UserError)
        assert "--nat and --name only" in str(done.exception)


def test_the_page_is_told_from_anything_else() -> None:
    """By its title, and by curl's own word."""
    page = pages.front({":a:": "A"}, {}, "", "web-0")
    assert is_page(Said(code=0, out=page, error=""))
    assert not is_page(Said(code=60, out=page, error=""))
    assert not is_page(Said(code=0, out="HTTP is not spoken here", error=""))


@pytest.mark.parametrize(("text", "votes"), [('{":a:": 2, ":b:": 3}', 5), ("{}", 0), ("[1]", 0), ("<html>", 0)])
def test_votes_are_added(text: str, votes: int) -> None:
    """Of any other answer there are none."""
    assert votes_in(text) == votes


def test_commands_can_be_typed_as_they_are_shown() -> None:
    """In lines that no terminal breaks, with quotes where a shell needs them."""
    words = [
        "curl",
        "-sS",
        "--cacert",
        "verify/mesh-ca.pem",
        "--resolve",
        "web:40443:127.0.0.1",
        "https://web:40443/?a=b c",
    ]
    shown = wrapped(words).splitlines()
    assert len(shown) == 2
    assert all(len(line) <= WIDTH for line in shown)
    assert shown[0].endswith(" \\")
    assert "'https://web:40443/?a=b c'" in shown[1]
    assert wrapped(["openssl", "s_client", "< /dev/null"]) == "$ openssl s_client < /dev/null"


def test_an_excerpt_is_what_fits_and_matters() -> None:
    """The first lines, cut; of openssl the lines about the certificate."""
    shown = excerpt("\n".join(f"{n} " + "x" * 100 for n in range(LINES + 2)), ())
    assert len(shown) == LINES + 1
    assert all(len(line) <= WIDTH - 2 for line in shown)
    assert shown[-1] == "… (2 lines more)"
    said = "CONNECTED(3)\nVerification: OK\nxx\n    Verify return code: 0 (ok)\nVerification: OK\n"
    assert excerpt(said, ("verif",)) == ["Verification: OK", "Verify return code: 0 (ok)"]
