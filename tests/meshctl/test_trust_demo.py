"""What `./mesh demo trust` edits, and refuses. The walk itself: tests/e2e/test_trust.py."""

from __future__ import annotations

from click.testing import CliRunner

from meshctl import trust_demo
from meshctl.cli import cli
from meshctl.errors import UserError
from tests.support import ROOT


def test_it_edits_what_the_starter_has() -> None:
    """A starter that was changed breaks the walk: here it is noticed."""
    starter = ROOT / "clusters" / trust_demo.STARTER
    assert trust_demo.ROUTE in (starter / trust_demo.CLUSTER).read_text()
    assert (starter / trust_demo.COMPOSE).is_file()


def test_options_that_would_change_the_walk_are_refused() -> None:
    """It is a walk through one mesh."""
    done = CliRunner().invoke(cli, ["demo", "trust", "--replicas", "api=1"])
    assert isinstance(done.exception, UserError)
    assert "--nat and --name only" in str(done.exception)
