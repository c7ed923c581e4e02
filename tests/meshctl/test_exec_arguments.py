"""The arguments of `exec`: which options are ours and which are the command's."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from meshctl import compose_commands, lab_commands
from meshctl.exec_arguments import in_order

KNOWN = {"--name": True, "--container": True, "--help": False}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--name x api-0 -- ls -l", "--name x -- api-0 ls -l"),
        ("api-0 --name x -- ls -l", "--name x -- api-0 ls -l"),
        ("api-0 --name=x --container sidecar ls", "--name=x --container sidecar -- api-0 ls"),
        ("--container c api-0 --name x ls --name y", "--container c --name x -- api-0 ls --name y"),
        ("api-0 ls -l", "-- api-0 ls -l"),
        ("api-0 -- --name x", "-- api-0 --name x"),
        ("api-0 -- ls -- -l", "-- api-0 ls -- -l"),
        ("api-0 --help", "--help -- api-0"),
        ("api-0 --name", "--name -- api-0"),
        ("-- api-0 ls", "-- api-0 ls"),
        ("api-0 --", "-- api-0"),
    ],
)
def test_options_stand_on_either_side_of_the_peer(given: str, wanted: str) -> None:
    """Ours are those before the command's first word or `--`, wherever the peer is; all else is the command's."""
    assert in_order(given.split(), KNOWN) == wanted.split()


@pytest.mark.parametrize("given", ["api-0 --nme x ls", "--nme x api-0 ls", "api-0 -l"])
def test_a_misspelt_option_is_no_command(given: str) -> None:
    """Said at once, with the options that there are, and not run in the container."""
    with pytest.raises(click.NoSuchOption):
        in_order(given.split(), KNOWN)


@pytest.mark.parametrize("command", [lab_commands.exec_, compose_commands.exec_])
def test_both_commands_read_their_arguments_so(command: click.Command) -> None:
    """`./mesh exec` and `./mesh compose exec` see the same peer, name and command in either order."""
    for text in ("--name x api-0 -- ls --name y", "api-0 --name x -- ls --name y", "api-0 --name x ls --name y"):
        context = command.make_context("exec", text.split())
        assert context.params == {"peer": "api-0", "command": ("ls", "--name", "y"), "container": None, "name": "x"}
    assert "PEER" in CliRunner().invoke(command, ["api-0", "--help"]).output
